"""Whose storage it is that lies under a session's id: that of one session, never that of the next one of this name.

Temporal refuses an id that it has seen, but it forgets a session long before its storage goes. So the first write of a
session lays a claim, which names the session's first run; that never comes again. Who then works for a session of
another run is refused. What earlier versions left bears no claim: it is an earlier session's when it is older than the
session, or when the end was noted before the session began.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

from pydantic import ValidationError

from sandhold.contracts.base import Message
from sandhold.contracts.sessions import SessionRecord
from sandhold.storage.errors import StorageOfAnother
from sandhold.storage.objects import SessionObjects
from sandhold.storage.remains import MarkUnreadable, Remains

CLAIM = "session.json"
KNOWN_FOR_S = 600.0
"""A claim stays at least as long as a session takes to end and Temporal to forget it."""
_SESSIONS_KEPT = 1000
_CLOCKS_APART = timedelta(minutes=10)
"""By how much the clocks of Temporal and of the storage may differ. Temporal remembers sessions for longer."""

Lookup = Callable[[str], Awaitable[SessionRecord | None]]
"""What Temporal knows of a session; None when nothing."""


class Claim(Message):
    """Lies in a session's storage from its first write on."""

    run_id: str
    """The first run of the session's workflow."""
    owner: str


class Claims:
    """The claims of a storage, held against what Temporal knows."""

    def __init__(self, objects: SessionObjects, lookup: Lookup) -> None:
        """`objects` are not guarded themselves."""
        self._objects = objects
        self._lookup = lookup
        self._admitted: dict[tuple[str, bool], float] = {}

    async def admit(self, session_id: str, is_write: bool) -> None:
        """Return when the storage under this id is the session's own, and for a write is claimed for it.

        A session that Temporal does not know (any more) is nobody's rival: it is let pass. Raises StorageOfAnother.
        """
        if time.monotonic() < self._admitted.get((session_id, is_write), 0.0):
            return
        known = await self._lookup(session_id)
        if known is None:
            return
        claim = await self.claim_of(session_id)
        if claim is None:
            if await self._is_older(session_id, known):
                raise StorageOfAnother(session_id)
            if is_write:
                claim = await self._laid(session_id, known)
        if claim is not None and claim.run_id != known.run_id:
            raise StorageOfAnother(session_id)
        if len(self._admitted) >= _SESSIONS_KEPT:
            self._admitted.clear()
        self._admitted[session_id, is_write] = time.monotonic() + KNOWN_FOR_S

    async def claim_of(self, session_id: str) -> Claim | None:
        """For whom the storage was claimed; None when nobody has. Raises StorageOfAnother when nobody can read it."""
        data = await self._objects.get(session_id, CLAIM)
        try:
            return None if data is None else Claim.model_validate_json(data)
        except ValidationError:
            raise StorageOfAnother(session_id) from None

    async def is_of(self, session_id: str, known: SessionRecord) -> bool:
        """Whether what lies under this id was left by this session, as far as anybody can tell. Writes nothing."""
        claim = await self.claim_of(session_id)
        return not await self._is_older(session_id, known) if claim is None else claim.run_id == known.run_id

    async def _laid(self, session_id: str, known: SessionRecord) -> Claim | None:
        """The claim once there is one: ours, or that of whoever came first."""
        claim = Claim(run_id=known.run_id, owner=known.start.owner)
        if await self._objects.put_new(session_id, CLAIM, claim.model_dump_json().encode()):
            return claim
        return await self.claim_of(session_id)

    async def _is_older(self, session_id: str, known: SessionRecord) -> bool:
        try:
            mark = await Remains(self._objects, session_id).mark()
        except MarkUnreadable:
            mark = None
        if mark is not None and mark.ended_at < known.created_at:
            return True
        async for each in self._objects.list(session_id):
            if each.modified_at < known.created_at - _CLOCKS_APART:
                return True
        return False
