"""Whose session it is: asked before anything of one session is given to another."""

from __future__ import annotations

from functools import partial

from temporalio.client import Client

from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.storage import SessionStorage
from sandhold.storage.claims import Claims
from sandhold.storage.errors import StorageOfAnother
from sandhold.storage.remains import MarkUnreadable, Remains
from sandhold.temporal import session_if_known


class SessionOwners:
    """Knows owners by Temporal's record of a session, and once that is gone by what lies in its storage.

    That is the mark of its end; the claim that its first write has laid must agree.
    """

    def __init__(self, client: Client, storage: SessionStorage, deployment: str) -> None:
        self._client = client
        self._objects = storage.objects
        self._claims = Claims(storage.objects, partial(session_if_known, client))
        self._deployment = deployment

    async def check(self, session_id: str, owner: str) -> None:
        """Return when the session is this owner's, and what lies under its id is the session's own.

        Raises ToolFailure `session_not_found` when it is not, and also when nobody can say whose it is: who asks does
        not learn whether others have such a session. Raises RPCError when Temporal does not answer.
        """
        try:
            known = await self._owners_of(session_id)
        except StorageOfAnother:
            known = set[str | None]()
        if known != {owner}:
            raise ToolFailure(
                ErrorCode.SESSION_NOT_FOUND,
                f"this owner has no session {session_id!r}, or nobody can say any more that it was this owner's",
                hint="Name a session of the same owner whose storage is still kept.",
            )

    async def _owners_of(self, session_id: str) -> set[str | None]:
        """The owner as everybody tells who knows one; several where they do not agree. Raises StorageOfAnother.

        A claim alone is no proof: it does not say in which deployment.
        """
        recorded = await session_if_known(self._client, session_id)
        if recorded is not None and not await self._claims.is_of(session_id, recorded):
            raise StorageOfAnother(session_id)
        by_temporal = None if recorded is None else recorded.start.owner
        known = {by_temporal, await self._by_mark(session_id)} - {None}
        claim = await self._claims.claim_of(session_id)
        return known | {claim.owner} if known and claim is not None else known

    async def _by_mark(self, session_id: str) -> str | None:
        try:
            mark = await Remains(self._objects, session_id).mark()
        except MarkUnreadable:
            return None
        if mark is None or mark.deployment != self._deployment:
            return None
        return mark.owner
