"""The one way to the bytes of a session's objects: every object is read and written here, and nowhere else.

Objects lie below `sessions/<session_id>/`. Whoever calls names a session and a path below it, never a key of the store,
and sees the bytes and sizes as they were given. What the store holds of them is encrypted (`sealing`), under a key per
session (`session_keys`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from sandhold.contracts.names import is_id
from sandhold.security import KeyRing
from sandhold.security.holders import SealedRow
from sandhold.storage.blocks import in_blocks
from sandhold.storage.errors import ObjectChanged, ObjectMissing, StorageDamaged, StorageError, StoredInTheClear
from sandhold.storage.raw import PART_BYTES, RawObjects, Reading
from sandhold.storage.sealing import (
    CHUNK_BYTES,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    Seal,
    check_header,
    checked_size,
    chunk_at,
    chunks_of,
    size_of,
)
from sandhold.storage.session_keys import SESSION_KEY, SessionKeys, place_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["PART_BYTES", "Admit", "SessionObjects", "StoredObject"]

_ROOT = "sessions"
_CLAIM = "deployment"
_KEYS_AT_ONCE = 16
_BEGUN_ANEW = 3
"""How often a read looks again for an object that was replaced before the first byte of it was given out."""


@dataclass(frozen=True)
class StoredObject:
    """An object, by its path below its session."""

    path: str
    size: int
    modified_at: datetime


SealedRows = list[SealedRow]
Admit = Callable[[str, bool], Awaitable[None]]
"""Asked before anything is done to what lies under a session's id, and told whether that is a write."""


async def _everyone(session_id: str, is_write: bool) -> None:
    """Admits all."""


