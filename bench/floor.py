"""The floor, the least that a call through a workflow can cost: an update handler, an activity that returns at once."""

from __future__ import annotations

from datetime import timedelta

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.base import Message

FLOOR_QUEUE = "sandhold-bench-floor"


class Nothing(Message):
    """What the floor's messages hold."""


@activity.defn
async def return_at_once(asked: Nothing) -> Nothing:
    return asked


@workflow.defn
class Floor:
    """Passes each update through one activity, until it is terminated."""

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.update
    async def pass_through(self, asked: Nothing) -> Nothing:
        return await workflow.execute_activity(return_at_once, asked, schedule_to_close_timeout=timedelta(seconds=10))
