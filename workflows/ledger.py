"""What the workflow knows of its calls: each runs once per call id, and whoever asks again gets the same answer."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from workflows.patches import Patch

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import (
        MESSAGE_LIMIT_BYTES,
        CallEnvelope,
        CallOutcome,
        CallRequest,
        json_bytes,
    )
    from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure, as_application_error
    from sandhold.contracts.names import DRAINING, is_call_id
    from sandhold.contracts.sandboxes import LedgerEntry, SandboxCarried
    from sandhold.contracts.tools import tool_named

LEDGER_LIMIT = 500
RUNNING_LIMIT = 400
"""Calls that may run at once; running ones never leave the ledger."""
RUNNING_LIMIT_BYTES = 1024 * 1024
"""Arguments of running calls together: they go along when the workflow continues as new, in one message of which the
server takes 2 MiB."""

CARRIED_LIMIT_BYTES = 1792 * 1024
"""All that goes along when the workflow continues as new. What runs always fits: the arguments of running calls, the
longest ids of 400 of them, and 200 running and 100 ended commands come to 1.6 MiB."""


class Call:
    """A call in this run: its entry in the ledger, and what only those who wait for it need."""

    def __init__(self, entry: LedgerEntry) -> None:
        self.entry = entry
        self.argument_bytes = argument_bytes(entry.request)
        self.slow = entry.outcome is None
        """Whether to answer `running` instead of waiting any longer; nobody waits for one carried over."""
        self.sent = self.slow
        """Whether it may have reached the inside of the sandbox; of one carried over that is not known."""
        self.begun_at = workflow.now()
        self.ended_at: datetime | None = None
        """None while it runs, and for one that had ended when this run began."""
        self._fresh: CallOutcome | None = None

    @property
    def call_id(self) -> str:
        return self.entry.call_id

    @property
    def running(self) -> bool:
        return self.entry.outcome is None

    def finish(self, outcome: CallOutcome) -> None:
        """Record how the call ended; the first outcome stands."""
        if self.entry.outcome is not None:
            return
        self._fresh = outcome
        self.ended_at = workflow.now()
        self.entry.outcome = outcome.for_ledger()
        self.entry.request = None
        self.argument_bytes = 0

    def answered(self) -> bool:
        return self.slow or not self.running

    def forget_arguments(self) -> None:
        """Drop what the call no longer needs to go on: that it runs, and which tool it is, stays on record."""
        if self.entry.request is not None:
            self.entry.request = self.entry.request.model_copy(update={"arguments": None, "arguments_ref": None})
            self.argument_bytes = 0

    def take_outcome(self) -> CallOutcome | None:
        """The outcome, the first time with the whole of a result that the ledger keeps by reference only."""
        fresh, self._fresh = self._fresh, None
        return fresh or self.entry.outcome


class Ledger:
    """The calls by id, oldest first; those that ended first make room for new ones."""

    def __init__(self, entries: list[LedgerEntry]) -> None:
        self._calls = {entry.call_id: Call(entry) for entry in entries}

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._calls

    def get(self, call_id: str) -> Call | None:
        return self._calls.get(call_id)

    def running(self) -> Iterator[Call]:
        return (call for call in self._calls.values() if call.running)

    def entries(self) -> list[LedgerEntry]:
        """What goes along to the next run: first what has ended, in the order of the ends, then what runs."""
        return [call.entry for call in (*self._ended_in_order(), *self.running())]

    def known(self, request: CallRequest) -> Call | None:
        """The call that `request` repeats; None also for one that was refused only for now, and is forgotten by this.

        Raises ToolFailure when the id was used for another call.
        """
        call = self._calls.get(request.call_id)
        if call is not None and call.entry.refused_for_now and workflow.patched(Patch.REFUSED_FOR_NOW):
            del self._calls[request.call_id]
            return None
        if call is not None and call.entry.fingerprint != request.fingerprint():
            raise conflict(request.call_id)
        return call

    def check_room(self, request: CallRequest) -> None:
        """Raises ToolFailure `quota_exceeded` when too much runs to take another call on."""
        refused = self.no_room(request)
        if refused is not None:
            raise ToolFailure(**refused.model_dump())

    def no_room(self, request: CallRequest) -> ToolError | None:
        """Why too much runs to take another call on; None when it does not."""
        running = list(self.running())
        held = sum(call.argument_bytes for call in running) + argument_bytes(request)
        if len(running) < RUNNING_LIMIT and held <= RUNNING_LIMIT_BYTES:
            return None
        return ToolError(
            code=ErrorCode.QUOTA_EXCEEDED,
            message=f"{len(running)} calls run already, with {held} bytes of arguments; at most {RUNNING_LIMIT} calls "
            f"and {RUNNING_LIMIT_BYTES} bytes at once",
            hint="Wait for running calls to end. Large arguments can go by reference to session storage.",
            retryable=True,
        )

    def open(self, request: CallRequest) -> Call:
        """Record a new call as running."""
        call = Call(
            LedgerEntry(
                call_id=request.call_id,
                tool=request.tool,
                fingerprint=request.fingerprint(),
                asked_at=workflow.now(),
                request=request,
            )
        )
        call.slow = call.sent = False
        self._calls[request.call_id] = call
        self._make_room()
        return call

    def refuse(self, request: CallRequest, error: ToolError) -> None:
        """Record a refused call, for those who cannot be answered directly and will ask for its result."""
        if request.call_id not in self._calls and is_call_id(request.call_id):
            call = self.open(request)
            call.finish(CallOutcome(error=error))
            call.entry.refused_for_now = error.retryable and not error.ambiguous

    def _make_room(self) -> None:
        """Forget calls that have ended: not a long one that has just ended, as whoever waits for it has yet to hear."""
        surplus = len(self._calls) - LEDGER_LIMIT
        if surplus <= 0:
            return
        by_end = workflow.patched(Patch.FORGOTTEN_BY_END)
        for call in (self._ended_in_order() if by_end else self._ended())[:surplus]:
            del self._calls[call.call_id]

    def _ended(self) -> list[Call]:
        return [call for call in self._calls.values() if not call.running]

    def _ended_in_order(self) -> list[Call]:
        """The calls that have ended, first those that ended first. Those carried over came in that order."""
        return sorted(self._ended(), key=lambda call: (call.ended_at is not None, call.ended_at or call.begun_at))


def without_surplus(carried: SandboxCarried) -> SandboxCarried:
    """The same without the calls that ended first, as far as the whole is larger than CARRIED_LIMIT_BYTES."""
    surplus = len(carried.model_dump_json().encode()) - CARRIED_LIMIT_BYTES
    kept: list[LedgerEntry] = []
    for entry in carried.ledger:
        if surplus > 0 and entry.outcome is not None:
            surplus -= len(entry.model_dump_json().encode())
        else:
            kept.append(entry)
    return carried.model_copy(update={"ledger": kept})


def conflict(call_id: str) -> ToolFailure:
    """The failure of a call whose id belongs to another one."""
    return ToolFailure(
        ErrorCode.CALL_ID_CONFLICT,
        f"call id {call_id!r} was used for another call",
        hint="Use a new call id for every call.",
    )


def argument_bytes(request: CallRequest | None) -> int:
    """What the arguments weigh in a message."""
    return 0 if request is None or request.arguments is None else len(json_bytes(request.arguments))


def too_large(request: CallRequest) -> ToolError | None:
    """Why the arguments may not go any further than the message that brought them; None when they may."""
    if argument_bytes(request) <= MESSAGE_LIMIT_BYTES:
        return None
    return ToolError(
        code=ErrorCode.TOO_LARGE,
        message=f"the arguments are larger than {MESSAGE_LIMIT_BYTES} bytes",
        hint="Put large arguments into session storage and send a reference; the client does so by itself.",
    )


def check_size(request: CallRequest) -> None:
    """Refuse what would burden the history; for update validators, whose refusals are not recorded."""
    error = too_large(request)
    if error is not None:
        raise as_application_error(error)


def refuse_while_draining(draining: bool) -> None:
    """Refuse calls while the workflow drains; for update validators. The caller sends the same call again."""
    if draining:
        raise ApplicationError("the workflow is about to continue as new; send the same call again", type=DRAINING)


def check_identity(request: CallRequest) -> None:
    """Raises ToolFailure when the call id or the tool's name cannot be."""
    if not is_call_id(request.call_id):
        raise ToolFailure(
            ErrorCode.INVALID_ARGUMENTS,
            "the call id must be 1 to 128 letters, digits or any of _ . : -",
        )
    tool_named(request.tool)


def envelope(
    session_id: str,
    sandbox_id: str | None,
    asked: CallRequest | LedgerEntry,
    outcome: CallOutcome | None,
    *,
    generation: int | None = None,
) -> CallEnvelope:
    """The answer to a call; `running` while there is no outcome."""
    answer = CallEnvelope(
        call_id=asked.call_id[:128],
        session_id=session_id,
        sandbox_id=sandbox_id,
        tool=asked.tool[:100],
        status="running" if outcome is None else "done",
        fingerprint=asked.fingerprint if isinstance(asked, LedgerEntry) else None,
        generation=generation,
    )
    if outcome is not None:
        answer.ok = outcome.ok
        answer.result = outcome.result
        answer.result_ref = outcome.result_ref if outcome.result is None else None
        answer.error = outcome.error
    return answer