class SessionObjects:
    """Reads and writes the objects of sessions. An object is there as a whole or not at all, and never changes in part.

    Raises StorageError and nothing of the store's own. No byte is given out that was not stored under its session and
    path: else StorageDamaged, and StorageLocked where the key of the session cannot be had.
    """

    def __init__(self, raw: RawObjects, keys: SessionKeys, admit: Admit = _everyone) -> None:
        self._raw = raw
        self._keys = keys
        self._admit = admit
        self._sealed_left: tuple[str, list[str]] = ("", [])
        """How far the last batch of sealed keys came, and the sessions behind it."""

    @classmethod
    def open(cls, url: str, ring: KeyRing) -> SessionObjects:
        raw = RawObjects.open(url)
        return cls(raw, SessionKeys(raw, ring, root_of))

    def guarded(self, admit: Admit) -> SessionObjects:
        """The same objects for whom `admit` lets pass."""
        return SessionObjects(self._raw, self._keys, admit)

    async def put(self, session_id: str, path: str, data: bytes) -> None:
        """Store `data`, in place of what was there."""
        key = _key(session_id, path)
        await self._admit(session_id, True)
        seal = await self._new_seal(session_id, path)
        await self._raw.put(key, path, seal.sealed(data))

    async def put_new(self, session_id: str, path: str, data: bytes) -> bool:
        """Store `data` if nothing is there; whether it was stored. Of several at once one is."""
        key = _key(session_id, path)
        await self._admit(session_id, True)
        seal = await self._new_seal(session_id, path)
        return await self._raw.put_new(key, path, seal.sealed(data))

    async def write(self, session_id: str, path: str, pieces: AsyncIterable[Buffer]) -> int:
        """Store all of `pieces`, in place of what was there, in constant memory; how many bytes they were.

        When `pieces` raises, or this is cancelled, nothing is stored, and what was there stays.
        """
        key = _key(session_id, path)
        blocks = in_blocks(pieces, PART_BYTES)
        held = await anext(blocks, b"")
        if len(held) < PART_BYTES:
            await self.put(session_id, path, held)
            return len(held)
        await self._admit(session_id, True)
        seal = await self._new_seal(session_id, path)
        async with self._raw.upload(key, path) as upload:
            number, written = 0, len(held)
            async for block in blocks:  # Its errors are the caller's own.
                await upload.give(seal.sealed(held, number, is_end=False))
                number += PART_BYTES // CHUNK_BYTES
                written += len(block)
                held = block
            await upload.give(seal.sealed(held, number))
            await upload.end()
        return written

    async def get(self, session_id: str, path: str) -> bytes | None:
        """What is stored; None when nothing is."""
        key = _key(session_id, path)
        await self._admit(session_id, False)
        try:
            stored = memoryview(await self._raw.get(key, path))
        except ObjectMissing:
            return None
        seal = await self._seal_of(session_id, path, bytes(stored[:HEADER_BYTES]))
        return seal.opened_all(stored)

    async def read(self, session_id: str, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`, in pieces of up to a chunk; none where the object has none.

        However long the reader takes. Raises ObjectMissing and ObjectChanged.
        """
        if end is not None and start >= end:
            return
        _key(session_id, path)
        await self._admit(session_id, False)
        attempt = 1
        while True:
            given = False
            try:
                async for piece in self._read(session_id, path, start, end):
                    given = True
                    yield piece
            except ObjectChanged:
                if given or attempt == _BEGUN_ANEW:
                    raise
                attempt += 1
            else:
                return

    async def _read(self, session_id: str, path: str, start: int, end: int | None) -> AsyncIterator[bytes]:
        key = _key(session_id, path)
        number = start // CHUNK_BYTES
        behind = None if end is None else chunk_at(chunks_of(end))
        if number == 0:
            reading = self._raw.reading(key, path, 0, behind)
            blocks = in_blocks(reading.pieces(), SEALED_CHUNK_BYTES, ahead=HEADER_BYTES)
            block = await anext(blocks, b"")
            header, chunk = block[:HEADER_BYTES], memoryview(block)[HEADER_BYTES:]
        else:
            beginning = self._raw.reading(key, path, 0, HEADER_BYTES)
            header = await _all_of(beginning)
            check_header(header, path)
            # Where it ends is for the last chunk to say, also to who asks for what lies behind it.
            number = min(number, chunks_of(checked_size(beginning.size, path)) - 1)
            reading = self._raw.reading(key, path, chunk_at(number), behind, beginning.version)
            blocks = in_blocks(reading.pieces(), SEALED_CHUNK_BYTES)
            chunk = memoryview(await anext(blocks, b""))
        seal = await self._seal_of(session_id, path, header)
        count = chunks_of(checked_size(reading.size, path))
        wanted = count if end is None else min(count, chunks_of(end))
        while True:
            piece = seal.opened(chunk, number, is_last=number == count - 1)
            first = number * CHUNK_BYTES
            if start > first or (end is not None and end < first + len(piece)):
                piece = piece[max(0, start - first) : None if end is None else max(0, end - first)]
            if piece:
                yield piece
            number += 1
            if number == wanted:
                return
            chunk = memoryview(await anext(blocks, b""))

    async def find(self, session_id: str, path: str) -> StoredObject | None:
        """The object's size and time; None when there is none."""
        key = _key(session_id, path)
        await self._admit(session_id, False)
        try:
            found = await self._raw.find(key, path)
        except ObjectMissing:
            return None
        return StoredObject(path, size_of(found.size), found.modified_at)

    async def sessions(self) -> list[str]:
        """The ids of all sessions of which something is stored, in order."""
        return sorted(name for name in await self._raw.folders(_ROOT) if is_id(name))

    async def list(self, session_id: str, folder: str = "", after: str = "") -> AsyncIterator[StoredObject]:
        """What lies in `folder` and the folders below it, in the byte order of the paths, those beyond `after`.

        Takes the memory of a page; in a local folder also that of the names in one folder.
        """
        root = root_of(session_id)
        prefix = _key(session_id, folder) if folder else root
        await self._admit(session_id, False)
        async for batch in self._raw.list(prefix, f"{root}/{after}" if after else ""):
            for each in batch:
                path = each.path.removeprefix(f"{root}/")
                if path != SESSION_KEY:
                    yield StoredObject(path, size_of(each.size), each.modified_at)

    async def delete(self, session_id: str, paths: Sequence[str]) -> None:
        """Remove these objects; it is fine when some are not there."""
        keys = [_key(session_id, path) for path in paths]
        await self._admit(session_id, True)
        await self._raw.delete(keys)

    async def key_laid_at(self, session_id: str) -> datetime | None:
        """When the session's key was stored as it is; None when there is none."""
        try:
            return (await self._raw.find(f"{root_of(session_id)}/{SESSION_KEY}", SESSION_KEY)).modified_at
        except ObjectMissing:
            return None

    async def remove_key(self, session_id: str) -> None:
        """Remove the session's key, once nothing else of the session is stored; it is fine when there is none."""
        await self._admit(session_id, True)
        await self._keys.remove(session_id)

    async def sealed_batch(self, after: str, limit: int) -> SealedRows:
        """The next sessions' keys, sealed under the key ring, behind the cursor `after`; none at the end.

        Of a session that has encrypted objects and no key, a row that says so.
        """
        reached, left = self._sealed_left
        # Whoever goes on where a batch ended goes on in the list of then.
        sessions = left if after and after == reached else [each for each in await self.sessions() if each > after]
        rows: SealedRows = []
        at = 0
        while at < len(sessions) and len(rows) < limit:
            some = sessions[at : at + min(_KEYS_AT_ONCE, limit - len(rows))]
            found = await asyncio.gather(*(self._sealed_or_fault(each) for each in some))
            rows += [row for row in found if row is not None]
            at += len(some)
        self._sealed_left = (rows[-1].cursor, sessions[at:]) if rows else ("", [])
        return rows

    async def _sealed_or_fault(self, session_id: str) -> SealedRow | None:
        row = await self._keys.sealed(session_id)
        if row is None and await self.holds_encrypted(session_id):
            # The first object may have come just now, and the key before it.
            row = await self._keys.sealed(session_id)
            if row is None:
                return SealedRow(
                    session_id, place_of(session_id), b"", "objects are encrypted under it, and it is missing"
                )
        return row

    async def replace_sealed(self, row: SealedRow, new: bytes) -> bool:
        """Store a session's key wrapped otherwise, if `row` is what is stored; whether it was."""
        return await self._keys.replace_sealed(row, new)

    async def claim(self, deployment: str) -> str:
        """The deployment to which this storage belongs: `deployment`, unless another one has claimed it before."""
        if await self._raw.put_new(_CLAIM, _CLAIM, deployment.encode()):
            return deployment
        return await self.claimed_by() or deployment

    async def claimed_by(self) -> str | None:
        """The deployment to which this storage belongs; None before one has claimed it."""
        try:
            return bytes(await self._raw.get(_CLAIM, _CLAIM)).decode()
        except ObjectMissing:
            return None

    async def remove_unfinished(self, older_than_s: float) -> int:
        """Remove what killed writers left in a local folder; how many files. A bucket has rules of its own for this."""
        return await self._raw.remove_unfinished(older_than_s)

    async def _new_seal(self, session_id: str, path: str) -> Seal:
        cipher = await self._keys.to_write(session_id, partial(self._holds_something, session_id))
        return Seal.new(cipher, session_id, path)

    async def _seal_of(self, session_id: str, path: str, header: bytes) -> Seal:
        check_header(header, path)
        cipher = await self._keys.to_read(session_id)
        try:
            return Seal.of(cipher, header, session_id, path)
        except StorageDamaged:
            # The storage of an earlier session of this id may have gone, and its key with it.
            other = await self._keys.to_read_again(session_id, cipher)
            if other is None:
                raise
            return Seal.of(other, header, session_id, path)

    async def holds_encrypted(self, session_id: str) -> bool:
        """Whether any object of this session is encrypted, be it under a key that is not there any more."""
        root = root_of(session_id)
        async for batch in self._raw.list(root):
            for each in batch:
                path = each.path.removeprefix(f"{root}/")
                if path == SESSION_KEY:
                    continue
                try:
                    check_header(await beginning_of(self._raw, each.path, path), path)
                except (StoredInTheClear, ObjectMissing):
                    continue
                except StorageDamaged:
                    pass
                return True
        return False

    async def _holds_something(self, session_id: str) -> bool:
        """Whether objects of this session are stored. Raises StoredInTheClear when they are not encrypted."""
        root = root_of(session_id)
        async for batch in self._raw.list(root):
            for each in batch:
                path = each.path.removeprefix(f"{root}/")
                if path == SESSION_KEY:
                    continue
                with suppress(ObjectMissing):  # deleted meanwhile
                    check_header(await beginning_of(self._raw, each.path, path), path)
                    return True
        return False


async def beginning_of(raw: RawObjects, key: str, path: str) -> bytes:
    """What may be the header of an object."""
    return await _all_of(raw.reading(key, path, 0, HEADER_BYTES))


async def _all_of(reading: Reading) -> bytes:
    return b"".join([bytes(piece) async for piece in reading.pieces()])


def root_of(session_id: str) -> str:
    """The key of the store below which the objects of a session lie."""
    if not is_id(session_id):
        raise StorageError(f"{session_id!r} is not a session's id")
    return f"{_ROOT}/{session_id}"


def _key(session_id: str, path: str) -> str:
    root = root_of(session_id)
    if path == SESSION_KEY or any(part in {"", ".", ".."} for part in path.split("/")):
        raise StorageError(f"{path!r} is not a path in session storage")
    return f"{root}/{path}"
