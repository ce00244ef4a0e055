"""Durable timers: what is idle is stopped, what is old is archived, what runs is left alone."""

from __future__ import annotations

import asyncio

from tests.stack import Stack
from tests.workflows.calls import call_ok, creates, exec_ok
from tests.workflows.waiting import eventually


async def test_an_idle_sandbox_is_stopped_and_the_next_call_finds_its_files(stack: Stack) -> None:
    session = await stack.open(idle_stop_s=1.0)
    box = await creates(session)
    await exec_ok(session, box, "echo kept > file")
    status = await stack.status(session, box)
    assert status.stops_at is not None
    assert status.last_used_at is not None
    assert (status.stops_at - status.last_used_at).total_seconds() == 1.0
    await eventually(lambda: stack.status(session, box), lambda seen: seen.state == "stopped", "the idle stop")
    [held] = await stack.provider_sandboxes(session)
    assert str(held.state.value) == "stopped"
    assert (await exec_ok(session, box, "cat file"))["stdout"].strip() == "kept"
    await eventually(lambda: stack.status(session, box), lambda seen: seen.state == "stopped", "the next idle stop")
    await session.end()


async def test_a_running_command_holds_off_the_idle_timer(stack: Stack) -> None:
    session = await stack.open(idle_stop_s=1.0)
    box = await creates(session)
    ran = await exec_ok(session, box, "sleep 11; echo done", output="normal")
    assert (ran["status"], ran["stdout"].strip()) == ("completed", "done")
    assert (
        await stack.faults.requests(
            method="POST", route="/api/sandbox/{id}/stop", sandbox=await _name(stack, session, box)
        )
        == []
    )
    await session.end()


async def test_uses_move_the_deadline_but_start_no_timers(stack: Stack) -> None:
    session = await stack.open(idle_stop_s=120.0)
    box = await creates(session)
    for _ in range(5):
        await exec_ok(session, box, "true")
    handle = stack.temporal.get_workflow_handle((await stack.status(session, box)).workflow_id)
    timers = [
        event async for event in handle.fetch_history_events() if event.HasField("timer_started_event_attributes")
    ]
    assert len(timers) <= 2
    await session.end()


async def test_a_stopped_sandbox_is_archived_when_the_policy_says_so_and_can_be_used_again(stack: Stack) -> None:
    session = await stack.open(idle_stop_s=0.5, archive_after_s=1.0)
    box = await creates(session)
    await exec_ok(session, box, "echo kept > file")
    await eventually(lambda: stack.status(session, box), lambda seen: seen.state == "archived", "the archiving")
    assert (await exec_ok(session, box, "cat file"))["stdout"].strip() == "kept"
    await session.end()


async def test_a_failed_idle_stop_is_tried_again(stack: Stack) -> None:
    session = await stack.open(idle_stop_s=0.5, lifecycle_timeout_s=2.0)
    box = await creates(session)
    rule = await stack.faults.add(method="POST", route="/api/sandbox/{id}/stop", effect="status", status=503)
    await eventually(
        lambda: stack.status(session, box), lambda seen: seen.error is not None, "the failure of the idle stop"
    )
    assert (await stack.status(session, box)).state == "started"
    await stack.faults.remove(rule)
    await eventually(lambda: stack.status(session, box), lambda seen: seen.state == "stopped", "the next idle stop")
    await session.end()


async def test_a_call_that_meets_the_idle_stop_waits_and_starts_the_sandbox(stack: Stack) -> None:
    session = await stack.open(idle_stop_s=0.5)
    box = await creates(session)
    await stack.faults.add(method="POST", route="/api/sandbox/{id}/stop", effect="delay", seconds=1.0)
    await eventually(lambda: stack.status(session, box), lambda seen: seen.state == "stopping", "the idle stop")
    ran = await exec_ok(session, box, "echo here", output="normal")
    assert ran["stdout"].strip() == "here"
    await session.end()


async def test_the_auto_stop_of_the_create_call_overrides_the_policy(stack: Stack) -> None:
    session = await stack.open(idle_stop_s=0.5)
    box = await creates(session, auto_stop_minutes=7)
    status = await stack.status(session, box)
    assert status.stops_at is not None
    assert status.last_used_at is not None
    assert (status.stops_at - status.last_used_at).total_seconds() == 420.0
    await session.end()


async def test_the_providers_own_timers_are_longer_backstops(stack: Stack) -> None:
    session = await stack.open(idle_stop_s=300.0, max_lifetime_s=3600.0)
    await creates(session)
    [held] = await stack.provider_sandboxes(session)
    assert held.auto_stop_interval == 15
    assert held.auto_delete_interval == -1
    await session.end()


async def test_manage_and_exec_at_once_end_in_a_state_that_was_asked_for(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    actions = ["stop", "start", "stop", "archive", "start", "stop"]
    managed = asyncio.gather(
        *(call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": action}) for action in actions)
    )
    told = await asyncio.gather(*(exec_ok(session, box, f"echo {number} >> log") for number in range(6)))
    await managed
    assert {result["status"] for result in told} <= {"completed", "cancelled"}, "a stop cancels what runs"
    completed = {str(number) for number, result in enumerate(told) if result["status"] == "completed"}
    ran = (await exec_ok(session, box, "sort log", output="normal"))["stdout"].split()
    assert len(ran) == len(set(ran)), "none ran twice"
    assert completed <= set(ran), "what is told to be completed was"
    await session.end()


async def _name(stack: Stack, session: object, box: str) -> str:
    status = await stack.status(session, box)  # type: ignore[arg-type]
    assert status.provider_name is not None
    return status.provider_name
