"""AgentSession: admits, lists and ends the sandboxes of one agent session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, WorkflowAlreadyStartedError

from workflows.admission import new_book
from workflows.children import OWNER_KEY, SESSION_KEY, STATE_KEY, Child, Children
from workflows.ledger import Ledger, check_identity, check_size, envelope, refuse_while_draining, too_large
from workflows.lifecycle import failure_from
from workflows.sandbox import markdown_table
from workflows.steps import PROMPT, error_of
from workflows.waiting import close_run, reopen_run, seconds_until, until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import CallEnvelope, CallOutcome, CallRequest
    from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure, as_application_error
    from sandhold.contracts.names import (
        CALL_UPDATE,
        END_UPDATE,
        RESULT_QUERY,
        SESSION_TOOLS,
        SESSION_WORKFLOW,
        STATUS_QUERY,
        SUBMIT_SIGNAL,
        Activity,
        ToolName,
        sandbox_workflow_id,
    )
    from sandhold.contracts.sandboxes import LedgerEntry, SandboxOutcome, SandboxStart, SandboxStatus
    from sandhold.contracts.sessions import (
        EndAnswer,
        EndedSandbox,
        EndRequest,
        SandboxStatuses,
        SessionCarried,
        SessionOutcome,
        SessionSandbox,
        SessionStart,
        SessionState,
        SessionStatus,
        listed,
        shown_sandboxes,
        why_gone,
    )
    from sandhold.contracts.steps import SandboxStatusesStep
    from sandhold.contracts.tools import (
        CreateSandboxArguments,
        ListSandboxesArguments,
        ManageSandboxResult,
        parse_arguments,
    )

FULL_AT_EVENTS = 20_000
"""Beyond this no more creates are admitted: a session with open sandboxes cannot continue as new."""
RENEW_AT_EVENTS = 2_000
"""Beyond this a session without open sandboxes continues as new."""
_RECHECK_FIRST_S, _RECHECK_MOST_S = 60.0, 3600.0
_FORWARDED_LIMIT = 500


@workflow.defn(name=SESSION_WORKFLOW)
class AgentSession:
    """The life of one agent session.

    Calls on a sandbox go to the sandbox's own workflow, which is a child of this one.
    """

    @workflow.init
    def __init__(self, start: SessionStart) -> None:
        self._start = start
        now = workflow.now()
        self._kept = start.carried or SessionCarried(created_at=now, last_used_at=now)
        self._ledger = Ledger(self._kept.ledger)
        self._children = Children(start.session_id, self._sandbox_ended)
        self._inbox: list[CallRequest] = []
        self._emptying = False
        self._ending: str | None = None
        self._draining = False
        self._recheck_at: datetime | None = None
        self._recheck_s = _RECHECK_FIRST_S

    @workflow.run
    async def run(self, start: SessionStart) -> SessionOutcome:
        self._enter("open")
        while self._ending is None:
            await self._wait_for_change_or_deadline()
            if self._can_renew() and self._ending is None:
                await self._continue_as_new()
        return await self._end(self._ending)

    # Messages.

    @workflow.update(name=CALL_UPDATE)
    async def call(self, request: CallRequest) -> CallEnvelope:
        """Create or list sandboxes. A create answers `running` once its sandbox has an owner on record."""
        return await self._carry_out(request)

    @call.validator
    def _check_call(self, request: CallRequest) -> None:
        refuse_while_draining(self._draining)
        check_size(request)
        # What is not for this workflow is refused at no cost in its history.
        refused = self._refusal(request)
        if refused is not None:
            raise as_application_error(refused)

    @workflow.signal(name=SUBMIT_SIGNAL)
    def submit(self, request: CallRequest) -> None:
        """Carry out a call, or pass it on to its sandbox; its result is read by the query `result`."""
        large = too_large(request)
        if large is not None:
            self._ledger.refuse(request, large)
            return
        self._inbox.append(request)
        asyncio.create_task(self._empty_inbox())  # noqa: RUF006 - the event loop of a workflow keeps its tasks

    @workflow.update(name=END_UPDATE)
    def end(self, request: EndRequest) -> EndAnswer:
        """Begin to end the session; the end itself is the workflow's result."""
        if self._ending is None:
            self._ending = request.reason[:200] or "ended"
        return EndAnswer(session_id=self._start.session_id, state="ending")

    @end.validator
    def _check_end(self, request: EndRequest) -> None:
        refuse_while_draining(self._draining)

    @workflow.query(name=RESULT_QUERY)
    def result(self, call_id: str) -> CallEnvelope | None:
        """The envelope of a call that the session knows; `running` for one that its sandbox answers."""
        call = self._ledger.get(call_id)
        if call is not None:
            return self._envelope(call.entry, call.entry.outcome)
        sandbox_id = self._kept.forwarded.get(call_id)
        if sandbox_id is None:
            return None
        entry = LedgerEntry(call_id=call_id, tool="", fingerprint="", asked_at=self._kept.created_at)
        if sandbox_id in self._open_ids():
            return envelope(self._start.session_id, sandbox_id, entry, None)
        target = sandbox_workflow_id(self._start.session_id, sandbox_id)
        ended = ToolError(
            code=ErrorCode.WRONG_TARGET,
            message=f"the call was passed on to sandbox {sandbox_id}, which has ended",
            workflow_id=target,
            hint=f"Ask {target} what became of it.",
        )
        return envelope(self._start.session_id, sandbox_id, entry, CallOutcome(error=ended))

    @workflow.query(name=STATUS_QUERY)
    def status(self) -> SessionStatus:
        """Who the session is for, what it may do, and its sandboxes by the books."""
        return SessionStatus(
            session_id=self._start.session_id,
            workflow_id=workflow.info().workflow_id,
            owner=self._start.owner,
            state="open" if self._ending is None else "ending",
            ending=self._ending,
            policy=self._start.policy,
            created_at=self._kept.created_at,
            ends_at=self._ends_at(),
            sandboxes=self._kept.sandboxes,
        )

    # Calls.

    async def _carry_out(self, request: CallRequest) -> CallEnvelope:
        try:
            check_identity(request)
            known = self._ledger.known(request)
            if known is None:
                return await self._new_call(request)
        except ToolFailure as failure:
            return self._envelope(request, CallOutcome(error=failure.error))
        await until(known.answered)
        return self._envelope(known.entry, known.take_outcome())

    async def _new_call(self, request: CallRequest) -> CallEnvelope:
        tool = ToolName(request.tool)
        if tool not in SESSION_TOOLS and self._asks_to_delete_what_is_gone(request):
            deleted = ManageSandboxResult.deleted(self._sandbox_of(request) or "")
            return self._envelope(request, CallOutcome(result=deleted.model_dump(mode="json")))
        refused = self._refusal(request)
        if refused is not None:
            raise failure_from(refused)
        arguments = parse_arguments(tool, request.arguments)
        self._kept.last_used_at = workflow.now()
        if isinstance(arguments, CreateSandboxArguments):
            return await self._create(request, arguments)
        assert isinstance(arguments, ListSandboxesArguments)
        rows = listed(shown_sandboxes(self._start.session_id, self._kept.sandboxes, await self._ask_sandboxes()))
        return self._envelope(request, CallOutcome(result=rows.model_dump(mode="json")))

    async def _create(self, request: CallRequest, arguments: CreateSandboxArguments) -> CallEnvelope:
        """Put the sandbox on the books, then start its workflow; from then on its own ledger has this call."""
        if workflow.info().get_current_history_length() >= FULL_AT_EVENTS:
            raise ToolFailure(
                ErrorCode.SESSION_FULL,
                f"session {self._start.session_id} has had too many sandboxes",
                hint="End this session and go on in a new one.",
            )
        book = new_book(self._kept, self._start.policy, request, arguments, workflow.now())
        call = self._ledger.open(request)
        try:
            await self._children.start(self._sandbox_start(book, request, arguments))
        except WorkflowAlreadyStartedError:
            self._kept.sandboxes.remove(book)
            error = ToolError(
                code=ErrorCode.CONFLICT,
                message=f"sandbox {book.sandbox_id} of an earlier session with this id is still being deleted",
                hint="Call again in a minute, or choose another sandbox_id.",
                retryable=True,
            )
            call.finish(CallOutcome(error=error))
            return self._envelope(request, CallOutcome(error=error))
        # The sandbox answers from here on. The entry stays, so that a repeated create finds the same sandbox.
        call.slow = True
        return self._envelope(call.entry, None)

    def _sandbox_start(
        self, book: SessionSandbox, request: CallRequest, arguments: CreateSandboxArguments
    ) -> SandboxStart:
        policy = self._start.policy
        auto_stop = arguments.auto_stop_minutes
        return SandboxStart(
            session_id=self._start.session_id,
            sandbox_id=book.sandbox_id,
            owner=self._start.owner,
            generation=book.generation,
            policy=policy,
            created_at=book.created_at,
            arguments=arguments,
            idle_stop_s=policy.idle_stop_s if auto_stop is None else auto_stop * 60.0,
            create_call=request,
        )

    def _sandbox_ended(self, start: SandboxStart, outcome: SandboxOutcome) -> None:
        for book in self._kept.sandboxes:
            if book.sandbox_id == start.sandbox_id:
                book.ended, book.reason, book.error = outcome.outcome, outcome.reason, outcome.error
                book.saved = outcome.saved
        self._settle_create(start, outcome)
        self._tell_operators()

    def _settle_create(self, start: SandboxStart, outcome: SandboxOutcome) -> None:
        """A create entry is answered by the sandbox while it lives; after that the session has the last word."""
        call = self._ledger.get(start.create_call.call_id) if start.create_call else None
        if call is not None:
            error = outcome.error or ToolError(
                code=ErrorCode.SANDBOX_NOT_FOUND, message=f"sandbox {start.sandbox_id} has ended ({outcome.reason})"
            )
            call.finish(CallOutcome(error=error))

    def _refusal(self, request: CallRequest) -> ToolError | None:
        """Why the session as it is takes no such call; None when it does, knows this one, or has to look closer."""
        if request.call_id in self._ledger or request.tool not in set(ToolName):
            return None
        if request.tool in SESSION_TOOLS:
            if self._ending is None:
                return None
            message = f"session {self._start.session_id} is ending ({self._ending})"
            return ToolError(code=ErrorCode.SESSION_ENDING, message=message)
        named = self._sandbox_of(request)
        if named is None:
            return ToolError(code=ErrorCode.INVALID_ARGUMENTS, message="sandbox_id: Field required")
        if self._asks_to_delete_what_is_gone(request):
            return None
        if named not in self._open_ids():
            return why_gone(named[:63], self._kept.sandboxes)
        target = sandbox_workflow_id(self._start.session_id, named)
        return ToolError(
            code=ErrorCode.WRONG_TARGET,
            message=f"{request.tool} is a call of the sandbox",
            workflow_id=target,
            hint=f"Send it to {target}.",
        )

    def _asks_to_delete_what_is_gone(self, request: CallRequest) -> bool:
        named = self._sandbox_of(request)
        ended = any(book.sandbox_id == named and book.ended is not None for book in self._kept.sandboxes)
        return ended and request.deletes

    @staticmethod
    def _sandbox_of(request: CallRequest) -> str | None:
        named = request.arguments.get("sandbox_id") if isinstance(request.arguments, dict) else request.sandbox_id
        return named if isinstance(named, str) else None

    def _open_ids(self) -> list[str]:
        return [book.sandbox_id for book in self._kept.sandboxes if book.ended is None]

    async def _empty_inbox(self) -> None:
        """Answer or pass on what was submitted, each call once and in order."""
        if self._emptying:
            return
        self._emptying = True
        while self._inbox:
            await self._take_in(self._inbox.pop(0))
        self._emptying = False

    async def _take_in(self, request: CallRequest) -> None:
        if request.call_id in self._kept.forwarded:
            return
        named = self._sandbox_of(request) or ""
        child = self._children.get(named)
        if request.tool not in SESSION_TOOLS and child is not None and await self._forward(request, named, child):
            return
        answer = await self._carry_out(request)
        if answer.error is not None:
            self._ledger.refuse(request, answer.error)
        elif answer.status == "done" and request.call_id not in self._ledger:
            self._ledger.open(request).finish(CallOutcome(result=answer.result))

    async def _forward(self, request: CallRequest, sandbox_id: str, child: Child) -> bool:
        """Pass a call on to its sandbox, one way; False when the sandbox has just ended."""
        try:
            await child.signal(SUBMIT_SIGNAL, request)
        except ApplicationError:
            return False
        forwarded = self._kept.forwarded
        forwarded[request.call_id] = sandbox_id
        for call_id in list(forwarded)[:-_FORWARDED_LIMIT]:
            del forwarded[call_id]
        return True

    # The life.

    async def _wait_for_change_or_deadline(self) -> None:
        self._tell_operators()
        deadline = min(self._ends_at(), self._idle_at())
        try:
            await workflow.wait_condition(
                lambda: self._ending is not None or self._can_renew(),
                timeout=seconds_until(deadline),
                timeout_summary="looks whether the session is idle or at its maximum lifetime",
            )
        except TimeoutError:
            looking = asyncio.create_task(self._look_at_deadlines())
            await self._main_until(looking.done)
            looking.result()
        except asyncio.CancelledError:
            self._ending = self._ending or "cancelled"

    async def _look_at_deadlines(self) -> None:
        """The session does not see the calls of its sandboxes: at the idle deadline it asks them."""
        if self._ends_at() <= workflow.now():
            self._ending = self._ending or "maximum lifetime"
            return
        if self._idle_at() > workflow.now():
            return
        statuses = await self._ask_sandboxes()
        if any(status is None for status in statuses.values()):
            # What cannot be asked may be in use: look again soon, and less and less often.
            pause_s = min(self._recheck_s, self._start.policy.session_idle_s)
            self._recheck_s = min(self._recheck_s * 2, _RECHECK_MOST_S)
            self._recheck_at = workflow.now() + timedelta(seconds=pause_s)
            return
        for status in statuses.values():
            assert status is not None
            used_at = workflow.now() if status.running_calls else status.last_used_at
            self._kept.last_used_at = max(self._kept.last_used_at, used_at or self._kept.last_used_at)
        self._recheck_at, self._recheck_s = None, _RECHECK_FIRST_S
        if self._idle_at() <= workflow.now():
            self._ending = self._ending or "idle"

    async def _ask_sandboxes(self) -> dict[str, SandboxStatus | None]:
        """The status of each open sandbox; None for one that did not answer."""
        ids = self._open_ids()
        if not ids:
            return {}
        by_id = {sandbox_workflow_id(self._start.session_id, sandbox_id): sandbox_id for sandbox_id in ids}
        try:
            answer: SandboxStatuses = await workflow.execute_activity(
                Activity.SANDBOX_STATUSES,
                SandboxStatusesStep(workflow_ids=list(by_id)),
                result_type=SandboxStatuses,
                schedule_to_close_timeout=timedelta(seconds=8),
                retry_policy=PROMPT,
                summary="ask the sandboxes for their status",
            )
        except ActivityError as failure:
            workflow.logger.warning("sandboxes could not be asked", extra={"error": error_of(failure).message})
            return dict.fromkeys(ids)
        return {sandbox_id: answer.by_workflow_id.get(workflow_id) for workflow_id, sandbox_id in by_id.items()}

    def _ends_at(self) -> datetime:
        return self._kept.created_at + timedelta(seconds=self._start.policy.max_lifetime_s)

    def _idle_at(self) -> datetime:
        idle_at = self._kept.last_used_at + timedelta(seconds=self._start.policy.session_idle_s)
        return max(idle_at, self._recheck_at) if self._recheck_at else idle_at

    def _can_renew(self) -> bool:
        info = workflow.info()
        long = info.get_current_history_length() >= RENEW_AT_EVENTS or info.is_continue_as_new_suggested()
        return long and not self._children and not self._open_ids() and not self._inbox and not self._emptying

    async def _continue_as_new(self) -> None:
        """Only without an open sandbox: a parent's continue-as-new cancels its children (measured)."""
        self._draining = True
        await self._main_until(workflow.all_handlers_finished)
        await close_run()
        if self._ending is not None or not self._can_renew() or not workflow.all_handlers_finished():
            reopen_run()
            self._draining = False
            return
        self._kept.ledger = self._ledger.entries()
        workflow.continue_as_new(self._start.model_copy(update={"carried": self._kept}))

    async def _end(self, reason: str) -> SessionOutcome:
        """Cancel every sandbox and complete when the absence of each is confirmed."""
        self._enter("ending")
        self._children.cancel_all()
        await self._main_until(
            lambda: not self._open_ids() and not self._children and not self._inbox and not self._emptying
        )
        await self._main_until(workflow.all_handlers_finished)
        await close_run()
        self._enter("ended")
        return SessionOutcome(
            session_id=self._start.session_id,
            reason=reason,
            sandboxes=[
                EndedSandbox(sandbox_id=book.sandbox_id, outcome=book.ended, saved=book.saved)
                for book in self._kept.sandboxes
                if book.ended is not None
            ],
        )

    async def _main_until(self, condition: Callable[[], bool]) -> None:
        """The main coroutine's wait: the workflow's cancellation arrives in it, once."""
        while not condition():
            try:
                await workflow.wait_condition(condition)
            except asyncio.CancelledError:
                self._ending = self._ending or "cancelled"

    # For operators.

    def _enter(self, state: SessionState) -> None:
        attributes = workflow.info().typed_search_attributes
        updates = [STATE_KEY.value_set(state)] if attributes.get(STATE_KEY) != state else []
        if attributes.get(SESSION_KEY) is None:
            updates += [SESSION_KEY.value_set(self._start.session_id), OWNER_KEY.value_set(self._start.owner)]
        if updates:
            workflow.upsert_search_attributes(updates)
        self._tell_operators()

    def _tell_operators(self) -> None:
        rows = {
            "Owner": self._start.owner,
            "State": "open" if self._ending is None else f"ending: {self._ending}",
            "Since": f"{self._kept.created_at:%Y-%m-%d %H:%M:%S} UTC",
            "Open sandboxes": ", ".join(self._open_ids()) or "-",
            "Next": f"ends at {self._ends_at():%Y-%m-%d %H:%M:%S} UTC at the latest; "
            f"looks whether it is idle at {self._idle_at():%Y-%m-%d %H:%M:%S} UTC",
        }
        workflow.set_current_details(markdown_table(rows))

    def _envelope(self, asked: CallRequest | LedgerEntry, outcome: CallOutcome | None) -> CallEnvelope:
        return envelope(self._start.session_id, self._created_by(asked.call_id), asked, outcome)

    def _created_by(self, call_id: str) -> str | None:
        for book in self._kept.sandboxes:
            if book.create_call_id == call_id:
                return book.sandbox_id
        return None
