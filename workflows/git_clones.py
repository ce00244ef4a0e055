"""The tool `daytona_git_clone` once its command is over: nothing of its credential stays, and its answer is made."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows.commands import Commands
from workflows.ledger import Call
from workflows.lifecycle import Lifecycle
from workflows.steps import HEARTBEAT_TIMEOUT, PATIENT, error_of
from workflows.waiting import until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import CallOutcome, CallRequest
    from sandhold.contracts.git import FinishCloneStep
    from sandhold.contracts.names import Activity
    from sandhold.contracts.sandboxes import CommandRecord, SandboxState

_FINISH_WITHIN = timedelta(minutes=3)
"""What is left of a clone after that is ended by the clean-up, and by its token's own end."""
_RUNNING = {SandboxState.STARTED, SandboxState.STOPPING}


class GitClones:
    """Finishes clones: whatever became of one, its token is ended before its call has an outcome, or soon after."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._lifecycle: Lifecycle
        self._open: set[str] = set()

    def attach(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    @property
    def open(self) -> bool:
        """Whether a clone has begun that is not finished."""
        return bool(self._open)

    def begins(self, call_id: str) -> None:
        """A token may be minted for it from now on; `finished` has to follow."""
        self._open.add(call_id)

    async def finished(self, call: Call, request: CallRequest, outcome: CallOutcome) -> CallOutcome:
        """The outcome of the call, by that of its command, or of what kept it from starting."""
        record = self._commands.get(call.call_id)
        if record is None and not call.sent:
            self._open.discard(call.call_id)
            return outcome  # Nothing has begun.
        if record is not None and record.outcome is None:
            # Nobody knows whether it was started; the call does not wait for that.
            asyncio.create_task(self._finish_once_over(request, record))  # noqa: RUF006 - the event loop of a workflow keeps its tasks
            return outcome
        told = await self._finish(request, record)
        return outcome if record is None or outcome.error is not None else told

    async def _finish_once_over(self, request: CallRequest, record: CommandRecord) -> None:
        await until(lambda: record.outcome is not None)
        await self._finish(request, record)

    async def _finish(self, request: CallRequest, record: CommandRecord | None) -> CallOutcome:
        """The outcome by the command's; an error when the clone was not finished in time."""
        self._open.add(request.call_id)
        step = FinishCloneStep(
            ref=self._lifecycle.ref(),
            call_id=request.call_id,
            arguments=request.arguments,
            arguments_ref=request.arguments_ref,
            inside=record is not None and self._lifecycle.state in _RUNNING,
            command=None if record is None else record.outcome,
            status=None if record is None else record.status,
            exit_code=None if record is None else record.exit_code,
        )
        try:
            told: CallOutcome = await workflow.execute_activity(
                Activity.FINISH_CLONE,
                step,
                result_type=CallOutcome,
                schedule_to_close_timeout=_FINISH_WITHIN,
                heartbeat_timeout=HEARTBEAT_TIMEOUT,
                retry_policy=PATIENT,
                summary=f"finish the clone {request.call_id}",
            )
        except ActivityError as failure:
            error = error_of(failure)
            workflow.logger.warning("a clone was not finished", extra={"error": error.message})
            return CallOutcome(error=error)
        finally:
            self._open.discard(request.call_id)
        return told
