"""Why something that is repeated until it succeeds has not succeeded yet."""

from __future__ import annotations

from datetime import timedelta

from pydantic import ValidationError
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from sandhold.client.errors import WaitTimeout
from sandhold.client.requests import Deadline, TemporalRequests
from sandhold.contracts.errors import ToolError


async def last_failure(requests: TemporalRequests, workflow_id: str, deadline: Deadline) -> ToolError | None:
    """The typed error of the latest failed attempt of an activity that the workflow waits for.

    None when there is none, or nobody tells in time.
    """
    handle = requests.client.get_workflow_handle(workflow_id)

    async def attempt(request_timeout: timedelta) -> ToolError | None:
        described = (await handle.describe(rpc_timeout=request_timeout)).raw_description
        for pending in described.pending_activities:
            if pending.HasField("last_failure"):
                return await _told(requests.client, pending.last_failure)
        return None

    try:
        return await requests.send(attempt, deadline=deadline)
    except (RPCError, WaitTimeout):
        return None


async def _told(client: Client, failure: object) -> ToolError | None:
    try:
        error = await client.data_converter.decode_failure(failure)  # type: ignore[arg-type]
    except (ValueError, RuntimeError):
        return None
    if not isinstance(error, ApplicationError) or not error.details:
        return None
    try:
        return ToolError.model_validate(error.details[0])
    except ValidationError:
        return None
