"""Asking open sandboxes to continue as new, so that what their histories hold is written under the present key.

Sessions cannot be asked: a session that continued as new would end its sandboxes. They keep the key that they began
under until they end, at the latest after the maximum lifetime of their policies.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from sandhold.contracts.names import RENEW_SIGNAL, SANDBOX_WORKFLOW
from sandhold.contracts.sandboxes import Renewal
from sandhold.security.executions import moment_in_query

_AT_ONCE = 20
_REQUEST_TIMEOUT = timedelta(seconds=15)


@dataclass
class Renewals:
    """Which sandboxes were asked."""

    asked: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Which could not be asked, and why."""


async def renew_sandboxes(client: Client, began_before: datetime) -> Renewals:
    """Ask all open sandboxes whose run began before this to continue as new, as soon as nothing holds them off.

    Safe to repeat: a run that began later takes no notice. Raises RPCError when they cannot be listed.
    """
    query = (
        f"WorkflowType = '{SANDBOX_WORKFLOW}' AND ExecutionStatus = 'Running' "
        f"AND StartTime < '{moment_in_query(began_before)}'"
    )
    renewals, places = Renewals(), asyncio.Semaphore(_AT_ONCE)

    async def ask(workflow_id: str) -> None:
        async with places:
            try:
                handle = client.get_workflow_handle(workflow_id)
                await handle.signal(RENEW_SIGNAL, Renewal(began_before=began_before), rpc_timeout=_REQUEST_TIMEOUT)
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:  # It has ended since it was listed.
                    renewals.failed[workflow_id] = error.message
            else:
                renewals.asked.append(workflow_id)

    listed = [each.id async for each in client.list_workflows(query, rpc_timeout=_REQUEST_TIMEOUT)]
    await asyncio.gather(*(ask(workflow_id) for workflow_id in dict.fromkeys(listed)))
    return renewals
