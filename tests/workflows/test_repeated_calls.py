"""Calls of which the ledger knows nothing any more while their commands are still on record."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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


async def refused_calls(stack: Stack, session: Session, box: str, numbers: Sequence[int]) -> None:
    """Calls that are refused at once, and so end in the moment in which they begin."""
    for first in range(0, len(numbers), 50):
        share = numbers[first : first + 50]
        await asyncio.gather(*(ask(stack, session, box, f"refused-{number}") for number in share))
    await answer(session, f"refused-{numbers[-1]}")  # A query is answered behind all signals that were taken before it.


async def renew(stack: Stack, session: Session, box: str, known: str) -> None:
    """Repeat a call, which leaves the ledger as it is, until the workflow has continued as new."""
    runs = (await stack.status(session, box)).runs
    while (await stack.status(session, box)).runs == runs:
        await asyncio.gather(*(ask(stack, session, box, known) for _ in range(50)))


async def forget_calls(stack: Stack, session: Session, box: str) -> None:
    """Fill the ledger with other calls, so that it forgets all that have ended."""
    await refused_calls(stack, session, box, range(LEDGER_LIMIT))
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


async def test_a_call_that_took_long_is_forgotten_only_after_as_many_have_ended_since_as_any_other(
    stack: Stack,
) -> None:
    """Across a continue-as-new as well."""
    session = await stack.open()
    box = await creates(session)
    handle = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))

    async def exit_code() -> Any:
        result = (await answer(session, "long")).result
        assert isinstance(result, dict)
        return result["exit_code"]

    await ask(stack, session, box, "long", command="until [ -e go ]; do sleep 0.1; done; exit 7")
    await refused_calls(stack, session, box, range(LEDGER_LIMIT))
    await session.write_file(box, "go", "")
    assert await exit_code() == 7
    since = range(LEDGER_LIMIT, 2 * LEDGER_LIMIT)
    await refused_calls(stack, session, box, since[:1])
    assert await exit_code() == 7, "the next call does not make it forgotten"
    await renew(stack, session, box, f"refused-{since[0]}")
    # The write may have ended before the command or after it.
    await refused_calls(stack, session, box, since[1:-2])
    assert await exit_code() == 7
    await refused_calls(stack, session, box, since[-2:])
    assert await handle.query("result", "long") is None
    await session.end()


async def test_a_call_of_an_earlier_generation_is_not_carried_out_in_a_later_one(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    handle = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))
    generation = (await stack.status(session, box)).generation
    for call_id, taken_by in (("earlier", generation - 1), ("this", generation)):
        touch = {"sandbox_id": box, "command": f"touch {call_id}"}
        asked = CallRequest(call_id=call_id, tool="daytona_exec", arguments=touch, generation=taken_by)
        await handle.signal(SUBMIT_SIGNAL, asked)
    assert (await answer(session, "this")).ok
    refused = (await answer(session, "earlier")).error
    assert refused is not None
    assert (refused.code, refused.ambiguous) == (ErrorCode.INTERRUPTED, True)
    assert (await exec_ok(session, box, "ls", output="normal"))["stdout"] == "this\n"
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
