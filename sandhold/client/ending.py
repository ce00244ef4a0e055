"""How a session is ended, and how its end is told, also when an operator closed its workflow by force."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError
from temporalio.exceptions import TimeoutError as WorkflowTimeout
from temporalio.service import RPCError, RPCStatusCode

from sandhold.client.absence import Absence
from sandhold.client.calls import CLOSED_WITH_UPDATE
from sandhold.client.errors import EndNotConfirmed, SessionEnded, SessionNotFound, TemporalRefused
from sandhold.client.requests import Deadline, TemporalRequests
from sandhold.contracts.base import Message
from sandhold.contracts.names import END_UPDATE, sandbox_workflow_id, session_workflow_id
from sandhold.contracts.sandboxes import SandboxOutcome
from sandhold.contracts.sessions import EndAnswer, EndedSandbox, EndRequest, SessionOutcome, SessionStatus

Result = TypeVar("Result", bound=Message)

_UPDATE_ID = "end"
"""The same for everyone: a session ends once, and the first reason stands."""


class Ending:
    """The end of one session."""

    def __init__(self, session_id: str, requests: TemporalRequests, absence: Absence) -> None:
        self._session_id = session_id
        self._workflow_id = session_workflow_id(session_id)
        self._requests = requests
        self._absence = absence

    async def begin(self, reason: str, deadline: Deadline) -> EndAnswer:
        """Return when the session is ending, or has ended before. Raises SessionNotFound."""
        try:
            return await self._requests.update(
                self._workflow_id,
                END_UPDATE,
                EndRequest(reason=reason),
                update_id=_UPDATE_ID,
                answer=EndAnswer,
                deadline=deadline,
            )
        except WorkflowUpdateFailedError as refusal:
            if not (isinstance(refusal.cause, ApplicationError) and refusal.cause.type == CLOSED_WITH_UPDATE):
                raise TemporalRefused(f"the session did not take the request to end: {refusal.cause}") from refusal
        except RPCError as error:
            refused = await self.refusal(error)
            if not isinstance(refused, SessionEnded):
                raise refused from error
        return EndAnswer(session_id=self._session_id, state="ended")

    async def outcome(
        self, status: Callable[[Deadline], Awaitable[SessionStatus]], deadline: Deadline
    ) -> SessionOutcome:
        """Wait for the end of the session and of everything it owned; `status` tells its books after its end.

        Raises SessionNotFound, and EndNotConfirmed when a sandbox's workflow was closed by force as well.
        """
        try:
            return await self._workflow_result(self._workflow_id, SessionOutcome, deadline)
        except WorkflowFailureError as failure:
            # Closed from outside: the server then told its sandboxes to clean up, and they tell how that went.
            try:
                books = await status(deadline)
            except SessionEnded:  # before it could have had a sandbox
                return SessionOutcome(session_id=self._session_id, reason=_closed_how(failure), sandboxes=[])
            return await self._outcome_of_sandboxes(books, failure, deadline)
        except RPCError as error:
            raise await self.refusal(error) from error

    async def refusal(self, error: RPCError) -> Exception:
        """What an RPC error about the session's workflow means."""
        if error.status is not RPCStatusCode.NOT_FOUND:
            return TemporalRefused(f"Temporal refused the request: {error.message}")
        if await self._absence.session_is_open(Deadline()) is None:
            return SessionNotFound(self._session_id)
        return SessionEnded(self._session_id)

    async def _outcome_of_sandboxes(
        self, status: SessionStatus, failure: WorkflowFailureError, deadline: Deadline
    ) -> SessionOutcome:
        ended: list[EndedSandbox] = []
        unconfirmed: list[str] = []
        for book in status.sandboxes:
            outcome, saved = book.ended, book.saved
            if outcome is None:
                workflow_id = sandbox_workflow_id(self._session_id, book.sandbox_id)
                try:
                    result = await self._workflow_result(workflow_id, SandboxOutcome, deadline)
                except (WorkflowFailureError, RPCError):
                    unconfirmed.append(book.sandbox_id)
                    continue
                outcome, saved = result.outcome, result.saved
            ended.append(EndedSandbox(sandbox_id=book.sandbox_id, outcome=outcome, saved=saved))
        if unconfirmed:
            raise EndNotConfirmed(self._session_id, unconfirmed) from failure
        return SessionOutcome(session_id=self._session_id, reason=_closed_how(failure), sandboxes=ended)

    async def _workflow_result(self, workflow_id: str, result: type[Result], deadline: Deadline) -> Result:
        handle = self._requests.client.get_workflow_handle(workflow_id, result_type=result)

        async def attempt(timeout: timedelta) -> Result:
            value: Result = await handle.result(rpc_timeout=timeout)
            return value

        return await self._requests.send(attempt, deadline=deadline)


def _closed_how(failure: WorkflowFailureError) -> str:
    cause = failure.cause
    if isinstance(cause, TerminatedError):
        return "terminated"
    if isinstance(cause, CancelledError):
        return "cancelled"
    if isinstance(cause, WorkflowTimeout):
        return "timed out"
    return "failed"
