"""Commands that outlast a call: in the background, many at once, read, fed, signalled, cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandhold.contracts.calls import CallEnvelope
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.names import sandbox_workflow_id
from tests.stack import Stack
from tests.workflows.calls import creates, error_of_call, exec_ok
from tests.workflows.commands import command
from tests.workflows.waiting import eventually


@pytest.mark.storage("folder", "s3")
async def test_a_background_command_answers_at_once_and_is_read_by_offset_until_its_end(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    started = await exec_ok(
        session, box, "for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 1; done; exit 3", background=True
    )
    assert started["status"] == "running"
    call_id = started["call_id"]
    text, offset = "", 0
    while (read := await command(session, box, "read", call_id, stdout_offset=offset, wait_ms=5000))[
        "status"
    ] == "running":
        text += read["stdout"]
        offset = read["stdout_offset"]
    text += read["stdout"]
    assert text == "out 1\nout 2\nout 3\n"
    ended = await command(session, box, "wait", call_id)
    assert (ended["status"], ended["exit_code"], ended["stderr"]) == ("completed", 3, "err 1\nerr 2\nerr 3\n")
    rows = (await command(session, box, "list"))["commands"]
    assert [(row["call_id"], row["status"], row["background"], row["exit_code"]) for row in rows] == [
        (call_id, "completed", True, 3)
    ]
    await session.end()


async def test_a_background_command_outlives_a_continue_as_new(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    started = await exec_ok(session, box, "echo begun; read -r word; echo got $word", background=True, stdin=True)
    runs = (await stack.status(session, box)).runs
    while (await stack.status(session, box)).runs == runs:
        await asyncio.gather(*(exec_ok(session, box, "true") for _ in range(6)))
    await command(session, box, "write", started["call_id"], input="home\n")
    ended = await command(session, box, "wait", started["call_id"])
    assert (ended["status"], ended["stdout"]) == ("completed", "begun\ngot home\n")
    await session.end()


async def test_input_is_written_once_in_order_and_closed(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    call_id = (await exec_ok(session, box, "cat; echo end", background=True, stdin=True))["call_id"]
    for number in range(3):
        for _ in range(2):  # A repeated call id writes nothing.
            arguments = {"sandbox_id": box, "action": "write", "call_id": call_id, "input": f"{number}\n"}
            envelope = await session.call("daytona_command", arguments, call_id=f"w-{number}")
            assert envelope.error is None
    await command(session, box, "write", call_id, close=True)
    ended = await command(session, box, "wait", call_id)
    assert (ended["exit_code"], ended["stdout"]) == (0, "0\n1\n2\nend\n")
    assert (
        await error_of_call(
            session, "daytona_command", {"sandbox_id": box, "action": "write", "call_id": call_id, "input": "late"}
        )
    ).code is ErrorCode.CONFLICT
    await session.end()


async def test_a_signal_reaches_the_command_and_a_cancel_ends_all_it_started(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    trap = "trap 'echo caught' USR1; sleep 1000 & echo ready; while :; do wait; done"
    call_id = (await exec_ok(session, box, trap, background=True))["call_id"]
    await command(session, box, "read", call_id, wait_ms=5000)
    await command(session, box, "signal", call_id, signal="USR1")

    async def caught() -> str:
        return str((await command(session, box, "read", call_id))["stdout"])

    await eventually(caught, lambda text: text.endswith("caught\n"), "the signal")
    cancelled = await command(session, box, "cancel", call_id)
    assert cancelled["status"] == "cancelled"
    assert (await exec_ok(session, box, "pgrep -cxf 'sleep 1000' || true", output="normal"))["stdout"].strip() == "0"
    await session.end()


async def test_an_unbounded_background_command_holds_off_the_idle_stop_only_while_the_policy_says_so(
    stack: Stack,
) -> None:
    session = await stack.open(idle_stop_s=1.0, background_use_s=4.0)
    box = await creates(session)
    call_id = (await exec_ok(session, box, "echo here; sleep 1000", background=True))["call_id"]
    await asyncio.sleep(2.5)
    assert (await stack.status(session, box)).state == "started"
    await command(session, box, "read", call_id)  # Reading it is a use: the time starts again.
    await asyncio.sleep(2.5)
    assert (await stack.status(session, box)).state == "started"
    await eventually(lambda: stack.status(session, box), lambda seen: seen.state == "stopped", "the idle stop")
    read = await command(session, box, "read", call_id)
    assert (read["status"], read["stdout"]) == ("cancelled", "here\n")
    assert (await stack.status(session, box)).state == "stopped"  # Its output comes from storage.
    await session.end()


async def test_a_bounded_background_command_holds_off_the_idle_stop_until_its_end(stack: Stack) -> None:
    session = await stack.open(idle_stop_s=1.0, background_use_s=1.0)
    box = await creates(session)
    call_id = (await exec_ok(session, box, "sleep 4; echo built", background=True, timeout=60_000))["call_id"]
    ended = await command(session, box, "wait", call_id)
    assert (ended["status"], ended["stdout"]) == ("completed", "built\n")
    await session.end()


async def test_a_short_call_beside_fifty_commands_is_answered_in_its_update_and_all_fifty_end_right(
    stack: Stack,
) -> None:
    session = await stack.open()
    box = await creates(session)
    workflow = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))

    async def long(number: int) -> tuple[int, dict[str, Any]]:
        return number, await exec_ok(session, box, f"until [ -e go ]; do sleep 1; done; echo {number}; exit {number}")

    async def updates() -> tuple[set[str], dict[str, CallEnvelope]]:
        """The ids of the updates that were accepted, and the answers of those that were answered."""
        accepted, answered = set(), {}
        async for event in workflow.fetch_history_events():
            begun = event.workflow_execution_update_accepted_event_attributes
            ended = event.workflow_execution_update_completed_event_attributes
            if begun.protocol_instance_id:
                accepted.add(begun.protocol_instance_id)
            if ended.meta.update_id:
                answers = await stack.temporal.data_converter.decode(ended.outcome.success.payloads, [CallEnvelope])
                answered[ended.meta.update_id] = answers[0]
        return accepted, answered

    async def at_rest() -> bool:
        """Whether all fifty run, and none of them holds an update any more."""
        accepted, answered = await updates()
        return len((await stack.status(session, box)).calls) == 50 and accepted == set(answered)

    running = [asyncio.create_task(long(number)) for number in range(50)]
    await eventually(at_rest, bool, "fifty commands that run without an update", pause_s=0.5)
    assert (await session.call("daytona_exec", {"sandbox_id": box, "command": "true"}, call_id="short")).ok
    assert not any(task.done() for task in running)
    _, answered = await updates()
    assert (answered["short"].status, answered["short"].ok) == ("done", True)
    assert {answer.status for call_id, answer in answered.items() if call_id != "short"} == {"running"}
    await session.write_file(box, "go", "")
    for number, result in await asyncio.gather(*running):
        assert (result["status"], result["exit_code"], result["stdout"]) == ("completed", number, f"{number}\n")
    await session.end()


@pytest.mark.storage("folder", "s3")
async def test_a_command_that_floods_is_ended_by_the_cap_with_exact_counts(stack: Stack) -> None:
    session = await stack.open(output_cap_bytes=1_000_000)
    box = await creates(session)
    result = await exec_ok(session, box, "yes | head -c 3000000; sleep 60")
    assert (result["status"], result["stdout_bytes"], result["truncated"]) == ("cancelled", 3_000_000, True)
    assert "1000000" in result["hint"].replace(",", "")
    await session.end()


async def test_an_unknown_command_is_refused_with_those_that_are(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    call_id = (await exec_ok(session, box, "true"))["call_id"]
    error = await error_of_call(session, "daytona_command", {"sandbox_id": box, "action": "read", "call_id": "other"})
    assert error.code is ErrorCode.INVALID_ARGUMENTS
    assert call_id in (error.hint or "")
    await session.end()
