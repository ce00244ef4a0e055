"""Commands during the request that starts them: known to everybody, ended by whoever wants, never off the record."""

from __future__ import annotations

from typing import Any

import pytest

from sandhold.client import Session
from sandhold.contracts.errors import ErrorCode
from tests.stack import Stack
from tests.workflows.calls import call_ok, creates, error_of_call, exec_ok
from tests.workflows.commands import begins, command, rows
from tests.workflows.waiting import eventually

EXECUTE = {"method": "POST", "route": "/toolbox/{id}/process/execute"}
START = {"method": "POST", "route": "/api/sandbox/{id}/start"}
UNAUTHORIZED = {"effect": "status", "status": 401, "body": {"statusCode": 401, "message": "Unauthorized"}}


async def held_up(stack: Stack, seconds: float) -> None:
    """The next request to a sandbox comes in late."""
    await stack.faults.add(**EXECUTE, effect="delay", seconds=seconds, times=1)


async def until_listed(session: Session, box: str, call_id: str) -> None:
    async def listed() -> list[str]:
        return [row.call_id for row in await rows(session, box) if row.status == "running"]

    await eventually(listed, lambda ids: call_id in ids, "the command in the list")


async def given_up(stack: Stack, session: Session, box: str, call_id: str, script: str, *, arrives: bool) -> None:
    """A command whose first request is not answered, and whose second one is refused."""
    await stack.faults.add(**EXECUTE, effect="answer_lost" if arrives else "reset_before", times=1)
    await stack.faults.add(**EXECUTE, **UNAUTHORIZED, skip=1 if arrives else 0, times=1)
    envelope = await begins(session, box, call_id, script, background=True)
    assert envelope.error is not None
    assert (envelope.error.code, envelope.error.ambiguous) == (ErrorCode.CONNECTION_REQUIRED, True)
    hint = envelope.error.hint or ""
    assert "connect Daytona" in hint
    assert "daytona_command" in hint
    assert call_id in hint


