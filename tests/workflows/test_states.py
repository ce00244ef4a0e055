"""The states that a sandbox passes through, as its workflow's history has them for operators."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from pydantic import JsonValue

from sandhold.client import Session
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.names import STATE_ATTRIBUTE, sandbox_workflow_id
from tests.stack import Stack
from tests.workflows.calls import call_ok, creates, error_of_call, exec_ok
from tests.workflows.waiting import eventually

CREATE = {"method": "POST", "route": "/api/sandbox"}
START = {"method": "POST", "route": "/api/sandbox/{id}/start"}
STOP = {"method": "POST", "route": "/api/sandbox/{id}/stop"}

CREATED = ["creating", "started"]
STOPPED = [*CREATED, "stopping", "stopped"]
RESTARTED = [*STOPPED, "starting", "started"]
ARCHIVED = [*CREATED, "stopping", "archived"]
GONE = ["deleting", "deleted"]


async def states_of(stack: Stack, session: Session) -> list[str]:
    """Every state that the session's sandbox `box` has had, in order."""
    states = []
    workflow = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, "box"))
    async for event in workflow.fetch_history_events():
        for attributes in (
            event.workflow_execution_started_event_attributes.search_attributes,
            event.upsert_workflow_search_attributes_event_attributes.search_attributes,
        ):
            if STATE_ATTRIBUTE in attributes.indexed_fields:
                state = json.loads(attributes.indexed_fields[STATE_ATTRIBUTE].data)
                states.append(state if isinstance(state, str) else state[0])
    return states


