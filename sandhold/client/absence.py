"""Why a workflow does not take a call: the session's books say what became of a sandbox that does not answer."""

from __future__ import annotations

from datetime import timedelta

from temporalio.service import RPCError, RPCStatusCode

from sandhold.client.requests import Deadline, TemporalRequests, is_open
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure
from sandhold.contracts.names import STATUS_QUERY, session_workflow_id
from sandhold.contracts.sessions import SessionStatus, why_gone


class Absence:
    """Explains what a session does not have (any more)."""

    def __init__(self, session_id: str, requests: TemporalRequests) -> None:
        self._session_id = session_id
        self._workflow_id = session_workflow_id(session_id)
        self._requests = requests

    async def session_is_open(self, deadline: Deadline) -> bool | None:
        """Whether the session's workflow runs; None when there is none of this id. Needs no worker."""
        handle = self._requests.client.get_workflow_handle(self._workflow_id)

        async def attempt(timeout: timedelta) -> bool:
            description = await handle.describe(rpc_timeout=timeout)
            return is_open(description.status)

        try:
            return await self._requests.send(attempt, deadline=deadline)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise

    async def sandbox_has_ended(self, sandbox_id: str | None, deadline: Deadline) -> bool:
        """Whether the open session has had this sandbox, and has confirmed its absence."""
        if sandbox_id is None or not await self.session_is_open(deadline):
            return False
        status = await self._requests.query(self._workflow_id, STATUS_QUERY, answer=SessionStatus, deadline=deadline)
        return any(book.sandbox_id == sandbox_id and book.ended is not None for book in status.sandboxes)

    async def explain(self, sandbox_id: str | None, deadline: Deadline) -> None:
        """Raise the ToolFailure that tells why a call was not taken.

        Returns when nothing is wrong by the books: the session, and its sandbox if one is named, are open.
        """
        is_open = await self.session_is_open(deadline)
        if is_open is None:
            raise ToolFailure(**session_not_found(self._session_id).model_dump())
        if not is_open:
            raise ToolFailure(**session_ended(self._session_id).model_dump())
        if sandbox_id is None:
            return
        status = await self._requests.query(self._workflow_id, STATUS_QUERY, answer=SessionStatus, deadline=deadline)
        book = next((book for book in status.sandboxes if book.sandbox_id == sandbox_id), None)
        if book is not None and book.ended is None:
            return
        if status.state == "ending" and (book is None or book.ended == "deleted"):
            message = f"session {self._session_id!r} is ending ({status.ending})"
            raise ToolFailure(ErrorCode.SESSION_ENDING, message)
        raise ToolFailure(**why_gone(sandbox_id, status.sandboxes).model_dump())


def session_not_found(session_id: str) -> ToolError:
    return ToolError(code=ErrorCode.SESSION_NOT_FOUND, message=f"there is no session {session_id!r}")


def session_ended(session_id: str) -> ToolError:
    return ToolError(
        code=ErrorCode.SESSION_ENDED,
        message=f"session {session_id!r} has ended, and its sandboxes were deleted",
        hint="Go on in a new session.",
    )
