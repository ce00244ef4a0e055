"""Many calls on one sandbox, over several continue-as-news: no error, nothing twice."""

from __future__ import annotations

import asyncio

from sandhold.client import Session
from sandhold.contracts.calls import CallRequest
from sandhold.contracts.names import SUBMIT_SIGNAL, sandbox_workflow_id, session_workflow_id
from tests.stack import Stack
from tests.workflows.calls import creates, exec_ok
from tests.workflows.waiting import eventually

CALLERS = 6
CALLS_EACH = 250


async def test_1500_calls_from_6_callers_have_no_error_and_no_duplicate(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)

    async def caller(number: int) -> None:
        for call in range(CALLS_EACH):
            envelope = await session.call(
                "daytona_exec",
                {"sandbox_id": box, "command": f"echo {number}.{call} >> log; echo {call}", "output": "concise"},
                call_id=f"{number}.{call}",
            )
            assert envelope.error is None, envelope.error
            assert isinstance(envelope.result, dict)
            assert (envelope.result["exit_code"], envelope.result["stdout"].strip()) == (0, str(call))

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    assert (await stack.status(session, box)).runs >= 4
    counted = await exec_ok(session, box, "wc -l < log; sort -u log | wc -l", output="normal")
    assert counted["stdout"].split() == [str(CALLERS * CALLS_EACH)] * 2
    again = await session.call(
        "daytona_exec",
        {"sandbox_id": box, "command": "echo 5.249 >> log; echo 249", "output": "concise"},
        call_id="5.249",
    )
    assert again.ok
    assert (await exec_ok(session, box, "wc -l < log", output="normal"))["stdout"].strip() == str(CALLERS * CALLS_EACH)
    await session.end()
    assert await stack.provider_sandboxes(session) == []


async def renewed(stack: Stack, session: Session) -> str:
    """The id of a sandbox whose workflow has continued as new at least once."""
    box = await creates(session)
    while (await stack.status(session, box)).runs < 2:
        await asyncio.gather(*(exec_ok(session, box, "true") for _ in range(6)))
    return box


async def test_what_a_session_sends_reaches_a_sandbox_that_has_continued_as_new(stack: Stack) -> None:
    session = await stack.open()
    box = await renewed(stack, session)
    owner = stack.temporal.get_workflow_handle(session_workflow_id(session.session_id))
    request = CallRequest(
        call_id="late", tool="daytona_exec", arguments={"sandbox_id": box, "command": "true"}, sandbox_id=None
    )
    await owner.signal(SUBMIT_SIGNAL, request)

    async def answered() -> bool:
        envelope = await session.result("late")
        return envelope is not None and envelope.ok is True

    await eventually(answered, bool, "the submitted call's result")
    await owner.cancel()
    assert (await owner.result())["reason"] == "cancelled"
    assert await stack.provider_sandboxes(session) == []


async def test_a_terminated_session_reaches_a_sandbox_that_has_continued_as_new(stack: Stack) -> None:
    session = await stack.open()
    box = await renewed(stack, session)
    await stack.temporal.get_workflow_handle(session_workflow_id(session.session_id)).terminate("by an operator")
    child = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))
    assert (await child.result())["outcome"] == "deleted"
    assert await stack.provider_sandboxes(session) == []
