"""The work is kept: a sandbox's workspace is saved before the sandbox is deleted, where the policy says so."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError
from temporalio.exceptions import TimeoutError as TimedOut

from workflows.lifecycle import CREATE_FAILED, Lifecycle
from workflows.steps import HEARTBEAT_TIMEOUT, PATIENT, error_of, signal_of

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.base import Message
    from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolError
    from sandhold.contracts.names import Activity, follow_queue
    from sandhold.contracts.sandboxes import SandboxCarried, SandboxStart, SandboxState
    from sandhold.contracts.steps import LifecycleStep, ProviderSandbox, SandboxRef, SaveStep
    from sandhold.contracts.transfers import SavedWorkspace

Result = TypeVar("Result", bound=Message)

_STARTS = 3
"""How often a sandbox is started that stops while it is saved."""


class Keeping:
    """Saves the workspace of one sandbox within the policy's times for it. Never keeps the sandbox from its deletion.

    `save_timeout_s` is for the work itself, and its activity sees to it: only that knows when it has a place. Here
    everything is bounded together, with `save_wait_s` for what is no fault of the sandbox's.
    """

    def __init__(self, start: SandboxStart, kept: SandboxCarried, lifecycle: Lifecycle) -> None:
        self._start = start
        self._kept = kept
        self._lifecycle = lifecycle

    async def keep(self) -> None:
        """Save the workspace, or note why it was not saved. Nothing else may use the sandbox any more."""
        if not self._asked_for or self._was_never_used():
            return
        for is_last in (False, True):
            give_up_at = workflow.now() + self._bound
            try:
                self._kept.saved = await self._save(give_up_at)
                return
            except ActivityError as failure:
                # Where there was no worker, there is one now, as this runs.
                if is_last or not _was_left_alone(failure):
                    self._kept.saved = SavedWorkspace(error=self._meaning_of(failure, give_up_at))
                    return

    def note_loss(self) -> None:
        """The sandbox is gone, and its workspace with it."""
        if self._asked_for:
            self._kept.saved = SavedWorkspace(error=self._kept.error)

    @property
    def _bound(self) -> timedelta:
        policy = self._start.policy
        return timedelta(seconds=policy.save_wait_s + policy.save_timeout_s)

    @property
    def _asked_for(self) -> bool:
        return self._start.policy.on_end == "download"

    def _was_never_used(self) -> bool:
        """Whether nobody can have worked in it: it never started, or was given up before it was filled."""
        kept = self._kept
        unfinished = kept.provider_id is None or kept.state is SandboxState.CREATING or kept.ending == CREATE_FAILED
        return unfinished and not self._start.delete_only

    async def _save(self, give_up_at: datetime) -> SavedWorkspace:
        ref, starts = self._lifecycle.ref(), 0
        started = self._kept.state is SandboxState.STARTED
        while True:
            if not started:
                ref, starts = await self._started(ref, give_up_at), starts + 1
            step = SaveStep(ref=ref, timeout_s=self._start.policy.save_timeout_s)
            queue = follow_queue(workflow.info().task_queue)
            try:
                return await self._step(Activity.SAVE_WORKSPACE, step, SavedWorkspace, _left(give_up_at), queue)
            except ActivityError as failure:
                if signal_of(failure) is not SandboxSignal.NOT_STARTED or starts == _STARTS:
                    raise
                started = False

    async def _started(self, ref: SandboxRef, give_up_at: datetime) -> SandboxRef:
        bound = min(timedelta(seconds=self._start.policy.lifecycle_timeout_s), _left(give_up_at))
        step = LifecycleStep(ref=ref, timeout_s=bound.total_seconds())
        found = await self._step(Activity.START_SANDBOX, step, ProviderSandbox, bound)
        return ref.model_copy(update={"provider_id": found.provider_id})

    async def _step(
        self,
        activity: Activity,
        step: Message,
        result_type: type[Result],
        within: timedelta,
        task_queue: str | None = None,
    ) -> Result:
        result: Result = await workflow.execute_activity(
            activity,
            step,
            result_type=result_type,
            task_queue=task_queue,
            schedule_to_close_timeout=max(within, timedelta(milliseconds=1)),
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            retry_policy=PATIENT,
            summary=f"save {self._start.sandbox_id} before its deletion: {self._kept.ending}",
        )
        return result

    def _meaning_of(self, failure: ActivityError, give_up_at: datetime) -> ToolError:
        error = error_of(failure)
        if _left(give_up_at) > timedelta(0):
            return error
        why = "" if error.code is ErrorCode.TIMEOUT else f": {error.message}"
        message = f"the workspace was not saved within {self._bound.total_seconds():.0f} s, all waiting included{why}"
        return ToolError(code=ErrorCode.TIMEOUT, message=message)


def _was_left_alone(failure: ActivityError) -> bool:
    """Whether an activity ran out of time with no worker there: nobody took it up, or whoever did was lost."""
    timeout = failure.cause
    if not isinstance(timeout, TimedOut):
        return False
    if timeout.cause is None:
        return not timeout.last_heartbeat_details
    return isinstance(timeout.cause, TimedOut)


def _left(moment: datetime) -> timedelta:
    return moment - workflow.now()
