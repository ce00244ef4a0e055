"""A sandbox that is asked to continue as new does so, with everything that it holds, and once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from sandhold.client import Session
from sandhold.contracts.calls import CallEnvelope, CallRequest
from sandhold.contracts.names import (
    RENEW_SIGNAL,
    RESULT_QUERY,
    SANDBOX_WORKFLOW,
    SUBMIT_SIGNAL,
    Activity,
    sandbox_workflow_id,
)
from sandhold.contracts.policy import Policy
from sandhold.contracts.sandboxes import Renewal, SandboxCarried, SandboxStart, SandboxState
from sandhold.contracts.tools import CreateSandboxArguments
from tests.stack import Stack
from tests.workflows.calls import creates, exec_ok
from tests.workflows.commands import command
from tests.workflows.waiting import LONG_ENOUGH_S, eventually


async def ask(stack: Stack, session: Session, box: str, began_before: datetime) -> None:
    """Ask for a renewal and wait until the workflow has taken it up."""
    handle = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))
    await handle.signal(RENEW_SIGNAL, Renewal(began_before=began_before))
    await stack.status(session, box)


async def renewed(stack: Stack, session: Session, box: str) -> None:
    await eventually(lambda: stack.status(session, box), lambda status: status.runs == 2, "a second run")


async def test_a_sandbox_goes_on_in_a_new_run_with_its_commands_and_calls(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    begun = await exec_ok(session, box, "read -r word; echo got $word", background=True, stdin=True)
    once = {"sandbox_id": box, "command": "echo x >> log"}
    assert (await session.call("daytona_exec", once, call_id="once")).ok
    await ask(stack, session, box, datetime.now(UTC) + timedelta(minutes=1))
    await renewed(stack, session, box)
    assert (await session.call("daytona_exec", once, call_id="once")).ok
    assert (await exec_ok(session, box, "cat log", output="normal"))["stdout"] == "x\n"
    await command(session, box, "write", begun["call_id"], input="home\n")
    assert (await command(session, box, "wait", begun["call_id"]))["stdout"] == "got home\n"
    await session.end()
    assert await stack.provider_sandboxes(session) == []


async def test_a_run_that_began_later_is_new_already(stack: Stack) -> None:
    session = await stack.open()
    asked_at = datetime.now(UTC) - timedelta(minutes=1)
    box = await creates(session)
    await ask(stack, session, box, asked_at)
    assert (await exec_ok(session, box, "echo here", output="normal"))["stdout"] == "here\n"
    assert (await stack.status(session, box)).runs == 1
    await session.end()


async def test_a_stopped_sandbox_and_one_that_is_in_use_are_renewed_as_well(stack: Stack) -> None:
    session = await stack.open()
    stopped, used = await creates(session), await creates(session)
    assert (await session.call("daytona_manage_sandbox", {"sandbox_id": stopped, "action": "stop"})).ok
    calls = [asyncio.create_task(exec_ok(session, used, f"sleep 0.2; echo {n} >> log")) for n in range(8)]
    await asyncio.sleep(0.1)
    soon = datetime.now(UTC) + timedelta(minutes=1)
    await asyncio.gather(ask(stack, session, stopped, soon), ask(stack, session, used, soon))
    await asyncio.gather(*calls)
    await renewed(stack, session, stopped)
    await renewed(stack, session, used)
    assert (await stack.status(session, stopped)).state == "stopped"
    assert (await exec_ok(session, used, "wc -l < log", output="normal"))["stdout"].strip() == "8"
    await session.end()


@pytest.mark.parametrize("wrong", [None, {}, {"began_before": "2026-01-01T00:00:00"}, {"began_before": 5}])
async def test_a_wrong_request_changes_nothing(stack: Stack, wrong: object) -> None:
    session = await stack.open()
    box = await creates(session)
    handle = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))
    await handle.signal(RENEW_SIGNAL, wrong)
    assert (await exec_ok(session, box, "echo here", output="normal"))["stdout"] == "here\n"
    assert (await stack.status(session, box)).runs == 1
    await session.end()


async def test_the_call_that_creates_a_sandbox_is_answered_although_a_renewal_was_asked_for_meanwhile(
    stack: Stack,
) -> None:
    session = await stack.open()
    rule = await stack.faults.add(method="POST", route="/api/sandbox", effect="delay", seconds=1.0)
    creating = asyncio.create_task(session.create_sandbox(sandbox_id="box"))
    await eventually(lambda: stack.faults.hits(rule), lambda hits: hits == 1, "that the provider is asked")
    assert (await stack.status(session, "box")).state == "creating"
    await ask(stack, session, "box", datetime.now(UTC) + timedelta(minutes=1))
    await renewed(stack, session, "box")
    async with asyncio.timeout(LONG_ENOUGH_S):
        assert (await creating).sandbox_id == "box"
    assert (await stack.status(session, "box")).calls == []
    await session.end()


async def test_a_call_that_comes_before_a_new_run_has_begun_is_carried_out_once(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    began = await stack.status(session, box)
    assert began.provider_id is not None
    # A run as it is after a continue-as-new, with a call in its first workflow task.
    carried = SandboxCarried(
        state=SandboxState.STARTED,
        provider_id=began.provider_id,
        connection=began.connection,
        organization=began.organization,
        last_used_at=datetime.now(UTC),
    )
    start = SandboxStart(
        session_id=session.session_id,
        sandbox_id="next",
        owner=began.owner,
        generation=1,
        policy=Policy(end_grace_s=0.5),
        created_at=datetime.now(UTC),
        arguments=CreateSandboxArguments(),
        idle_stop_s=300,
        carried=carried,
    )
    request = CallRequest(
        call_id="early",
        tool="daytona_write_file",
        arguments={"sandbox_id": "next", "path": "/home/daytona/note", "content": "x"},
    )
    handle = await stack.temporal.start_workflow(
        SANDBOX_WORKFLOW,
        start,
        id=sandbox_workflow_id(session.session_id, "next"),
        task_queue=stack.settings.task_queue,
        start_signal=SUBMIT_SIGNAL,
        start_signal_args=[request],
    )

    async def answer() -> CallEnvelope | None:
        return await handle.query(RESULT_QUERY, "early", result_type=CallEnvelope | None)

    found = await eventually(answer, lambda told: told is not None and told.status == "done", "its answer")
    assert found is not None
    assert found.ok, found.error
    await handle.cancel()
    await handle.result()
    scheduled = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        async for event in handle.fetch_history_events()
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    assert scheduled.count(Activity.WRITE_FILE) == 1, scheduled
    await session.end()
