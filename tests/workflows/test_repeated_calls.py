"""Calls of which the ledger knows nothing any more while their commands are still on record."""

from __future__ import annotations

import asyncio
from typing import Any

from sandhold.client import Session
from sandhold.contracts.calls import CallEnvelope, CallRequest
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.names import SUBMIT_SIGNAL, sandbox_workflow_id
from tests.stack import Stack
from tests.workflows.calls import creates, exec_ok
from tests.workflows.commands import begins, command
from tests.workflows.waiting import eventually
from workflows.ledger import LEDGER_LIMIT


async def ask(stack: Stack, session: Session, box: str, call_id: str, **arguments: Any) -> None:
    """A call that goes by a signal: the server itself would answer a repeated update."""
    handle = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))
    asked = CallRequest(call_id=call_id, tool="daytona_exec", arguments={"sandbox_id": box, **arguments})
    await handle.signal(SUBMIT_SIGNAL, asked)


async def answer(session: Session, call_id: str) -> CallEnvelope:
    async def look() -> CallEnvelope | None:
        return await session.result(call_id)

    seen = await eventually(look, lambda seen: seen is not None and seen.status == "done", f"the answer to {call_id}")
    assert seen is not None
    return seen


async def forget_calls(stack: Stack, session: Session, box: str) -> None:
    """Fill the ledger with calls that are refused at once, so that it forgets all others that have ended."""
    for first in range(0, LEDGER_LIMIT, 50):
        numbers = range(first, first + 50)
        await asyncio.gather(*(ask(stack, session, box, f"refused-{number}") for number in numbers))
    await answer(session, f"refused-{LEDGER_LIMIT - 1}")
    handle = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))
    for call_id in ("ended", "running"):
        assert await handle.query("result", call_id) is None


async def test_a_call_whose_command_is_on_record_is_answered_from_there_and_runs_nothing(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    arguments = {"command": "echo run >> ran; echo out; exit 3"}
    first = await begins(session, box, "ended", arguments["command"])
    lasting = {"command": "echo run >> ran; sleep 1000", "background": True}
    await begins(session, box, "running", lasting["command"], background=True)
    await forget_calls(stack, session, box)

    await ask(stack, session, box, "ended", **arguments)
    again = await answer(session, "ended")
    assert again.result == first.result
    await ask(stack, session, box, "running", **lasting)
    followed = await answer(session, "running")
    assert isinstance(followed.result, dict)
    assert followed.result["status"] == "running"
    assert (await exec_ok(session, box, "cat ran", output="normal"))["stdout"] == "run\nrun\n"
    assert (await command(session, box, "cancel", "running"))["status"] == "cancelled"
    await session.end()


async def test_another_call_under_the_id_of_a_command_that_is_on_record_is_a_conflict(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await begins(session, box, "ended", "true")
    await begins(session, box, "running", "sleep 1000", background=True)
    await forget_calls(stack, session, box)
    for call_id in ("ended", "running"):
        await ask(stack, session, box, call_id, command="touch ran")
        conflict = await answer(session, call_id)
        assert conflict.error is not None
        assert conflict.error.code is ErrorCode.CALL_ID_CONFLICT
    assert (await exec_ok(session, box, "ls ran || echo none", output="normal"))["stdout"] == "none\n"
    await session.end()