async def test_a_command_whose_request_is_given_up_after_it_began_is_followed_to_its_end(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await given_up(stack, session, box, "c-1", "echo begun; sleep 2; echo ended; exit 4", arrives=True)
    assert [(row.call_id, row.status) for row in await rows(session, box)] == [("c-1", "running")]
    ended = await command(session, box, "wait", "c-1")
    assert (ended["status"], ended["exit_code"], ended["stdout"]) == ("completed", 4, "begun\nended\n")
    await session.end()


async def test_a_command_whose_request_is_given_up_after_it_began_can_be_ended(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await given_up(stack, session, box, "c-1", "sleep 1000", arrives=True)
    assert (await command(session, box, "cancel", "c-1"))["status"] == "cancelled"
    assert (await exec_ok(session, box, "pgrep -cxf 'sleep 1000' || true", output="normal"))["stdout"].strip() == "0"
    await session.end()


async def test_a_command_whose_request_is_given_up_before_it_began_never_begins(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await given_up(stack, session, box, "c-1", "touch ran", arrives=False)
    assert (await command(session, box, "wait", "c-1"))["status"] == "cancelled"
    outcome = (await session.command(box, "c-1").state()).outcome
    assert outcome is not None
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.ambiguous) == (ErrorCode.CANCELLED, False)
    assert "never started" in outcome.error.message
    assert (await exec_ok(session, box, "ls ran || echo none", output="normal"))["stdout"] == "none\n"
    await session.end()


async def test_a_command_that_the_first_request_was_refused_for_is_not_on_record(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await exec_ok(session, box, "true")
    await stack.faults.add(**EXECUTE, **UNAUTHORIZED, times=1)
    error = await error_of_call(session, "daytona_exec", {"sandbox_id": box, "command": "touch ran"})
    assert (error.code, error.ambiguous) == (ErrorCode.CONNECTION_REQUIRED, False)
    assert [row.status for row in await rows(session, box)] == ["completed"]
    await session.end()


async def test_a_command_is_listed_and_cancelled_while_its_first_request_waits_for_its_end(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    running = begins(session, box, "c-1", "echo begun; sleep 1000")
    await until_listed(session, box, "c-1")
    assert (await command(session, box, "cancel", "c-1"))["status"] == "cancelled"
    envelope = await running
    assert isinstance(envelope.result, dict)
    assert envelope.result["status"] == "cancelled"
    assert [(row.call_id, row.status) for row in await rows(session, box)] == [("c-1", "cancelled")]
    assert (await exec_ok(session, box, "pgrep -cxf 'sleep 1000' || true", output="normal"))["stdout"].strip() == "0"
    await session.end()


async def test_a_command_that_is_cancelled_before_its_request_comes_in_never_begins(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await exec_ok(session, box, "true")
    await held_up(stack, 3.0)
    running = begins(session, box, "c-1", "touch ran", background=True)
    await until_listed(session, box, "c-1")
    assert (await command(session, box, "cancel", "c-1"))["status"] == "cancelled"
    envelope = await running
    assert isinstance(envelope.result, dict)
    assert (envelope.result["status"], envelope.result["exit_code"]) == ("cancelled", None)
    assert (await exec_ok(session, box, "ls ran || echo none", output="normal"))["stdout"] == "none\n"
    await session.end()


async def test_a_command_that_is_cancelled_while_its_sandbox_starts_is_not_started(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"})
    await stack.faults.add(**START, effect="start_delay", seconds=3.0, times=1)
    running = begins(session, box, "c-1", "touch ran")
    await until_listed(session, box, "c-1")
    assert (await command(session, box, "cancel", "c-1"))["status"] == "cancelled"
    assert (await stack.status(session, box)).state == "starting"
    envelope = await running
    assert isinstance(envelope.result, dict)
    assert envelope.result["status"] == "cancelled"
    assert "nothing was run" in envelope.result["hint"]
    assert [(row.call_id, row.status) for row in await rows(session, box)] == [("c-1", "cancelled")]
    await stack.faults.forget_requests()
    assert (await exec_ok(session, box, "ls ran || echo none", output="normal"))["stdout"] == "none\n"
    assert len(await stack.faults.requests(**EXECUTE)) == 1
    await session.end()


async def test_a_command_that_is_cancelled_while_its_sandbox_was_stopped_by_somebody_does_not_start_it_again(
    stack: Stack,
) -> None:
    session = await stack.open()
    box = await creates(session)
    await exec_ok(session, box, "true")
    await held_up(stack, 3.0)
    running = begins(session, box, "c-1", "touch ran")
    await until_listed(session, box, "c-1")
    [held] = await stack.provider_sandboxes(session)
    await held.stop()
    assert (await command(session, box, "cancel", "c-1"))["status"] == "cancelled"
    envelope = await running
    assert isinstance(envelope.result, dict)
    assert envelope.result["status"] == "cancelled"
    assert (await stack.status(session, box)).state == "stopped"
    await session.end()


@pytest.mark.parametrize("action", ["read", "wait"])
async def test_output_is_waited_for_from_a_command_that_is_being_started(stack: Stack, action: str) -> None:
    session = await stack.open()
    box = await creates(session)
    await held_up(stack, 1.5)
    running = begins(session, box, "c-1", "echo begun; sleep 1; exit 2", background=True)
    await until_listed(session, box, "c-1")
    more: dict[str, Any] = {"wait_ms": 10_000} if action == "read" else {}
    seen = await command(session, box, action, "c-1", **more)
    assert seen["stdout"] == "begun\n"
    if action == "wait":
        assert (seen["status"], seen["exit_code"]) == ("completed", 2)
    await running
    await session.end()


async def test_a_wait_that_is_over_before_the_command_is_started_says_that_it_runs(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await held_up(stack, 2.0)
    running = begins(session, box, "c-1", "exit 2", background=True)
    await until_listed(session, box, "c-1")
    seen = await command(session, box, "wait", "c-1", wait_ms=300, stdout_offset=7)
    assert (seen["status"], seen["stdout_offset"]) == ("running", 7)
    await running
    await session.end()


async def test_input_and_signals_reach_a_command_that_is_being_started(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await held_up(stack, 1.5)
    script = "trap 'echo caught' USR1; read -r word; echo got $word; sleep 1000 & while :; do wait; done"
    running = begins(session, box, "c-1", script, background=True, stdin=True)
    await until_listed(session, box, "c-1")
    await command(session, box, "write", "c-1", input="home\n")
    assert (await running).ok

    async def output() -> str:
        return str((await command(session, box, "read", "c-1"))["stdout"])

    await eventually(output, lambda text: text == "got home\n", "the input")
    await held_up(stack, 1.5)
    second = begins(session, box, "c-2", "sleep 1000", background=True)
    await until_listed(session, box, "c-2")
    await command(session, box, "signal", "c-2", signal="KILL")
    assert (await second).ok
    assert (await command(session, box, "wait", "c-2"))["exit_code"] == 137
    await session.end()


async def test_what_is_asked_of_a_command_that_was_not_started_after_all_is_refused(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await held_up(stack, 1.0)
    running = begins(session, box, "c-1", "true", cwd="no/such/place")
    await until_listed(session, box, "c-1")
    asked = {"sandbox_id": box, "action": "read", "call_id": "c-1"}
    assert (await error_of_call(session, "daytona_command", asked)).code is ErrorCode.INVALID_ARGUMENTS
    envelope = await running
    assert envelope.error is not None
    assert envelope.error.code is ErrorCode.PATH_NOT_FOUND
    assert await rows(session, box) == []
    await session.end()