async def manage(session: Session, action: str) -> str:
    """The state after an action that has to succeed."""
    return str((await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": "box", "action": action}))["state"])


async def error_of(session: Session, action: str) -> ErrorCode:
    return (await error_of_call(session, "daytona_manage_sandbox", {"sandbox_id": "box", "action": action})).code


async def until_state(stack: Stack, session: Session, state: str) -> None:
    await eventually(lambda: stack.status(session, "box"), lambda seen: seen.state == state, f"the state {state}")


async def deleted_behind_our_back(stack: Stack, session: Session) -> None:
    [held] = await stack.provider_sandboxes(session)
    await held.delete(wait=True)


async def ended(session: Session) -> str:
    """How the sandbox ended, by the session's books at its end."""
    [row] = (await session.end()).sandboxes
    return row.outcome


async def test_a_whole_life(stack: Stack) -> None:
    session = await stack.open()
    await creates(session, sandbox_id="box")
    await exec_ok(session, "box", "echo kept > file")
    for action in ("stop", "start", "archive", "start", "stop", "archive"):
        await manage(session, action)
    assert (await exec_ok(session, "box", "cat file", output="normal"))["stdout"] == "kept\n"
    assert await ended(session) == "deleted"
    archived_and_back = ["stopping", "archived", "starting", "started"]
    assert await states_of(stack, session) == [
        *RESTARTED,
        *archived_and_back,
        *["stopping", "stopped"],
        *archived_and_back,
        *GONE,
    ]


async def in_creating(stack: Stack, session: Session) -> None:
    await stack.faults.add(**CREATE, effect="delay", seconds=1.0, times=1)
    await session.call("daytona_create_sandbox", {"sandbox_id": "box"}, wait=False)


async def in_started(stack: Stack, session: Session) -> None:
    await creates(session, sandbox_id="box")


async def in_stopping(stack: Stack, session: Session) -> None:
    await in_started(stack, session)
    await stack.faults.add(**STOP, effect="delay", seconds=1.0, times=1)
    await session.submit("daytona_manage_sandbox", {"sandbox_id": "box", "action": "stop"})


async def in_stopped(stack: Stack, session: Session) -> None:
    await in_started(stack, session)
    await manage(session, "stop")


async def in_starting(stack: Stack, session: Session) -> None:
    await in_stopped(stack, session)
    await stack.faults.add(**START, effect="start_delay", seconds=1.0, times=1)
    await session.submit("daytona_manage_sandbox", {"sandbox_id": "box", "action": "start"})


async def in_archived(stack: Stack, session: Session) -> None:
    await in_started(stack, session)
    await manage(session, "archive")


async def in_failed(stack: Stack, session: Session) -> None:
    await in_stopped(stack, session)
    await stack.faults.add(**START, effect="start_error", reason="disk gone", times=1)
    assert await error_of(session, "start") is ErrorCode.SANDBOX_FAILED


Reach = Callable[[Stack, Session], Coroutine[Any, Any, None]]

REACHED: dict[str, tuple[Reach, list[str]]] = {
    "creating": (in_creating, CREATED),
    "started": (in_started, CREATED),
    "stopping": (in_stopping, STOPPED),
    "stopped": (in_stopped, STOPPED),
    "starting": (in_starting, RESTARTED),
    "archived": (in_archived, ARCHIVED),
    "failed": (in_failed, [*STOPPED, "starting", "failed"]),
}


@pytest.mark.parametrize("state", REACHED)
async def test_a_sandbox_is_deleted_from_every_state_once_what_is_under_way_has_ended(stack: Stack, state: str) -> None:
    reach, before = REACHED[state]
    session = await stack.open()
    await reach(stack, session)
    await until_state(stack, session, state)
    assert await manage(session, "delete") == "deleted"
    assert await stack.provider_sandboxes(session) == []
    assert await states_of(stack, session) == [*before, *GONE]
    assert await ended(session) == "deleted"


@pytest.mark.parametrize(
    ("state", "action", "states"),
    [
        ("creating", "stop", STOPPED),
        ("stopping", "start", RESTARTED),
        ("starting", "archive", [*RESTARTED, "stopping", "archived"]),
    ],
)
async def test_an_action_that_meets_a_change_waits_for_it(
    stack: Stack, state: str, action: str, states: list[str]
) -> None:
    session = await stack.open()
    await REACHED[state][0](stack, session)
    await until_state(stack, session, state)
    assert await manage(session, action) == states[-1]
    assert await states_of(stack, session) == states
    [held] = await stack.provider_sandboxes(session)
    assert held.state == states[-1]
    assert await ended(session) == "deleted"


async def test_a_creation_that_fails(stack: Stack) -> None:
    session = await stack.open()
    await stack.faults.add(**CREATE, effect="start_error", reason="no runner", times=1)
    error = await error_of_call(session, "daytona_create_sandbox", {"sandbox_id": "box"})
    assert error.code is ErrorCode.SANDBOX_FAILED
    assert await ended(session) == "failed"
    assert await states_of(stack, session) == ["creating", "failed", *GONE]
    assert await stack.provider_sandboxes(session) == []


async def test_a_failed_sandbox_stays_failed_whatever_is_asked_of_it(stack: Stack) -> None:
    session = await stack.open()
    await in_failed(stack, session)
    for action in ("start", "stop", "archive"):
        assert await error_of(session, action) is ErrorCode.SANDBOX_FAILED
        assert (await stack.status(session, "box")).state == "failed"
    assert len(await stack.provider_sandboxes(session)) == 1
    assert await ended(session) == "deleted"
    assert await stack.provider_sandboxes(session) == []


async def test_a_start_that_takes_too_long_leaves_it_stopped_and_can_be_asked_for_again(stack: Stack) -> None:
    session = await stack.open(lifecycle_timeout_s=1.5)
    await in_stopped(stack, session)
    rule = await stack.faults.add(**START, effect="start_delay", seconds=2.5, times=1)
    assert await error_of(session, "start") is ErrorCode.TIMEOUT
    assert (await stack.status(session, "box")).state == "stopped"
    assert await stack.faults.hits(rule) == 1

    async def started_after_all() -> bool:
        return bool((await session.call("daytona_manage_sandbox", {"sandbox_id": "box", "action": "start"})).ok)

    await eventually(started_after_all, bool, "the start")
    assert await ended(session) == "deleted"
    assert await stack.provider_sandboxes(session) == []


@pytest.mark.parametrize(("action", "final"), [("stop", "stopped"), ("archive", "archived")])
async def test_a_command_that_runs_when_its_sandbox_is_stopped_is_cancelled_and_told_so(
    stack: Stack, action: str, final: str
) -> None:
    session = await stack.open()
    await in_started(stack, session)
    command: JsonValue = {"sandbox_id": "box", "command": "echo begun > file; sleep 60"}
    running = asyncio.create_task(session.call("daytona_exec", command))
    await eventually(lambda: _has(session, "file"), bool, "the command's beginning")
    assert await manage(session, action) == final
    envelope = await running
    assert isinstance(envelope.result, dict), envelope.error
    assert envelope.result["status"] == "cancelled"
    assert await states_of(stack, session) == [*CREATED, "stopping", final]
    assert (await exec_ok(session, "box", "cat file", output="normal"))["stdout"] == "begun\n"
    assert await ended(session) == "deleted"


LOST = {
    "by an idle stop": ("started", {"idle_stop_s": 1.0}, None, [*CREATED, "stopping", "lost"]),
    "by the archiving of a stopped one": (
        "stopped",
        {"archive_after_s": 1.0},
        None,
        [*STOPPED, "stopping", "lost"],
    ),
    "by a stop": ("started", {}, "stop", [*CREATED, "stopping", "lost"]),
    "by the start of an archived one": ("archived", {}, "start", [*ARCHIVED, "starting", "lost"]),
}


@pytest.mark.parametrize(("state", "policy", "action", "states"), LOST.values(), ids=LOST)
async def test_a_loss_is_found(
    stack: Stack, state: str, policy: dict[str, float], action: str | None, states: list[str]
) -> None:
    session = await stack.open(**policy)
    await REACHED[state][0](stack, session)
    await deleted_behind_our_back(stack, session)
    if action is not None:
        assert await error_of(session, action) is ErrorCode.SANDBOX_LOST
    await until_state(stack, session, "lost")
    assert await states_of(stack, session) == states
    error = await error_of_call(session, "daytona_exec", {"sandbox_id": "box", "command": "true"})
    assert error.code is ErrorCode.SANDBOX_LOST
    assert await ended(session) == "lost"
    assert await stack.provider_sandboxes(session) == []


async def test_a_stop_by_somebody_else_is_noticed_and_undone_for_the_next_call(stack: Stack) -> None:
    session = await stack.open()
    await in_started(stack, session)
    await exec_ok(session, "box", "echo kept > file")
    [held] = await stack.provider_sandboxes(session)
    await held.stop()
    assert (await exec_ok(session, "box", "cat file", output="normal"))["stdout"] == "kept\n"
    assert await states_of(stack, session) == [*CREATED, "stopped", "starting", "started"]
    assert await ended(session) == "deleted"


async def _has(session: Session, path: str) -> bool:
    return bool((await session.call("daytona_read_file", {"sandbox_id": "box", "path": path})).ok)
