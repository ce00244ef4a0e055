"""What runs by itself in a deployment: Temporal Schedules, made by every worker and by `sandhold setup`."""

from __future__ import annotations

from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from sandhold.contracts.names import CLEAN_STORAGE_SCHEDULE, CLEAN_STORAGE_WORKFLOW
from sandhold.contracts.storage import CleanStorageStep

EVERY = timedelta(hours=1)
"""How often storage is cleaned: sooner than Temporal forgets a session that has ended."""
_JITTER = timedelta(minutes=10)


class ScheduleUnusable(RuntimeError):
    """A schedule can be neither found nor made. The message says why."""


async def ensure_schedules(client: Client, task_queue: str) -> list[str]:
    """Make what is missing and return the ids; all schedules start their workflows on this task queue afterwards.

    Safe to repeat and with several processes at once. What an operator has changed (a pause, another interval) stays.
    Raises ScheduleUnusable.
    """
    schedule = Schedule(
        action=_cleaning(task_queue),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=EVERY)], jitter=_JITTER),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=EVERY),
    )
    try:
        try:
            await client.create_schedule(CLEAN_STORAGE_SCHEDULE, schedule)
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(CLEAN_STORAGE_SCHEDULE).update(lambda found: _on_queue(found, task_queue))
            return []
    except RPCError as error:
        raise ScheduleUnusable(f"Temporal did not take the schedule that cleans storage: {error.message}") from error
    return [CLEAN_STORAGE_SCHEDULE]


async def renew_schedules(client: Client) -> list[str]:
    """Have the schedules keep what they start their workflows with under the present key; the ids of those there are.

    The last result, which they keep as well, only a run replaces: one is begun, unless an operator has paused them.
    Safe to repeat. Raises ScheduleUnusable.
    """
    schedule = client.get_schedule_handle(CLEAN_STORAGE_SCHEDULE)
    try:
        await schedule.update(_renewed)
        if not (await schedule.describe()).schedule.state.paused:
            await schedule.trigger()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return []
        raise ScheduleUnusable(f"Temporal did not renew the schedule that cleans storage: {error.message}") from error
    return [CLEAN_STORAGE_SCHEDULE]


def _cleaning(task_queue: str) -> ScheduleActionStartWorkflow:
    return ScheduleActionStartWorkflow(
        CLEAN_STORAGE_WORKFLOW,
        CleanStorageStep(),
        id=CLEAN_STORAGE_SCHEDULE,
        task_queue=task_queue,
        static_summary="Removes what ended sessions left in storage",
    )


def _on_queue(found: ScheduleUpdateInput, task_queue: str) -> ScheduleUpdate | None:
    """The change that brings a schedule to the task queue; None when it is there."""
    schedule = found.description.schedule
    action = schedule.action
    if isinstance(action, ScheduleActionStartWorkflow) and action.task_queue == task_queue:
        return None
    schedule.action = _cleaning(task_queue)
    return ScheduleUpdate(schedule)


def _renewed(found: ScheduleUpdateInput) -> ScheduleUpdate | None:
    schedule = found.description.schedule
    if not isinstance(schedule.action, ScheduleActionStartWorkflow):
        return None
    schedule.action = _cleaning(schedule.action.task_queue)
    return ScheduleUpdate(schedule)
