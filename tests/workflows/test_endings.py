"""Every way a session can end, and the provider empty after each."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from pydantic import JsonValue
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowInput,
    WorkflowExecutionStatus,
    WorkflowHandle,
)

from sandhold.client import Sandhold, Session, SessionEnded
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


@dataclass(frozen=True)
class Way:
    """A way for a session to end other than by the update `end`."""

    reason: str
    status: WorkflowExecutionStatus
    by: Callable[[WorkflowHandle[Any, Any]], Awaitable[None]] | None = None
    """What an operator does; without it, time does it."""
    policy: dict[str, float] = field(default_factory=dict)
    execution_timeout: timedelta | None = None


COMPLETED = WorkflowExecutionStatus.COMPLETED
WAYS = {
    "cancelled": Way("cancelled", COMPLETED, by=lambda workflow: workflow.cancel()),
    "terminated": Way("terminated", WorkflowExecutionStatus.TERMINATED, by=lambda workflow: workflow.terminate("no")),
    "at its maximum lifetime": Way("maximum lifetime", COMPLETED, policy={"max_lifetime_s": 4.0}),
    "idle": Way("idle", COMPLETED, policy={"session_idle_s": 2.0}),
    "timed out by the server": Way(
        "timed out", WorkflowExecutionStatus.TIMED_OUT, execution_timeout=timedelta(seconds=4)
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_however_a_session_ends_its_running_and_its_stopped_sandbox_are_deleted(stack: Stack, way: Way) -> None:
    session = await (stack.open(**way.policy) if way.execution_timeout is None else opened_with_a_timeout(stack, way))
    await asyncio.gather(creates(session, sandbox_id="running"), creates(session, sandbox_id="stopped"))
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": "stopped", "action": "stop"})
    held = {sandbox.labels["sandhold-sandbox"]: sandbox.state for sandbox in await stack.provider_sandboxes(session)}
    assert held == {"running": "started", "stopped": "stopped"}, "the session ended before it could be seen to end"
    workflow = stack.temporal.get_workflow_handle(session.workflow_id)
    if way.by is not None:
        await way.by(workflow)
    outcome = await session.wait_for_end()
    assert (outcome.reason, (await workflow.describe()).status) == (way.reason, way.status)
    assert {row.sandbox_id: row.outcome for row in outcome.sandboxes} == {"running": "deleted", "stopped": "deleted"}
    assert await stack.provider_sandboxes(session) == []


class _TimeoutOnStart(Interceptor):
    """Adds an execution timeout to every workflow that a client starts."""

    def __init__(self, timeout: timedelta) -> None:
        self._timeout = timeout

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002
        return _Outbound(next, self._timeout)


class _Outbound(OutboundInterceptor):
    def __init__(self, next_one: OutboundInterceptor, timeout: timedelta) -> None:
        super().__init__(next_one)
        self._timeout = timeout

    async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:  # noqa: A002
        return await super().start_workflow(dataclasses.replace(input, execution_timeout=self._timeout))


async def opened_with_a_timeout(stack: Stack, way: Way) -> Session:
    """A session that our client opened, but for the execution timeout: the client itself sets none."""
    assert way.execution_timeout is not None
    config = stack.temporal.config()
    config["interceptors"] = [*config["interceptors"], _TimeoutOnStart(way.execution_timeout)]
    timing_out = dataclasses.replace(stack, sandhold=Sandhold(Client(**config), stack.settings))
    session = await timing_out.open(**way.policy)
    return stack.sandhold.session(session.session_id)


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
    command: JsonValue = {"sandbox_id": box, "command": "echo begun; sleep 60", "output": "normal"}
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
