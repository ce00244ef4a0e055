"""The key of each session's storage: random, sealed under the key ring, in one small object beside what it encrypts.

Every object has a key of its own, wrapped by this one. So another primary key of the ring means one object per session
to be wrapped anew, whatever the session keeps.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sandhold.security import Envelope, KeyRing, KeyRingMissing, KeyRingUnusable, Place, SecurityError, new_data_key
from sandhold.security.holders import SealedRow
from sandhold.storage.errors import KeyRingAway, ObjectMissing, StorageLocked
from sandhold.storage.raw import RawObjects

logger = logging.getLogger("sandhold.storage")

SESSION_KEY = "session.key"
KNOWN_FOR_S = 600.0
"""For how long a key that was looked up for writing writes. A session's storage stays for longer than that after its
end, so nobody writes under the key of an earlier session of the same id."""
_SESSIONS_KEPT = 1000


@dataclass
class _Known:
    """A session's key in this process."""

    key: bytes
    cipher: AESGCM
    writes_until: float = 0.0


class SessionKeys:
    """The keys of the sessions of one storage. Raises StorageLocked, and KeyRingAway when the ring cannot be asked.

    `root` gives the key of the store below which a session's objects lie.
    """

    def __init__(self, raw: RawObjects, ring: KeyRing, root: Callable[[str], str]) -> None:
        self._raw = raw
        self._envelope = Envelope(ring)
        self._root = root
        self._known: dict[str, _Known] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def to_read(self, session_id: str) -> AESGCM:
        """The key of what is stored."""
        known = self._known.get(session_id)
        if known is not None:
            return known.cipher
        async with self._locks.setdefault(session_id, asyncio.Lock()):
            known = self._known.get(session_id) or await self._found(session_id)
        if known is None:
            raise _missing(session_id)
        return known.cipher

    async def to_read_again(self, session_id: str, failed: AESGCM) -> AESGCM | None:
        """The key that is stored now, where it is another one than that which has failed."""
        async with self._locks.setdefault(session_id, asyncio.Lock()):
            before = self._known.get(session_id)
            if before is not None and before.cipher is not failed:
                return before.cipher
            found = await self._found(session_id)
        if found is None:
            raise _missing(session_id)
        return None if found is before else found.cipher

    async def to_write(self, session_id: str, is_beside_others: Callable[[], Awaitable[bool]]) -> AESGCM:
        """The key of what is to be stored; the first write of a session makes it.

        There is none to be made where `is_beside_others`: what is stored already has been encrypted under another one.
        """
        known = self._known.get(session_id)
        if known is not None and time.monotonic() < known.writes_until:
            return known.cipher
        async with self._locks.setdefault(session_id, asyncio.Lock()):
            known = self._known.get(session_id)
            if known is None or time.monotonic() >= known.writes_until:
                known = await self._found(session_id)
                if known is None and await is_beside_others():
                    # Of two first writers one may have come as far as that.
                    known = await self._found(session_id)
                    if known is None:
                        raise _missing(session_id)
                known = known or await self._laid(session_id)
                known.writes_until = time.monotonic() + KNOWN_FOR_S
        return known.cipher

    async def remove(self, session_id: str) -> None:
        """Remove the key: what is stored under it is gone with it."""
        self._known.pop(session_id, None)
        await self._raw.delete([self._key(session_id)])

    async def sealed(self, session_id: str) -> SealedRow | None:
        """The session's key as it is stored; None when there is none."""
        try:
            data = bytes(await self._raw.get(self._key(session_id), SESSION_KEY))
        except ObjectMissing:
            return None
        return SealedRow(session_id, place_of(session_id), data)

    async def replace_sealed(self, row: SealedRow, new: bytes) -> bool:
        """Store the same key, wrapped otherwise, if `row` is what is stored; whether it was.

        Who is overtaken in a local folder does no harm: all that anybody puts there opens to the same key.
        """
        return await self._raw.replace(self._key(row.cursor), SESSION_KEY, row.sealed, new)

    async def _found(self, session_id: str) -> _Known | None:
        """The stored key, known from now on; the known one when it is that."""
        row = await self.sealed(session_id)
        if row is None:
            self._known.pop(session_id, None)
            return None
        try:
            key = await self._envelope.open(row.sealed, row.place)
            cipher = AESGCM(key)
        except (KeyRingMissing, KeyRingUnusable) as error:
            raise _away(error) from None
        except (SecurityError, ValueError) as error:
            raise StorageLocked(f"the storage of session {session_id!r} cannot be opened: {error}") from None
        known = self._known.get(session_id)
        return known if known is not None and known.key == key else self._noted(session_id, _Known(key, cipher))

    async def _laid(self, session_id: str) -> _Known:
        """The key once there is one: ours, or that of whoever came first."""
        key = new_data_key()
        try:
            sealed = await self._envelope.seal(key, place_of(session_id))
        except SecurityError as error:
            raise _away(error) from None
        if await self._raw.put_new(self._key(session_id), SESSION_KEY, sealed):
            # What is stored under it may reach the disk before it does.
            await self._raw.make_durable(self._key(session_id), SESSION_KEY)
            return self._noted(session_id, _Known(key, AESGCM(key)))
        found = await self._found(session_id)
        if found is None:
            raise _missing(session_id)
        return found

    def _noted(self, session_id: str, known: _Known) -> _Known:
        if len(self._known) >= _SESSIONS_KEPT:
            self._known.clear()
        self._known[session_id] = known
        return known

    def _key(self, session_id: str) -> str:
        return f"{self._root(session_id)}/{SESSION_KEY}"


def place_of(session_id: str) -> Place:
    """The place of a session's key."""
    return Place("storage", "", session_id, "key")


def _away(error: SecurityError) -> KeyRingAway:
    """Where the ring is, is for the log: the error goes to whoever called, and into the history of workflows."""
    away = KeyRingAway("the key ring of the session storage cannot be used")
    logger.warning("%s", away, extra={"error": type(error).__name__, "reason": str(error)})
    return away


def _missing(session_id: str) -> StorageLocked:
    return StorageLocked(f"the storage of session {session_id!r} cannot be opened: its key is missing")
