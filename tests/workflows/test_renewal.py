"""A sandbox that is asked to continue as new does so, with everything that it holds, and once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from sandhold.client import Session
from sandhold.contracts.names import RENEW_SIGNAL, sandbox_workflow_id
from sandhold.contracts.sandboxes import Renewal
from tests.stack import Stack
from tests.workflows.calls import creates, exec_ok
from tests.workflows.commands import command
from tests.workflows.waiting import eventually


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
