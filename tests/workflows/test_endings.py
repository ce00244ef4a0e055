"""Every way a session can end, and the provider empty after each."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.client import WorkflowExecutionStatus

from sandhold.client import SessionEnded
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.names import sandbox_workflow_id, session_workflow_id
from sandhold.contracts.sessions import SessionOutcome
from tests.stack import Stack
from tests.workflows.calls import call_ok, creates, error_of_call, exec_ok
from tests.workflows.waiting import eventually


async def test_end_waits_for_confirmed_deletion_and_says_what_became_of_each_sandbox(stack: Stack) -> None:
    session = await stack.open()
    await creates(session, sandbox_id="one")
    await creates(session, sandbox_id="two")
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": "two", "action": "stop"})
    outcome = await session.end()
    assert outcome.model_dump() == {
        "session_id": session.session_id,
        "state": "ended",
        "reason": "ended",
        "sandboxes": [{"sandbox_id": "one", "outcome": "deleted"}, {"sandbox_id": "two", "outcome": "deleted"}],
    }
    assert await stack.provider_sandboxes(session) == []
    with pytest.raises(SessionEnded):
        await stack.sandhold.open_session(session.session_id, owner="tests")
    error = await error_of_call(session, "daytona_exec", {"sandbox_id": "one", "command": "true"})
    assert error.code is ErrorCode.SESSION_ENDED


async def test_a_cancelled_session_deletes_its_sandboxes(stack: Stack) -> None:
    session = await stack.open()
    await creates(session)
    handle = stack.temporal.get_workflow_handle(session_workflow_id(session.session_id), result_type=SessionOutcome)
    await handle.cancel()
    assert (await handle.result()).reason == "cancelled"
    assert await stack.provider_sandboxes(session) == []


async def test_a_terminated_session_leaves_its_sandboxes_to_delete_themselves(stack: Stack) -> None:
    session = await stack.open()
    await creates(session, sandbox_id="box")
    await stack.temporal.get_workflow_handle(session_workflow_id(session.session_id)).terminate("by an operator")
    child = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, "box"))
    assert (await child.result())["outcome"] == "deleted"
    assert await stack.provider_sandboxes(session) == []


async def test_a_session_that_the_server_times_out_leaves_nothing(stack: Stack) -> None:
    # The client gives the session's workflow a time-out beyond its maximum lifetime; here it comes first.
    session = await stack.open(max_lifetime_s=3.0)
    await creates(session, sandbox_id="box")
    outcome = await stack.temporal.get_workflow_handle(
        session_workflow_id(session.session_id), result_type=SessionOutcome
    ).result()
    assert outcome.reason == "maximum lifetime"
    assert await stack.provider_sandboxes(session) == []


async def test_a_session_that_nobody_uses_ends_by_itself(stack: Stack) -> None:
    session = await stack.open(session_idle_s=1.5)
    box = await creates(session)
    await asyncio.sleep(1.0)
    await exec_ok(session, box, "true")  # The session does not see this call; its sandbox does.
    await asyncio.sleep(1.0)
    assert (await session.status()).state == "open"
    handle = stack.temporal.get_workflow_handle(session_workflow_id(session.session_id), result_type=SessionOutcome)
    assert (await handle.result()).reason == "idle"
    assert await stack.provider_sandboxes(session) == []


async def test_a_sandbox_workflow_that_was_terminated_is_deleted_by_a_new_one(stack: Stack) -> None:
    session = await stack.open()
    await creates(session, sandbox_id="box")
    child = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, "box"))
    await child.terminate("by an operator")

    async def ended() -> str | None:
        return (await session.status()).sandboxes[0].ended

    await eventually(ended, lambda outcome: outcome == "deleted", "the deletion in the place of the terminated owner")
    assert await stack.provider_sandboxes(session) == []
    await session.end()


async def test_a_session_ended_while_a_sandbox_is_being_created_leaves_none(stack: Stack) -> None:
    session = await stack.open()
    await stack.faults.add(method="POST", route="/api/sandbox", effect="delay", seconds=1.0)
    creating = asyncio.create_task(session.call("daytona_create_sandbox", {"sandbox_id": "late"}))
    await eventually(session.status, lambda status: len(status.sandboxes) == 1, "the sandbox on the books")
    outcome = await session.end()
    assert [row.sandbox_id for row in outcome.sandboxes] == ["late"]
    await creating
    assert await stack.provider_sandboxes(session) == []


async def test_a_running_command_gets_its_grace_and_then_is_cancelled_at_the_end(stack: Stack) -> None:
    session = await stack.open(end_grace_s=1.0)
    box = await creates(session)
    command = {"sandbox_id": box, "command": "echo begun; sleep 60", "output": "normal"}
    running = asyncio.create_task(session.call("daytona_exec", command, call_id="long"))
    await eventually(
        lambda: stack.status(session, box), lambda status: status.calls == ["long"], "the command under way"
    )
    ending = asyncio.create_task(session.end())
    await eventually(lambda: stack.status(session, box), lambda status: status.ending is not None, "the ending")
    refused = await error_of_call(session, "daytona_exec", {"sandbox_id": box, "command": "true"})
    assert refused.code is ErrorCode.SESSION_ENDING
    envelope = await running
    told = envelope.result["status"] if isinstance(envelope.result, dict) else envelope.error and envelope.error.code
    assert told == "cancelled"
    await ending
    assert await stack.provider_sandboxes(session) == []


async def test_ending_twice_and_ending_an_empty_session_are_fine(stack: Stack) -> None:
    session = await stack.open()
    first, second = await asyncio.gather(session.end(), session.end())
    assert first == second
    assert first.sandboxes == []
    description = await stack.temporal.get_workflow_handle(session_workflow_id(session.session_id)).describe()
    assert description.status is WorkflowExecutionStatus.COMPLETED
