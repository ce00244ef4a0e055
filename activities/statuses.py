"""Asking sandboxes how they are: for the session's idle deadline and for listing."""

from __future__ import annotations

import asyncio

from temporalio import activity
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from sandhold.contracts.names import QUERY_TOO_EARLY, STATUS_QUERY, Activity
from sandhold.contracts.sandboxes import SandboxStatus
from sandhold.contracts.sessions import SandboxStatuses
from sandhold.contracts.steps import SandboxStatusesStep

_AT_ONCE = 10
_ASK_AGAIN_S = 0.2


class StatusActivities:
    """Queries the workflows of a session's sandboxes."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @activity.defn(name=Activity.SANDBOX_STATUSES)
    async def sandbox_statuses(self, step: SandboxStatusesStep) -> SandboxStatuses:
        """The status of each workflow; null for one that is closed or does not answer in time."""
        places = asyncio.Semaphore(_AT_ONCE)

        async def ask(workflow_id: str) -> SandboxStatus | None:
            async with places:
                return await self._ask(workflow_id)

        answers = await asyncio.gather(*(ask(workflow_id) for workflow_id in step.workflow_ids))
        return SandboxStatuses(by_workflow_id=dict(zip(step.workflow_ids, answers, strict=True)))

    async def _ask(self, workflow_id: str) -> SandboxStatus | None:
        left = activity.info().start_to_close_timeout or activity.info().schedule_to_close_timeout
        try:
            async with asyncio.timeout(left.total_seconds() * 0.8 if left else None):
                return await self._status(workflow_id)
        except RPCError as error:
            if error.status in {RPCStatusCode.NOT_FOUND, RPCStatusCode.DEADLINE_EXCEEDED}:
                return None
            raise
        except TimeoutError:
            return None

    async def _status(self, workflow_id: str) -> SandboxStatus:
        while True:
            try:
                status: SandboxStatus = await self._client.get_workflow_handle(workflow_id).query(
                    STATUS_QUERY, result_type=SandboxStatus
                )
                return status
            except WorkflowQueryFailedError as failure:
                if failure.message != QUERY_TOO_EARLY:
                    raise
                await asyncio.sleep(_ASK_AGAIN_S)
