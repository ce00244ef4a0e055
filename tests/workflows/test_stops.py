"""Stops that fail, and stops that are heard of late: only commands that are over end on record."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities.following import FollowingActivities
from sandhold.contracts.errors import SandboxSignal
from tests.stack import Stack
from tests.workflows.calls import creates, error_of_call, exec_ok
from tests.workflows.commands import begins, command, rows
from tests.workflows.waiting import eventually

EXECUTE = {"method": "POST", "route": "/toolbox/{id}/process/execute"}
STOP = {"method": "POST", "route": "/api/sandbox/{id}/stop"}
AWAY: dict[str, Any] = {"effect": "status", "status": 401, "body": {"statusCode": 401, "message": "Unauthorized"}}
LASTING = "until [ -e go ]; do sleep 0.2; done; echo whole; exit 4"


async def test_commands_run_on_when_neither_they_nor_their_sandbox_could_be_stopped(stack: Stack) -> None:
    session = await stack.open(lifecycle_timeout_s=2.0)
    box = await creates(session)
    waited_for = begins(session, box, "waited-for", LASTING)
    background = str((await exec_ok(session, box, LASTING, background=True))["call_id"])
    stays = str((await exec_ok(session, box, "echo begun; sleep 1000", background=True))["call_id"])

    async def on_record() -> int:
        return len(await rows(session, box))

    await eventually(on_record, lambda count: count == 3, "three commands on record")
    await asyncio.sleep(9)  # The first request of the one that is waited for is over.
    await stack.faults.add(**EXECUTE, **AWAY)
    await stack.faults.add(**STOP, effect="status", status=503)
    refused = await session.call("daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"})
    assert refused.error is not None
    await stack.faults.clear()
    assert (await stack.status(session, box)).state == "started"
    assert {row.status for row in await rows(session, box)} == {"running"}

    await exec_ok(session, box, "touch go")
    ended = await waited_for
    assert isinstance(ended.result, dict)
    assert (ended.result["status"], ended.result["exit_code"], ended.result["stdout"]) == ("completed", 4, "whole\n")
    result = await session.command(box, background).wait()
    assert (result.status, result.exit_code, result.stdout) == ("completed", 4, "whole\n")
    [held] = await stack.provider_sandboxes(session)
    await held.stop()
    stopped = await session.command(box, stays).wait()
    assert (stopped.status, stopped.stdout) == ("interrupted", "begun\n"), "nobody's wish to end it is left over"
    await session.end()


async def test_a_cancel_that_reaches_nothing_leaves_no_wish_behind(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    call_id = str((await exec_ok(session, box, "sleep 1000", background=True))["call_id"])
    await stack.faults.add(**EXECUTE, **AWAY)
    await error_of_call(session, "daytona_command", {"sandbox_id": box, "action": "cancel", "call_id": call_id})
    await stack.faults.clear()
    [held] = await stack.provider_sandboxes(session)
    await held.stop()
    assert (await command(session, box, "wait", call_id))["status"] == "interrupted"
    await session.end()


async def test_late_news_of_a_stop_ends_no_command_that_was_started_since(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_news = FollowingActivities._take_news
    restarted = asyncio.Event()
    late: list[str] = []

    async def slow_to_tell(self: FollowingActivities, ref: Any, commands: Any, *more: Any) -> Any:
        try:
            return await take_news(self, ref, commands, *more)
        except ApplicationError as error:
            if error.type == SandboxSignal.NOT_STARTED and any("late" in folder for folder in commands):
                await restarted.wait()
                late.extend(commands)
            raise

    monkeypatch.setattr(FollowingActivities, "_take_news", slow_to_tell)
    session = await stack.open()
    box = await creates(session)
    for call_id in ("soon", "late"):
        await begins(session, box, call_id, "echo begun; sleep 1000", background=True)
        await asyncio.sleep(0.7)  # Each has a follower of its own.
    [held] = await stack.provider_sandboxes(session)
    await held.stop()
    assert (await session.command(box, "soon").wait()).status == "interrupted"
    await begins(session, box, "new", "until [ -e go ]; do sleep 0.2; done; echo done", background=True)
    restarted.set()
    before = await session.command(box, "late").wait()
    assert (before.status, before.stdout, late) == ("interrupted", "begun\n", ["late"])
    assert (await stack.status(session, box)).state == "started"
    await exec_ok(session, box, "touch go")
    result = await session.command(box, "new").wait()
    assert (result.status, result.stdout) == ("completed", "done\n")
    await session.end()
