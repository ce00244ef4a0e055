"""Sandbox: owns one sandbox at the provider from before its creation until after its deletion is confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta

from temporalio import workflow

from workflows.filling import Filling
from workflows.keeping import Keeping
from workflows.ledger import (
    Call,
    Ledger,
    check_size,
    envelope,
    refuse_while_draining,
    too_large,
    without_surplus,
)
from workflows.lifecycle import CLOSED_FROM_OUTSIDE, DELETED_BY_CALL, Lifecycle, Operation, failure_from
from workflows.sandbox_calls import SandboxCalls
from workflows.waiting import close_run, reopen_run, seconds_until, until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import CallEnvelope, CallOutcome, CallRequest
    from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure, as_application_error
    from sandhold.contracts.git_credentials import GitCredentialsKept
    from sandhold.contracts.names import (
        CALL_UPDATE,
        COMMAND_QUERY,
        RENEW_SIGNAL,
        RESULT_QUERY,
        SANDBOX_WORKFLOW,
        STATUS_QUERY,
        SUBMIT_SIGNAL,
    )
    from sandhold.contracts.sandboxes import (
        CommandState,
        LedgerEntry,
        Renewal,
        SandboxCarried,
        SandboxEnding,
        SandboxOutcome,
        SandboxStart,
        SandboxState,
        SandboxStatus,
    )
    from sandhold.contracts.tools import CreateSandboxResult

HISTORY_LIMIT_EVENTS = 1200
"""Beyond this the workflow continues as new: a cold worker replays so many events in 0.36 s (measured)."""
CLONES_FINISHED_WITHIN_S = 60.0


@workflow.defn(name=SANDBOX_WORKFLOW)
class Sandbox:
    """The life of one sandbox.

    The main coroutine only waits: activities run from tasks of their own, so that a cancellation, which
    reaches the main coroutine alone, never interrupts a create or a delete. Cancelling is how a session,
    or the server for a session that was terminated, asks for the deletion.
    """

    @workflow.init
    def __init__(self, start: SandboxStart) -> None:
        self._start = start
        self._kept = start.carried or SandboxCarried(state=SandboxState.CREATING, last_used_at=workflow.now(), runs=0)
        self._ledger = Ledger(self._kept.ledger)
        self._calls = SandboxCalls(start, self._kept, self._ledger, self._tell_operators)
        filling = Filling(start, self._kept)
        self._lifecycle = Lifecycle(
            start,
            self._kept,
            self._calls,
            self._tell_operators,
            fill=filling.fill if filling.wanted else None,
        )
        self._calls.attach(self._lifecycle)
        self._keeping = Keeping(start, self._kept, self._lifecycle)
        self._draining = False
        self._renewal_asked = False
        self._creation: Operation | None = None

    @workflow.run
    async def run(self, start: SandboxStart) -> SandboxOutcome:
        if start.delete_only:
            # What the closed run had asked of the provider is unknown.
            self._kept.create_requested_at = workflow.now()
            if start.git_tokens:
                self._kept.git_credentials = GitCredentialsKept(tokens=True)
            self._lifecycle.end(CLOSED_FROM_OUTSIDE)
        elif self._kept.runs == 0:
            self._create()
        self._kept.runs += 1
        self._calls.resume()
        while self._kept.ending is None:
            await self._wait_for_change_or_deadline()
            if self._should_renew() and self._kept.ending is None:
                await self._continue_as_new()
            self._act_on_deadline()
        return await self._end()

    # Messages.

    @workflow.update(name=CALL_UPDATE)
    async def call(self, request: CallRequest) -> CallEnvelope:
        """Carry out a tool call; answers within ANSWER_WITHIN_S, with status `running` when it goes on."""
        try:
            call = self._calls.admit(request)
        except ToolFailure as failure:
            return self._envelope(request, CallOutcome(error=failure.error))
        return self._envelope(call.entry, await self._calls.answer(call))

    @call.validator
    def _check_call(self, request: CallRequest) -> None:
        refuse_while_draining(self._draining)
        check_size(request)
        # At no cost in history: a deletion that hangs can meet any number of calls.
        refused = self._calls.refusal(request) or self._calls.no_room(request)
        if refused is not None:
            raise as_application_error(refused)

    @workflow.signal(name=SUBMIT_SIGNAL)
    def submit(self, request: CallRequest) -> None:
        """Carry out a tool call whose result is read by the query `result`."""
        try:
            large = too_large(request)
            if large is not None:
                raise failure_from(large)
            self._calls.admit(request)
        except ToolFailure as failure:
            self._ledger.refuse(request, failure.error)

    @workflow.signal(name=RENEW_SIGNAL)
    def renew(self, renewal: Renewal) -> None:
        """Continue as new as soon as nothing holds it off, unless that has happened since."""
        if workflow.info().start_time < renewal.began_before:
            self._renewal_asked = True

    @workflow.query(name=RESULT_QUERY)
    def result(self, call_id: str) -> CallEnvelope | None:
        """The envelope of a call that this sandbox knows; null for any other."""
        call = self._ledger.get(call_id)
        return None if call is None else self._envelope(call.entry, call.entry.outcome)

    @workflow.query(name=STATUS_QUERY)
    def status(self) -> SandboxStatus:
        """What the sandbox is, does and waits for."""
        start, kept = self._start, self._kept
        running = [call.call_id for call in self._ledger.running()]
        return SandboxStatus(
            sandbox_id=start.sandbox_id,
            title=start.arguments.title,
            state=kept.state.value,
            created_at=start.created_at,
            last_used_at=kept.last_used_at,
            stops_at=self._idle_deadline(),
            running_calls=len(running),
            error=kept.error,
            generation=start.generation,
            workflow_id=workflow.info().workflow_id,
            provider_id=kept.provider_id,
            session_id=start.session_id,
            owner=start.owner,
            provider_name=kept.provider_name,
            connection=kept.connection,
            organization=kept.organization,
            ending=kept.ending,
            calls=running,
            next=self._next(),
            runs=kept.runs,
            saved=kept.saved,
        )

    @workflow.query(name=COMMAND_QUERY)
    def command(self, call_id: str) -> CommandState | None:
        """Where a command stands; null for one that this sandbox does not know (any more)."""
        return self._calls.commands.state(call_id)

    # The life.

    def _create(self) -> None:
        request = self._start.create_call
        if request is not None:
            self._ledger.open(request).slow = True
        self._lifecycle.begin("create")
        self._creation = self._lifecycle.operation
        asyncio.create_task(self._answer_create())  # noqa: RUF006 - the event loop of a workflow keeps its tasks

    async def _answer_create(self) -> None:
        assert self._creation is not None
        await until(self._creation.ended)
        self._record_creation(self._creation)

    def _record_creation(self, operation: Operation) -> None:
        """Let the call that asked for the sandbox have its outcome. Safe to repeat."""
        request = self._start.create_call
        call = self._ledger.get(request.call_id) if request else None
        if call is None:
            return
        if operation.error is not None:
            call.finish(CallOutcome(error=operation.error))
        elif operation.outcome is not None:
            call.finish(operation.outcome)
        else:
            result = CreateSandboxResult(sandbox_id=self._start.sandbox_id)
            call.finish(CallOutcome(result=result.model_dump(mode="json")))

    async def _wait_for_change_or_deadline(self) -> None:
        """Wait lazily: a timer runs to the deadline as it was; uses move the deadline, not the timer."""
        self._tell_operators()
        armed = self._deadline()

        def something_to_do() -> bool:
            deadline = self._deadline()
            sooner = deadline is not None and (armed is None or deadline < armed)
            return sooner or self._kept.ending is not None or self._should_renew()

        try:
            if armed is None:
                await workflow.wait_condition(something_to_do)
            else:
                await workflow.wait_condition(
                    something_to_do, timeout=seconds_until(armed), timeout_summary=self._next()
                )
        except TimeoutError:
            pass  # The deadline: looked at by the caller, it may have moved.
        except asyncio.CancelledError:
            self._lifecycle.end("cancelled")

    def _act_on_deadline(self) -> None:
        """Begin what is due. The check and the new state are one step: no call can come between."""
        deadline = self._deadline()
        if deadline is None or deadline > workflow.now() or self._kept.ending is not None:
            return
        self._lifecycle.begin("stop" if self._kept.state is SandboxState.STARTED else "archive")

    def _deadline(self) -> datetime | None:
        return self._idle_deadline() or self._archive_deadline()

    def _idle_deadline(self) -> datetime | None:
        """When the sandbox is stopped if nothing uses it; None while something does or it is not running."""
        if self._kept.state is not SandboxState.STARTED or self._lifecycle.operation or self._calls.busy:
            return None
        idle_at = self._kept.last_used_at + timedelta(seconds=self._start.idle_stop_s)
        used_until = self._calls.commands.used_until()
        if used_until is None:
            return idle_at
        return max(idle_at, used_until + timedelta(seconds=self._start.idle_stop_s))

    def _archive_deadline(self) -> datetime | None:
        after_s, stopped_at = self._start.policy.archive_after_s, self._kept.stopped_at
        stopped = self._kept.state is SandboxState.STOPPED and self._lifecycle.operation is None
        if after_s is None or stopped_at is None or not stopped or self._calls.busy:
            return None
        return stopped_at + timedelta(seconds=after_s)

    def _should_renew(self) -> bool:
        """Whether to continue as new: the history is long, or somebody has asked for it."""
        info = workflow.info()
        due = self._renewal_asked or info.get_current_history_length() >= HISTORY_LIMIT_EVENTS
        # The server suggests it at several times as many events; then no transfer holds it off any more.
        due = (due and not self._calls.transferring) or info.is_continue_as_new_suggested()
        # A change of state ends first: calls wait for it, and with them their handlers.
        return due and self._lifecycle.operation is None

    async def _continue_as_new(self) -> None:
        """Refuse new calls, let the handlers answer, go on with everything in a fresh history.

        Running calls go along: they live in the ledger, not in handlers.
        """
        self._draining = True
        while True:
            await self._main_until(self._is_drained)
            await close_run()
            if self._kept.ending is None and self._is_drained():
                break
            reopen_run()
            if self._kept.ending is not None:
                self._draining = False
                return
        if self._creation is not None:
            # With the creation this run ends in one moment, and lets no other task go on in it.
            self._record_creation(self._creation)
        self._kept.ledger = self._ledger.entries()
        self._kept.commands = self._calls.commands.records()
        workflow.continue_as_new(self._start.model_copy(update={"carried": without_surplus(self._kept)}))

    def _is_drained(self) -> bool:
        return workflow.all_handlers_finished() and self._lifecycle.operation is None

    async def _end(self) -> SandboxOutcome:
        """Let calls end, cancel what is left, delete, and complete on confirmed absence only."""
        self._tell_operators()
        lost = self._kept.state is SandboxState.LOST
        if lost:
            self._keeping.note_loss()
        else:
            await self._main_await(self._delete())
        self._calls.finish_all(self._last_outcome)
        # Their tokens are revoked. What takes longer than that is left to the clean-up.
        await self._main_await(until(self._calls.clones_finished, timeout_s=CLONES_FINISHED_WITHIN_S))
        if self._kept.git_credentials is not None:
            await self._main_await(self._calls.credentials.end())
        await self._main_until(workflow.all_handlers_finished)
        await close_run()
        self._tell_operators()
        return SandboxOutcome(
            sandbox_id=self._start.sandbox_id,
            generation=self._start.generation,
            outcome=self._ending_kind(lost),
            reason=self._kept.ending or "",
            error=self._kept.error,
            saved=self._kept.saved,
        )

    async def _delete(self) -> None:
        await until(lambda: self._lifecycle.operation is None)
        if self._kept.state is SandboxState.STARTED:
            await self._calls.quiesce(self._grace_s())
            # Nothing holds a deletion up: it ends them for certain.
            await self._calls.end_with_sandbox()
        self._tell_operators()
        await self._keeping.keep()
        await self._lifecycle.delete()

    def _grace_s(self) -> float:
        return 0.0 if self._kept.ending == DELETED_BY_CALL else self._start.policy.end_grace_s

    def _ending_kind(self, lost: bool) -> SandboxEnding:
        if lost:
            return "lost"
        created = self._kept.provider_id is not None or self._start.delete_only
        return "deleted" if created else "failed"

    def _last_outcome(self, call: Call) -> CallOutcome:
        if call.entry.request is not None and call.entry.request.deletes:
            return self._calls.managed("delete")
        if self._kept.state is SandboxState.LOST and self._kept.error is not None:
            return CallOutcome(error=self._kept.error)
        return CallOutcome(
            error=ToolError(
                code=ErrorCode.CANCELLED,
                message=f"sandbox {self._start.sandbox_id} was deleted ({self._kept.ending})",
                ambiguous=True,
            )
        )

    # The main coroutine's own waits: the workflow's cancellation arrives in them, once.

    async def _main_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            try:
                await workflow.wait_condition(condition)
            except asyncio.CancelledError:
                self._lifecycle.end("cancelled")

    async def _main_await(self, work: Coroutine[object, object, object]) -> None:
        task = asyncio.create_task(work)
        await self._main_until(task.done)
        task.result()

    # For operators.

    def _next(self) -> str:
        kept = self._kept
        if kept.ending is not None:
            return f"is being deleted: {kept.ending}" if kept.state is not SandboxState.DELETED else "is deleted"
        if self._lifecycle.operation is not None:
            return f"{self._lifecycle.operation.change} under way"
        if self._calls.busy:
            return "waits for running calls"
        deadline = self._deadline()
        if deadline is not None:
            what = "stops" if kept.state is SandboxState.STARTED else "is archived"
            return f"{what} at {deadline:%Y-%m-%d %H:%M:%S} UTC unless it is used"
        return "waits for a call"

    def _tell_operators(self) -> None:
        start, kept = self._start, self._kept
        rows = {
            "Session": start.session_id,
            "Owner": start.owner,
            "State": kept.state.value,
            "Since": f"{start.created_at:%Y-%m-%d %H:%M:%S} UTC",
            "Provider sandbox": f"{kept.provider_id or '-'} ({kept.provider_name or '-'})",
            "Generation": str(start.generation),
            "Running calls": ", ".join(call.call_id for call in self._ledger.running()) or "-",
            "Running commands": ", ".join(record.place.call_id for record in self._calls.commands.running()) or "-",
            "Next": self._next(),
            "Error": kept.error.message if kept.error else "-",
        }
        workflow.set_current_details(markdown_table(rows))

    def _envelope(self, asked: CallRequest | LedgerEntry, outcome: CallOutcome | None) -> CallEnvelope:
        start = self._start
        return envelope(start.session_id, start.sandbox_id, asked, outcome, generation=start.generation)


def markdown_table(rows: dict[str, str]) -> str:
    """Two columns for the Temporal UI."""
    lines = [f"| {name} | {value.replace('|', '/')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
