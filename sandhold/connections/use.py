"""Which open sandboxes are used under a connection, as their workflows say: the truth for replacing and removing it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

from temporalio.client import Client, WorkflowExecution, WorkflowQueryFailedError
from temporalio.service import RPCError

from sandhold.client import TemporalRefused
from sandhold.contracts.base import Message
from sandhold.contracts.names import DEFAULT_CONNECTION, SANDBOX_WORKFLOW, STATUS_QUERY
from sandhold.contracts.sandboxes import SandboxStatus
from sandhold.search_attributes import OWNER, PROVIDER_ID, SANDBOX, SESSION

_ANSWER_WITHIN = timedelta(seconds=5)
_ASKED_AT_ONCE = 8
SHOWN = 5
"""How many sandboxes a message names."""


class UsedSandbox(Message):
    """An open sandbox that is used under a connection, or may be: nobody says otherwise."""

    session_id: str
    sandbox_id: str
    provider_id: str | None = None
    """None while it is being created."""
    organization: str | None = None
    state: str | None = None
    """None when its workflow did not answer."""

    @property
    def name(self) -> str:
        return f"{self.session_id}/{self.sandbox_id}"


def shown_names(sandboxes: list[UsedSandbox]) -> str:
    """The first SHOWN of them, for a message."""
    return ", ".join(each.name for each in sandboxes[:SHOWN])


async def sandboxes_under(client: Client, owner: str, connection_id: str) -> AsyncIterator[UsedSandbox]:
    """The open sandboxes of `owner` that are used under this connection, newest first, and those that do not answer.

    One that was started a moment ago may be missing, as the server's lists lag. Raises TemporalRefused.
    """
    query = f"WorkflowType = '{SANDBOX_WORKFLOW}' AND ExecutionStatus = 'Running' AND {OWNER.name} = '{owner}'"
    batch: list[WorkflowExecution] = []
    try:
        async for execution in client.list_workflows(query):
            batch.append(execution)
            if len(batch) == _ASKED_AT_ONCE:
                for used in await _asked(client, batch, connection_id):
                    yield used
                batch = []
    except RPCError as error:
        raise TemporalRefused(f"Temporal does not list the sandboxes of {owner!r}: {error.message}") from error
    for used in await _asked(client, batch, connection_id):
        yield used


async def _asked(client: Client, batch: list[WorkflowExecution], connection_id: str) -> list[UsedSandbox]:
    answers = await asyncio.gather(*(_status(client, each) for each in batch))
    return [
        _used(execution, status)
        for execution, status in zip(batch, answers, strict=True)
        if status is None or _may_use(status, connection_id)
    ]


async def _status(client: Client, execution: WorkflowExecution) -> SandboxStatus | None:
    handle = client.get_workflow_handle(execution.id, run_id=execution.run_id)
    try:
        status: SandboxStatus = await handle.query(STATUS_QUERY, result_type=SandboxStatus, rpc_timeout=_ANSWER_WITHIN)
    except (RPCError, WorkflowQueryFailedError):
        return None
    return status


def _may_use(status: SandboxStatus, connection_id: str) -> bool:
    if status.connection is None:
        # Under way of being created; what was created before there were connections uses the deployment's own.
        return status.provider_id is None or connection_id == DEFAULT_CONNECTION
    return status.connection == connection_id


def _used(execution: WorkflowExecution, status: SandboxStatus | None) -> UsedSandbox:
    attributes = execution.typed_search_attributes
    return UsedSandbox(
        session_id=attributes.get(SESSION) or "",
        sandbox_id=attributes.get(SANDBOX) or execution.id,
        provider_id=attributes.get(PROVIDER_ID) if status is None else status.provider_id,
        organization=None if status is None else status.organization,
        state=None if status is None else status.state,
    )
