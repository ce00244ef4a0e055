"""One sandbox's state and the changes of it: exclusive, one at a time, and shared by all who wait for the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Literal, Protocol, TypeAlias

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ActivityError

from workflows.steps import FOR_EVER, HEARTBEAT_TIMEOUT, PATIENT, error_of, signal_of
from workflows.waiting import until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import CallOutcome
    from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolError, ToolFailure
    from sandhold.contracts.names import PROVIDER_ID_ATTRIBUTE, STATE_ATTRIBUTE, Activity
    from sandhold.contracts.policy import DAY_S
    from sandhold.contracts.sandboxes import SandboxCarried, SandboxStart, SandboxState
    from sandhold.contracts.steps import (
        CreateSandboxStep,
        DeleteSandboxStep,
        LifecycleStep,
        ProviderSandbox,
        SandboxRef,
    )

STATE_KEY = SearchAttributeKey.for_keyword(STATE_ATTRIBUTE)
PROVIDER_ID_KEY = SearchAttributeKey.for_keyword(PROVIDER_ID_ATTRIBUTE)

DELETED_BY_CALL = "deleted by a call"
CREATE_FAILED = "its creation failed"
CLOSED_FROM_OUTSIDE = "its workflow was closed before the deletion was confirmed"
Change = Literal["create", "start", "stop", "archive"]
Fill: TypeAlias = "Callable[[SandboxRef, Callable[[], Awaitable[object]]], Awaitable[CallOutcome | None]]"
"""Given how to start the sandbox again, should it stop meanwhile."""

_DURING: dict[Change, SandboxState] = {
    "create": SandboxState.CREATING,
    "start": SandboxState.STARTING,
    "stop": SandboxState.STOPPING,
    "archive": SandboxState.STOPPING,
}
_ACTIVITY: dict[Change, Activity] = {
    "start": Activity.START_SANDBOX,
    "stop": Activity.STOP_SANDBOX,
    "archive": Activity.ARCHIVE_SANDBOX,
}
_BACKSTOP_IDLE_S = 600.0
_BACKSTOP_LIFETIME_S = DAY_S


class Inside(Protocol):
    """What runs in the sandbox, as a stop needs to deal with it."""

    async def quiesce(self) -> None:
        """Ask everything to end, and wait a while for it."""

    async def end_with_sandbox(self) -> None:
        """The sandbox does not run any more: what has not told its end has an outcome when this returns."""

    def go_on(self) -> None:
        """The stop failed: what has not ended by then runs on."""

    async def started(self) -> None:
        """The sandbox runs again, and nobody has been told so yet. Holds nobody up for long."""


class Operation:
    """One change of state under way."""

    def __init__(self, change: Change) -> None:
        self.change = change
        self.done = False
        self.error: ToolError | None = None
        self.outcome: CallOutcome | None = None
        """Of the call that asked for it, where the change itself has more to tell than that it was made."""

    def ended(self) -> bool:
        return self.done


class Lifecycle:
    """Owns the sandbox's state. Everything that changes it goes through `bring`, or through the one deletion."""

    def __init__(
        self,
        start: SandboxStart,
        kept: SandboxCarried,
        inside: Inside,
        changed: Callable[[], None],
        fill: Fill | None = None,
    ) -> None:
        """`inside` is quiesced before a stop, and hears how that went; `changed` hears of every new state.

        `fill` brings into a new sandbox what its create call asked for, and has the outcome of that call; None when the
        sandbox is to be deleted before that is known.
        """
        self._start = start
        self._kept = kept
        self._inside = inside
        self._changed = changed
        self._fill = fill
        self.operation: Operation | None = None
        self.starts = 0
        """How often the sandbox has been started in this run: what says that it does not run may be older than that."""

    @property
    def state(self) -> SandboxState:
        return self._kept.state

    def ref(self) -> SandboxRef:
        return SandboxRef(
            session_id=self._start.session_id,
            sandbox_id=self._start.sandbox_id,
            owner=self._start.owner,
            generation=self._start.generation,
            provider_id=self._kept.provider_id,
            storage_quota_bytes=self._start.policy.storage_quota_bytes,
            connection=self._kept.connection,
            organization=self._kept.organization,
        )

    def used(self) -> None:
        """Note a use: idle time counts from here."""
        self._kept.last_used_at = workflow.now()

    def begin(self, change: Change) -> Operation:
        """Set the state and start the change, in one step without an await. Nothing else may be under way."""
        assert self.operation is None
        before = self._kept.state
        operation = self.operation = Operation(change)
        self._enter(_DURING[change])
        asyncio.create_task(self._perform(operation, before))  # noqa: RUF006 - the event loop of a workflow keeps its tasks
        return operation

    async def bring(self, change: Change) -> Operation:
        """Make the change, or join the same one under way; return when it has ended, well or with an error."""
        while (current := self.operation) is not None and current.change != change:
            await until(current.ended)
        operation = self.operation or self.begin(change)
        await until(operation.ended)
        return operation

    @property
    def ready(self) -> bool:
        """Whether a call can use the inside of the sandbox right now."""
        return self.state is SandboxState.STARTED and self._kept.ending is None

    async def ensure_started(self) -> None:
        """Return once the sandbox is started; a stopped one is started.

        Raises ToolFailure with the reason when it cannot be, or when the sandbox is ending.
        """
        while not self.ready:
            self._refuse_if_it_never_will()
            change: Change = "create" if self.state is SandboxState.CREATING else "start"
            if self.operation is not None and self.operation.change not in {"create", "start"}:
                await until(self.operation.ended)
                continue
            operation = await self.bring(self.operation.change if self.operation else change)
            if operation.error is not None:
                raise failure_from(operation.error)

    async def look_started(self) -> None:
        """Have the provider asked whether the sandbox runs, and start it if not, while calls go on using it."""
        await self._make("start")
        self.starts += 1
        self.used()

    def noticed_stopped(self) -> None:
        """The provider says that it does not run: somebody else stopped it."""
        if self.state is SandboxState.STARTED and self.operation is None:
            self._kept.stopped_at = workflow.now()
            self._enter(SandboxState.STOPPED)

    def lose(self, error: ToolError) -> None:
        """The provider confirmed that the sandbox is gone; there will be no other in its place."""
        if self._kept.ending is None:
            self._kept.error = error
            self._kept.ending = "lost"
            self._enter(SandboxState.LOST)

    def end(self, reason: str) -> None:
        """Note that the sandbox is to be deleted, and why; the first reason stands."""
        if self._kept.ending is None:
            self._kept.ending = reason

    async def delete(self) -> None:
        """Delete the sandbox; returns when its absence is confirmed, however long that takes."""
        self._enter(SandboxState.DELETING)
        step = DeleteSandboxStep(
            ref=self.ref(),
            create_requested_at=self._kept.create_requested_at,
            nothing_created=self._kept.nothing_created,
        )
        deletion = asyncio.create_task(self._delete_for_ever(step))
        await until(deletion.done)
        deletion.result()
        self._enter(SandboxState.DELETED)

    async def _delete_for_ever(self, step: DeleteSandboxStep) -> None:
        while True:
            try:
                await workflow.execute_activity(
                    Activity.DELETE_SANDBOX,
                    step,
                    start_to_close_timeout=timedelta(minutes=10),
                    heartbeat_timeout=HEARTBEAT_TIMEOUT,
                    retry_policy=FOR_EVER,
                    summary=f"delete {self._start.sandbox_id}: {self._kept.ending}",
                )
            except ActivityError as failure:
                # Only an operator's hand or a bug ends a policy without bounds: try again, with a pause.
                self._kept.error = error_of(failure)
                await until(lambda: False, timeout_s=300.0)
            else:
                return

    def _enter(self, state: SandboxState) -> None:
        if state is not self._kept.state:
            workflow.upsert_search_attributes([STATE_KEY.value_set(state.value)])
        self._kept.state = state
        self._changed()

    def why_ending(self) -> ToolError | None:
        """What a call gets to know once the sandbox is to be deleted; None while it is not."""
        kept, name = self._kept, self._start.sandbox_id
        if kept.ending is None:
            return None
        if kept.ending in {"lost", CREATE_FAILED} and kept.error is not None:
            return kept.error
        if kept.ending == DELETED_BY_CALL:
            hint = "Use another sandbox, or create one."
            return ToolError(code=ErrorCode.SANDBOX_NOT_FOUND, message=f"sandbox {name} was deleted", hint=hint)
        if kept.ending == CLOSED_FROM_OUTSIDE:
            return ToolError(
                code=ErrorCode.SANDBOX_LOST,
                message=f"the workflow of sandbox {name} was closed from outside; the sandbox is being deleted",
                hint="Create a new sandbox.",
            )
        return ToolError(
            code=ErrorCode.SESSION_ENDING,
            message=f"sandbox {name} is being deleted with its session ({kept.ending})",
            hint="Go on in a new session.",
        )

    def _refuse_if_it_never_will(self) -> None:
        ending = self.why_ending()
        if ending is not None:
            raise failure_from(ending)
        if self.state is SandboxState.FAILED:
            assert self._kept.error is not None
            raise failure_from(self._kept.error)

    async def _perform(self, operation: Operation, before: SandboxState) -> None:
        change = operation.change
        stops = change in {"stop", "archive"}
        try:
            if stops:
                await self._inside.quiesce()
            found = await (self._create() if change == "create" else self._make(change))
            if change == "create" and self._fill is not None:
                operation.outcome = await self._filled(found, self._fill)
        except ToolFailure as failure:
            operation.error = failure.error
        except ActivityError as failure:
            operation.error = error_of(failure)
            self._note_failure(change, before, failure, operation.error)
            if stops:
                self._inside.go_on()
        else:
            if stops:
                await self._inside.end_with_sandbox()
            if change == "start":
                self._note_found(found)
                await self._inside.started()
            self._note_success(change, found)
        finally:
            self.operation = None
            operation.done = True

    async def _create(self) -> ProviderSandbox:
        asked = self._start.arguments
        policy = self._start.policy
        # From here until an answer is on record the provider may hold a sandbox of this name.
        self._kept.create_requested_at = workflow.now()
        try:
            found: ProviderSandbox = await workflow.execute_activity(
                Activity.CREATE_SANDBOX,
                CreateSandboxStep(
                    ref=self.ref(),
                    size=asked.size,
                    snapshot=asked.snapshot,
                    env=asked.env or {},
                    secret_env=asked.secret_env or [],
                    auto_stop_minutes=_minutes(self._start.idle_stop_s + _BACKSTOP_IDLE_S),
                    ttl_minutes=_minutes(policy.max_lifetime_s + _BACKSTOP_LIFETIME_S),
                    timeout_s=policy.create_timeout_s,
                ),
                result_type=ProviderSandbox,
                schedule_to_close_timeout=timedelta(seconds=policy.create_timeout_s),
                heartbeat_timeout=HEARTBEAT_TIMEOUT,
                retry_policy=PATIENT,
                summary=f"create {self._start.sandbox_id}",
            )
        except ActivityError as failure:
            # Its last request was sent at this moment at the latest.
            self._kept.create_requested_at = workflow.now()
            self._kept.nothing_created = signal_of(failure) is SandboxSignal.NOTHING_CREATED
            raise
        return found

    async def _filled(self, found: ProviderSandbox, fill: Fill) -> CallOutcome:
        """The outcome of the create call, once its files are in the sandbox. Raises ToolFailure when it is ending."""
        self._note_found(found)
        outcome = await fill(self.ref(), lambda: self._make("start"))
        ending = self.why_ending()
        if outcome is None or ending is not None:
            assert ending is not None
            raise failure_from(ending)
        return outcome

    async def _make(self, change: Change) -> ProviderSandbox:
        timeout_s = self._start.policy.lifecycle_timeout_s
        found: ProviderSandbox = await workflow.execute_activity(
            _ACTIVITY[change],
            LifecycleStep(ref=self.ref(), timeout_s=timeout_s),
            result_type=ProviderSandbox,
            schedule_to_close_timeout=timedelta(seconds=timeout_s),
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            retry_policy=PATIENT,
            summary=f"{change} {self._start.sandbox_id}",
        )
        return found

    def _note_found(self, found: ProviderSandbox) -> None:
        kept = self._kept
        if kept.provider_id != found.provider_id:
            workflow.upsert_search_attributes([PROVIDER_ID_KEY.value_set(found.provider_id)])
        kept.provider_id = found.provider_id
        kept.provider_name = found.provider_name
        # What a worker does not tell that knows no connections yet stays as it was.
        kept.connection = found.connection or kept.connection
        kept.organization = found.organization or kept.organization
        kept.create_requested_at = None

    def _note_success(self, change: Change, found: ProviderSandbox) -> None:
        kept = self._kept
        self._note_found(found)
        kept.error = None
        if change in {"create", "start"}:
            self.starts += 1
            self.used()
            self._enter(SandboxState.STARTED)
        else:
            kept.stopped_at = workflow.now()
            self._enter(SandboxState.STOPPED if change == "stop" else SandboxState.ARCHIVED)

    def _note_failure(self, change: Change, before: SandboxState, failure: ActivityError, error: ToolError) -> None:
        signal = signal_of(failure)
        if signal is SandboxSignal.LOST and change != "create":
            self.lose(error)
            return
        self._kept.error = error
        if change == "create":
            self._enter(SandboxState.FAILED)
            self.end(CREATE_FAILED)
        elif change == "start":
            self._enter(SandboxState.FAILED if signal is SandboxSignal.FAILED else before)
        else:
            # Where it stands is unknown. Both clocks start again, so that the timers try again.
            self.used()
            self._kept.stopped_at = workflow.now()
            self._enter(before)


def failure_from(error: ToolError) -> ToolFailure:
    """The exception that carries this error."""
    return ToolFailure(**error.model_dump())


def _minutes(seconds: float) -> int:
    return max(1, -int(-seconds // 60))
