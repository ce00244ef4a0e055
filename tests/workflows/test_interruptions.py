"""Commands that are interrupted with their sandbox: their outcome holds what was stored of their output."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities.interruptions import InterruptionActivities
from sandhold.client import Session
from sandhold.storage import SessionStorage
from tests.stack import RING, Stack
from tests.workflows.calls import creates, exec_ok
from tests.workflows.commands import command, rows
from tests.workflows.waiting import eventually

pytestmark = pytest.mark.storage("folder", "s3")

EXECUTE = {"method": "POST", "route": "/toolbox/{id}/process/execute"}
SCRIPT = "echo begun; seq 3000; echo 'fatal: no such branch' >&2; sleep 1000"


async def runs(stack: Stack, session: Session, box: str, script: str = SCRIPT) -> str:
    """The id of a command in the background whose output is in storage, as far as there is any by now."""
    call_id = str((await exec_ok(session, box, script, background=True))["call_id"])
    storage = SessionStorage.open(stack.settings.storage_location, RING)

    async def stored() -> bytes:
        return (await storage.read_output(session.session_id, call_id, "stderr", 0, 100)).data

    await eventually(stored, lambda data: data.endswith(b"branch\n"), "the output in storage")
    return call_id


async def result_of(session: Session, box: str, call_id: str) -> dict[str, Any]:
    return (await session.command(box, call_id).wait()).model_dump()


async def test_a_command_whose_sandbox_somebody_stopped_ends_with_what_it_had_written(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    call_id = await runs(stack, session, box)
    [held] = await stack.provider_sandboxes(session)
    await held.stop()
    result = await result_of(session, box, call_id)
    assert (result["status"], result["exit_code"]) == ("interrupted", None)
    assert result["stdout_bytes"] == len("begun\n") + sum(len(f"{n}\n") for n in range(1, 3001))
    assert result["stdout"].startswith("begun\n1\n")
    assert result["stdout"].endswith("\n3000\n")
    assert (result["stderr"], result["truncated"]) == ("fatal: no such branch\n", True)
    assert result["output_files"] is not None
    assert [row.status for row in await rows(session, box)] == ["interrupted"]
    await session.end()


@pytest.mark.storage("folder")
async def test_commands_that_do_not_say_how_they_ended_before_a_stop_end_with_what_they_had_written(
    stack: Stack,
) -> None:
    """Nobody reaches the sandbox any more, and it is stopped all the same."""
    session = await stack.open()
    box = await creates(session)
    call_ids = [await runs(stack, session, box) for _ in range(2)]
    await stack.faults.add(**EXECUTE, effect="status", status=401, body={"statusCode": 401, "message": "Unauthorized"})
    stopped = await session.call("daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"})
    assert stopped.ok
    for call_id in call_ids:
        result = await result_of(session, box, call_id)
        assert result["status"] == "cancelled"
        assert result["stderr"] == "fatal: no such branch\n"
        assert result["stdout"].endswith("\n3000\n")
    await session.end()


async def test_a_command_is_interrupted_also_when_nothing_can_be_told_of_its_output(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise ApplicationError("the storage is gone", non_retryable=True)

    monkeypatch.setattr(InterruptionActivities, "_ended", refuse)
    session = await stack.open()
    box = await creates(session)
    call_id = await runs(stack, session, box)
    [held] = await stack.provider_sandboxes(session)
    await held.stop()
    result = await result_of(session, box, call_id)
    assert (result["status"], result["stdout"], result["stdout_bytes"]) == ("interrupted", "", 0)
    read = await command(session, box, "read", call_id)
    assert read["stdout"].startswith("begun\n"), "its output can still be read"
    await session.end()
