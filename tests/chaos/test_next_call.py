"""A worker that is killed in the middle of a call does not make the next call wait for it."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from temporalio.api.enums.v1 import EventType, TimeoutType
from temporalio.api.history.v1 import HistoryEvent

from sandhold.client import Session
from sandhold.contracts.names import Activity, sandbox_workflow_id
from tests.chaos.breakable import BreakableStack
from tests.stack import Stack
from tests.workflows.waiting import eventually

IN_FIRST_REQUEST = ("first-early", "first-late")
FOLLOWED = ("followed-early", "followed-late")
BOXES = (*IN_FIRST_REQUEST, *FOLLOWED)
"""What each runs when the worker is killed."""
SENT_WHILE_THERE_IS_NO_WORKER = ("first-early", "followed-early")
SENT_TO_THE_NEW_WORKER = ("first-late", "followed-late")
EXECUTE = "/toolbox/{sandbox_id}/process/execute"


async def test_the_next_call_after_a_worker_was_killed_in_the_middle_of_one_is_carried_out_at_once(
    breakable: BreakableStack,
) -> None:
    stack = breakable.stack
    session = await stack.open()
    await asyncio.gather(*(session.create_sandbox(sandbox_id=box) for box in BOXES))
    await stack.faults.forget_requests()
    in_first_request = [asyncio.create_task(session.exec(box, "sleep 4; echo whole")) for box in IN_FIRST_REQUEST]
    followed = [await session.start(box, "sleep 6; echo whole") for box in FOLLOWED]
    for box in FOLLOWED:
        await eventually(partial(events, stack, session, box), is_followed, f"the follower of {box}")
    # One more for each that is followed: the follower's own.
    requests = len(BOXES) + len(FOLLOWED)
    await eventually(lambda: stack.faults.requests(route=EXECUTE), lambda seen: len(seen) >= requests, "all at work")

    await breakable.worker.kill()
    known = {box: len(await events(stack, session, box)) for box in BOXES}
    early = [asyncio.create_task(answered_at(session, box)) for box in SENT_WHILE_THERE_IS_NO_WORKER]
    await asyncio.sleep(1.0)
    await breakable.worker.start()
    ready_at = time.monotonic()
    late = [asyncio.create_task(answered_at(session, box)) for box in SENT_TO_THE_NEW_WORKER]
    for calls, sent in ((early, "while there was no worker"), (late, "to the new one")):
        took = [await call - ready_at for call in calls]
        print(f"next calls sent {sent}: {', '.join(f'{each:.2f} s' for each in took)} after the new worker was ready")

    for box, before in known.items():
        await waited_for_nothing(stack, session, box, before)
    assert [(await command).stdout for command in in_first_request] == ["whole\n"] * 2
    assert [(await command.wait()).stdout for command in followed] == ["whole\n"] * 2
    await session.end()


async def answered_at(session: Session, box: str) -> float:
    """Call, and say when the answer came."""
    assert (await session.exec(box, "echo next")).stdout == "next\n"
    return time.monotonic()


async def waited_for_nothing(stack: Stack, session: Session, box: str, before: int) -> None:
    """The command ran at the first attempt, and no workflow task was waited for that the dead worker had taken.

    One that was offered to it alone is taken back after a second: the worker's setting says so.
    """
    since = (await events(stack, session, box))[before:]
    attempts = [
        event.activity_task_started_event_attributes.attempt
        for event in since
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED
        and event.activity_task_started_event_attributes.scheduled_event_id > before
    ]
    assert attempts
    assert set(attempts) == {1}
    timeouts = [
        event.workflow_task_timed_out_event_attributes.timeout_type
        for event in since
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT
    ]
    assert TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE not in timeouts
    assert len(timeouts) <= 1


async def events(stack: Stack, session: Session, box: str) -> list[HistoryEvent]:
    """The history of the sandbox's workflow so far."""
    workflow = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))
    return [event async for event in workflow.fetch_history_events()]


def is_followed(seen: list[HistoryEvent]) -> bool:
    return any(
        event.activity_task_scheduled_event_attributes.activity_type.name == Activity.FOLLOW_COMMANDS for event in seen
    )
