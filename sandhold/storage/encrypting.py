"""Encrypting what versions before encryption have stored, in place, object by object.

Nobody may write to the storage meanwhile: what is written between the look at an object and its encryption is lost. Who
is interrupted goes on by beginning again: an object lies there as it was, or encrypted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

from sandhold.security import KeyRing
from sandhold.storage.errors import KeyRingAway, ObjectMissing, StorageError, StoredInTheClear
from sandhold.storage.folder import FoundFile
from sandhold.storage.objects import PART_BYTES, SessionObjects, beginning_of, root_of
from sandhold.storage.raw import RawObjects
from sandhold.storage.sealing import Seal, check_header
from sandhold.storage.session_keys import SESSION_KEY, SessionKeys

_AT_ONCE = 16


@dataclass(frozen=True)
class Encrypted:
    """What became of one object."""

    path: str
    size: int
    """As it is stored now."""
    was_encrypted: bool = False
    error: StorageError | None = None
    """Why it stays as it is."""


class Encryption:
    """Looks at all that a storage holds, and encrypts what is not. Raises StorageError when the storage is away."""

    def __init__(self, url: str, ring: KeyRing) -> None:
        """Raises ValueError for a URL that names no storage."""
        self._raw = RawObjects.open(url)
        self._keys = SessionKeys(self._raw, ring, root_of)
        self._objects = SessionObjects(self._raw, self._keys)

    async def sessions(self) -> list[str]:
        """The ids of all sessions of which something is stored, in order."""
        return await self._objects.sessions()

    async def encrypt(self, session_id: str, *, dry_run: bool) -> AsyncIterator[Encrypted]:
        """Encrypt what a session has stored. A dry run only tells what would be."""
        async for page in self._raw.list(root_of(session_id)):
            small = [each for each in page if each.size < PART_BYTES]
            for start in range(0, len(small), _AT_ONCE):
                for done in await self._all_of(session_id, small[start : start + _AT_ONCE], dry_run):
                    yield done
            for each in page:
                if each.size >= PART_BYTES:
                    for done in await self._all_of(session_id, [each], dry_run):
                        yield done

    async def fault_within(self, session_id: str, path: str) -> StorageError | None:
        """Why an encrypted object cannot be read to its end; None when it can, or is gone. Reads all of it."""
        try:
            async for _ in self._objects.read(session_id, path):
                pass
        except ObjectMissing:
            return None
        except KeyRingAway:
            raise
        except StorageError as error:
            if error.retryable:
                raise
            return error
        return None

    async def _all_of(self, session_id: str, found: Sequence[FoundFile], dry_run: bool) -> list[Encrypted]:
        became = await asyncio.gather(*(self._one(session_id, each, dry_run) for each in found))
        return [each for each in became if each is not None]

    async def _one(self, session_id: str, found: FoundFile, dry_run: bool) -> Encrypted | None:
        """What became of an object; None of what is none, or is gone."""
        path = found.path.removeprefix(f"{root_of(session_id)}/")
        if path == SESSION_KEY:
            return None
        try:
            header = await beginning_of(self._raw, found.path, path)
            try:
                check_header(header, path)
            except StoredInTheClear:
                if not dry_run:
                    await self._encrypt(session_id, found, path)
                return Encrypted(path, found.size)
            Seal.of(await self._keys.to_read(session_id), header, session_id, path)
        except ObjectMissing:
            return None
        except KeyRingAway:
            raise
        except StorageError as error:
            if error.retryable:
                raise
            return Encrypted(path, found.size, error=error)
        return Encrypted(path, found.size, was_encrypted=True)

    async def _encrypt(self, session_id: str, found: FoundFile, path: str) -> None:
        await self._keys.to_write(session_id, partial(self._objects.holds_encrypted, session_id))
        if found.size < PART_BYTES:
            await self._objects.put(session_id, path, bytes(await self._raw.get(found.path, path)))
        else:
            await self._objects.write(session_id, path, self._raw.reading(found.path, path).pieces())
