"""What moves any number of bytes between a sandbox and session storage: one activity each, for hours if need be."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

from workflows.ledger import Call
from workflows.lifecycle import failure_from
from workflows.steps import HEARTBEAT_TIMEOUT, NON_RETRYABLE

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.base import Message
    from sandhold.contracts.calls import CallOutcome, CallRequest
    from sandhold.contracts.errors import ErrorCode, ToolError
    from sandhold.contracts.names import Activity, follow_queue
    from sandhold.contracts.sandboxes import SandboxStart
    from sandhold.contracts.steps import CallStep, DownloadStep, SandboxRef
    from sandhold.contracts.transfers import ATTEMPTS_LIMIT

_TIMEOUT = timedelta(hours=6)
_STARTING_OVER = RetryPolicy(
    initial_interval=timedelta(milliseconds=100),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=30),
    maximum_attempts=ATTEMPTS_LIMIT,
    non_retryable_error_types=NON_RETRYABLE,
)
"""The activities know what kind of failure it was: they ask for longer pauses in an outage, and end other failures
sooner."""


class Transfers:
    """The transfers of one sandbox that run."""

    def __init__(self, start: SandboxStart) -> None:
        self._start = start
        self._running: dict[str, asyncio.Task[CallOutcome]] = {}

    @property
    def running(self) -> bool:
        return bool(self._running)

    def begin_download(self, call: Call, request: CallRequest, ref: SandboxRef) -> asyncio.Task[CallOutcome]:
        """Bring a directory or file into session storage; the task has the outcome, or the failure to raise.

        Beside the followers, on whose queue it keeps nothing short waiting.
        """
        step = DownloadStep(
            ref=ref,
            call_id=call.call_id,
            arguments=request.arguments,
            arguments_ref=request.arguments_ref,
            file_quota_bytes=self._start.policy.file_quota_bytes,
        )
        return self._begin(call, Activity.DOWNLOAD_WORKSPACE, step)

    def begin_push(self, call: Call, request: CallRequest, ref: SandboxRef) -> asyncio.Task[CallOutcome]:
        """Bring files from session storage into the sandbox, as `begin_download` does the other way."""
        step = CallStep(ref=ref, call_id=call.call_id, arguments=request.arguments, arguments_ref=request.arguments_ref)
        return self._begin(call, Activity.PUSH_FILES, step)

    def cancel(self) -> None:
        """End all of them: the sandbox is about to be stopped or deleted."""
        for transfer in self._running.values():
            transfer.cancel()

    def _begin(self, call: Call, activity: Activity, step: CallStep) -> asyncio.Task[CallOutcome]:
        transfer = asyncio.create_task(self._carry_out(call, activity, step))
        self._running[call.call_id] = transfer
        return transfer

    async def _carry_out(self, call: Call, activity: Activity, step: CallStep) -> CallOutcome:
        try:
            return await transferred(activity, step, f"{call.entry.tool} {call.call_id}")
        except asyncio.CancelledError:
            message = f"call {call.call_id} was ended with its sandbox"
            raise failure_from(ToolError(code=ErrorCode.CANCELLED, message=message, ambiguous=True)) from None
        finally:
            del self._running[call.call_id]


async def transferred(activity: Activity, step: Message, summary: str) -> CallOutcome:
    """The outcome of one transfer, beside the followers."""
    outcome: CallOutcome = await workflow.execute_activity(
        activity,
        step,
        result_type=CallOutcome,
        task_queue=follow_queue(workflow.info().task_queue),
        schedule_to_close_timeout=_TIMEOUT,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=_STARTING_OVER,
        summary=summary,
    )
    return outcome
