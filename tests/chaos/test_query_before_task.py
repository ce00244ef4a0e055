"""A new worker may be asked about a workflow before it gets the workflow's next task."""

from __future__ import annotations

import asyncio

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from sandhold.contracts.names import sandbox_workflow_id
from tests.chaos.breakable import BreakableStack
from tests.stack import replayer
from tests.workflows.waiting import eventually


async def test_a_query_that_a_new_worker_answers_before_a_call_leaves_a_history_that_replays(
    breakable: BreakableStack,
) -> None:
    stack = breakable.stack
    session = await stack.open(idle_stop_s=2.0)
    await session.create_sandbox(sandbox_id="box")
    workflow = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, "box"))

    async def events() -> list[HistoryEvent]:
        return [event async for event in workflow.fetch_history_events()]

    await breakable.worker.kill()
    asked = asyncio.create_task(stack.status(session, "box"))
    await eventually(
        events,
        lambda seen: any(event.event_type == EventType.EVENT_TYPE_TIMER_FIRED for event in seen),
        "the idle timer's end while there is no worker",
    )
    called = asyncio.create_task(session.exec("box", "echo whole"))
    await asyncio.sleep(1.5)  # Until the server has given up on the dead worker's own queue.
    await breakable.worker.start()
    await asked
    assert (await called).stdout == "whole\n"

    replayed = await replayer().replay_workflow(await workflow.fetch_history(), raise_on_replay_failure=False)
    assert replayed.replay_failure is None
    await session.end()
