"""Whose session it is: asked before anything of one session is given to another."""

from __future__ import annotations

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.storage import SessionStorage
from sandhold.storage.remains import Remains
from sandhold.temporal import session_start


class SessionOwners:
    """Knows owners by Temporal's record of a session, and once that is gone by the mark of its end in storage."""

    def __init__(self, client: Client, storage: SessionStorage, deployment: str) -> None:
        self._client = client
        self._objects = storage.objects
        self._deployment = deployment

    async def check(self, session_id: str, owner: str) -> None:
        """Return when the session is this owner's.

        Raises ToolFailure `session_not_found` when it is not, and also when nobody can say whose it is: who asks does
        not learn whether others have such a session. Raises RPCError when Temporal does not answer.
        """
        known = {await self._by_temporal(session_id), await self._by_mark(session_id)} - {None}
        if known != {owner}:
            raise ToolFailure(
                ErrorCode.SESSION_NOT_FOUND,
                f"this owner has no session {session_id!r}, or nobody can say any more that it was this owner's",
                hint="Name a session of the same owner whose storage is still kept.",
            )

    async def _by_temporal(self, session_id: str) -> str | None:
        try:
            return (await session_start(self._client, session_id)).owner
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise

    async def _by_mark(self, session_id: str) -> str | None:
        mark = await Remains(self._objects, session_id).mark()
        if mark is None or mark.deployment != self._deployment:
            return None
        return mark.owner
