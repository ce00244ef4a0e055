"""What a careless or hostile sender does to the workflows: nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from sandhold.client import Session
from sandhold.contracts.calls import CallEnvelope, CallRequest
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.names import CALL_UPDATE, STATUS_QUERY, SUBMIT_SIGNAL, sandbox_workflow_id
from tests.stack import Stack
from tests.workflows.calls import call_ok, creates, error_of_call, exec_ok
from tests.workflows.waiting import eventually


def request(call_id: str, box: str, **arguments: Any) -> CallRequest:
    return CallRequest(call_id=call_id, tool="daytona_exec", arguments={"sandbox_id": box, **arguments})


@pytest.mark.parametrize("to", ["session", "sandbox"])
async def test_a_signal_of_nearly_two_mebibytes_is_refused_and_harms_nothing(stack: Stack, to: str) -> None:
    session = await stack.open()
    box = await creates(session)
    workflow_id = session.workflow_id if to == "session" else sandbox_workflow_id(session.session_id, box)
    huge = request("huge", box, command="x" * 2_096_900)
    for _ in range(2):
        await stack.temporal.get_workflow_handle(workflow_id).signal(SUBMIT_SIGNAL, huge)

    async def answer() -> CallEnvelope | None:
        return await session.result("huge")

    refused = await eventually(answer, lambda seen: seen is not None and seen.status == "done", "the refusal")
    assert refused is not None
    assert refused.error is not None
    assert refused.error.code is ErrorCode.TOO_LARGE
    await exec_ok(session, box, "true")
    await session.end()
    assert await stack.provider_sandboxes(session) == []


async def test_large_arguments_of_running_calls_do_not_keep_the_workflow_from_continuing_as_new(stack: Stack) -> None:
    session = await stack.open(end_grace_s=0.0)
    box = await creates(session)
    handle = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))

    async def start(number: int) -> CallEnvelope:
        asked = request(f"large-{number}", box, command=f"sleep 300 # {'x' * 88_000}")
        return await handle.execute_update(CALL_UPDATE, asked, id=asked.call_id, result_type=CallEnvelope)

    answers: list[CallEnvelope] = []
    for batch in range(5):
        answers += await asyncio.gather(*(start(batch * 6 + number) for number in range(6)))
    assert {answer.status for answer in answers} == {"running"}
    runs = (await stack.status(session, box)).runs
    while (await stack.status(session, box)).runs == runs:
        await asyncio.gather(*(exec_ok(session, box, "true") for _ in range(6)))
    assert (await stack.status(session, box)).running_calls == 30
    await session.end()


async def test_more_arguments_than_a_workflow_can_carry_are_refused_for_now(stack: Stack) -> None:
    session = await stack.open(end_grace_s=0.0)
    box = await creates(session)
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"})
    # While the sandbox starts, every call holds its arguments.
    await stack.faults.add(method="POST", route="/api/sandbox/{id}/start", effect="start_delay", seconds=3.0, times=1)
    handle = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))
    for number in range(15):
        await handle.signal(SUBMIT_SIGNAL, request(f"held-{number}", box, command=f"true # {'x' * 88_000}"))

    async def last() -> CallEnvelope | None:
        return await session.result("held-14")

    seen = await eventually(last, lambda seen: seen is not None and seen.status == "done", "the refusal")
    assert seen is not None
    assert seen.error is not None
    assert (seen.error.code, seen.error.retryable) == (ErrorCode.QUOTA_EXCEEDED, True)

    async def first() -> CallEnvelope | None:
        return await session.result("held-0")

    carried_out = await eventually(first, lambda seen: seen is not None and seen.status == "done", "a held call")
    assert carried_out is not None
    assert carried_out.ok
    await session.end()


async def deleting(stack: Stack, session: Session, box: str) -> asyncio.Task[dict[str, Any]]:
    """A deletion by a call, under way at the provider."""
    await stack.faults.add(method="DELETE", route="/api/sandbox/{id}", effect="delete_hangs", seconds=3.0, times=1)
    delete = {"sandbox_id": box, "action": "delete"}
    first = asyncio.create_task(call_ok(session, "daytona_manage_sandbox", delete))
    await eventually(lambda: stack.status(session, box), lambda seen: seen.state == "deleting", "the deletion")
    return first


async def test_a_second_delete_waits_for_the_first_and_other_calls_hear_that_only_this_sandbox_is_gone(
    stack: Stack,
) -> None:
    session = await stack.open()
    box = await creates(session)
    first = await deleting(stack, session, box)
    events = await history_length(stack, session, box)
    for _ in range(10):
        error = await error_of_call(session, "daytona_exec", {"sandbox_id": box, "command": "true"})
        assert error.code is ErrorCode.SANDBOX_NOT_FOUND
    assert await history_length(stack, session, box) == events, "refusals cost history"
    second = await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "delete"})
    assert second == await first == {"sandbox_id": box, "action": "delete", "state": "deleted"}
    await session.end()


async def history_length(stack: Stack, session: Session, box: str) -> int:
    handle = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))
    return (await handle.describe()).history_length


async def test_calls_that_are_for_another_workflow_cost_the_session_no_history(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    handle = stack.temporal.get_workflow_handle(session.workflow_id)
    events = (await handle.describe()).history_length
    for number, target in enumerate([box, "sandbox-x", "sandbox-1x"]):
        asked = request(f"astray-{number}", target, command="true")
        with pytest.raises(WorkflowUpdateFailedError) as refusal:
            await handle.execute_update(CALL_UPDATE, asked, id=asked.call_id, result_type=CallEnvelope)
        assert isinstance(refusal.value.cause, ApplicationError)
        code, hint = refusal.value.cause.type, refusal.value.cause.details[0]["hint"]
        assert code == (ErrorCode.WRONG_TARGET if target == box else ErrorCode.SANDBOX_NOT_FOUND)
        assert box in hint
    assert (await handle.describe()).history_length == events
    await session.end()


async def test_start_of_a_started_sandbox_holds_up_no_other_call(stack: Stack) -> None:
    session = await stack.open(lifecycle_timeout_s=3.0)
    box = await creates(session)
    await stack.faults.add(method="GET", route="/api/sandbox/{id}", effect="status", status=503)
    await stack.faults.add(method="POST", route="/api/sandbox/{id}/start", effect="status", status=503)
    starting = asyncio.create_task(session.call("daytona_manage_sandbox", {"sandbox_id": box, "action": "start"}))
    await asyncio.sleep(0.3)
    assert (await stack.status(session, box)).state == "started"
    await exec_ok(session, box, "true")
    await starting
    await stack.faults.clear()
    await session.end()


async def test_a_sandbox_deleted_behind_our_back_while_a_command_is_followed_is_lost(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    running = asyncio.create_task(session.call("daytona_exec", {"sandbox_id": box, "command": "sleep 60"}))
    await asyncio.sleep(9.5)
    [held] = await stack.provider_sandboxes(session)
    await held.delete()
    envelope = await running
    assert envelope.error is not None
    assert envelope.error.code is ErrorCode.SANDBOX_LOST
    await session.end()


async def test_a_submitted_call_whose_sandbox_has_ended_is_not_running_for_ever(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    handle = stack.temporal.get_workflow_handle(session.workflow_id)
    await handle.signal(SUBMIT_SIGNAL, request("passed-on", box, command="true"))

    async def answer() -> CallEnvelope | None:
        return await session.result("passed-on")

    await eventually(answer, lambda seen: seen is not None and seen.status == "done", "the result")
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "delete"})

    async def told_by_the_session() -> CallEnvelope:
        return await handle.query("result", "passed-on", result_type=CallEnvelope)

    told = await eventually(told_by_the_session, lambda seen: seen.status == "done", "the session's word")
    assert told.error is not None
    assert told.error.workflow_id == sandbox_workflow_id(session.session_id, box)
    kept = await session.result("passed-on")
    assert kept is not None
    assert kept.ok
    status = await handle.query(STATUS_QUERY)
    assert [book["ended"] for book in status["sandboxes"]] == ["deleted"]
    await session.end()
