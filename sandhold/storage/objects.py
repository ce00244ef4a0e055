"""The one way to the bytes of a session's objects: every object is read and written here, and nowhere else.

Objects lie below `sessions/<session_id>/`. Whoever calls names a session and a path below it, never a key of the store,
and sees the bytes as they were given. So they can be kept otherwise (in encrypted chunks) without any caller's change.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, GenericError, JoinError
from obstore.store import ObjectStore

from sandhold.contracts.names import is_id
from sandhold.contracts.storage_url import local_folder
from sandhold.storage.blocks import in_blocks
from sandhold.storage.errors import ObjectChanged, ObjectMissing, StorageError, missing_errors, named_errors
from sandhold.storage.feed import Feed
from sandhold.storage.folder import FoundFile, remove_unfinished, walk
from sandhold.storage.location import open_store

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult

PART_BYTES = 5 * 1024 * 1024
"""An object above this is sent in parts of this size: the least that S3 takes, which has room for 10,000 of them."""
_PARTS_AT_ONCE = 2
_PIECE_BYTES = 1024 * 1024
_PAGE = 1000
_FUTILE_READS = 3
"""A read that broke off goes on, unless so many requests in a row have brought nothing."""
_ROOT = "sessions"
_CLAIM = "deployment"


@dataclass(frozen=True)
class StoredObject:
    """An object, by its path below its session."""

    path: str
    size: int
    modified_at: datetime


Admit = Callable[[str, bool], Awaitable[None]]
"""Asked before anything is done to what lies under a session's id, and told whether that is a write."""


async def _everyone(session_id: str, is_write: bool) -> None:
    """Admits all."""


class SessionObjects:
    """Reads and writes the objects of sessions. An object is there as a whole or not at all, and never changes in part.

    Raises StorageError and nothing of the store's own.
    """

    def __init__(self, store: ObjectStore, folder: Path | None = None, admit: Admit = _everyone) -> None:
        self._store = store
        self._folder = folder
        self._admit = admit

    @classmethod
    def open(cls, url: str) -> SessionObjects:
        return cls(open_store(url), local_folder(url))

    def guarded(self, admit: Admit) -> SessionObjects:
        """The same objects for whom `admit` lets pass."""
        return SessionObjects(self._store, self._folder, admit)

    async def put(self, session_id: str, path: str, data: bytes) -> None:
        """Store `data`, in place of what was there."""
        key = _key(session_id, path)
        await self._admit(session_id, True)
        with named_errors(path):
            await obstore.put_async(self._store, key, data, use_multipart=False)

    async def put_new(self, session_id: str, path: str, data: bytes) -> bool:
        """Store `data` if nothing is there; whether it was stored. Of several at once one is."""
        key = _key(session_id, path)
        await self._admit(session_id, True)
        with named_errors(path):
            try:
                await obstore.put_async(self._store, key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    async def write(self, session_id: str, path: str, pieces: AsyncIterable[bytes]) -> int:
        """Store all of `pieces`, in place of what was there, in constant memory; how many bytes they were.

        When `pieces` raises, or this is cancelled, nothing is stored, and what was there stays.
        """
        key = _key(session_id, path)
        blocks = in_blocks(pieces, PART_BYTES)
        first = await anext(blocks, b"")
        if len(first) < PART_BYTES:
            await self.put(session_id, path, first)
            return len(first)
        await self._admit(session_id, True)
        # obstore gives an upload up, with all its parts, when its source raises; not when it is cancelled (0.11).
        async with Feed() as feed:
            feed.into(
                obstore.put_async(self._store, key, feed.taken(), chunk_size=PART_BYTES, max_concurrency=_PARTS_AT_ONCE)
            )
            written = len(first)
            with named_errors(path):
                await feed.give(first)
            async for block in blocks:  # Its errors are the caller's own.
                written += len(block)
                with named_errors(path):
                    await feed.give(block)
            with named_errors(path):
                await feed.end()
        return written

    async def get(self, session_id: str, path: str) -> bytes | None:
        """What is stored; None when nothing is."""
        key = _key(session_id, path)
        await self._admit(session_id, False)
        try:
            with missing_errors(path):
                answer = await obstore.get_async(self._store, key)
                return bytes(await answer.bytes_async())
        except ObjectMissing:
            return None

    async def read(self, session_id: str, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`, in pieces; none where the object has none.

        However long the reader takes: an answer that breaks off, or that the client gives up as it lasts too long, is
        gone on with by another request for the rest of the same object. Raises ObjectMissing and ObjectChanged.
        """
        if end is not None and start >= end:
            return
        await self._admit(session_id, False)
        at, tag, futile = start, None, 0
        while True:
            with missing_errors(path):
                answer = await self._answer(session_id, path, at, end, tag)
                if answer is None:
                    return
                if tag is not None and answer.meta["e_tag"] != tag:
                    raise ObjectChanged(f"{path} was replaced while it was read")
                tag, size = answer.meta["e_tag"], answer.meta["size"]
                before = at
                try:
                    async for piece in answer.stream(min_chunk_size=_PIECE_BYTES):
                        yield bytes(piece)
                        at += len(piece)
                    return
                except (GenericError, JoinError):
                    if at >= (size if end is None else min(size, end)):
                        return
                    futile = 0 if at > before else futile + 1
                    if tag is None or futile >= _FUTILE_READS:
                        raise

    async def _answer(
        self, session_id: str, path: str, start: int, end: int | None, tag: str | None
    ) -> GetResult | None:
        """The store's answer with the bytes from `start` on; None when the object ends before them."""
        options: GetOptions = {}
        if end is not None:
            options["range"] = (start, end)
        elif start:
            options["range"] = {"offset": start}
        if tag is not None:
            options["if_match"] = tag
        try:
            return await obstore.get_async(self._store, _key(session_id, path), options=options)
        except GenericError:
            # A store refuses a range that begins behind the end, by an error that does not say so (obstore 0.11).
            found = await self.find(session_id, path)
            if "range" not in options or found is None or start < found.size:
                raise
            return None

    async def find(self, session_id: str, path: str) -> StoredObject | None:
        """The object's size and time; None when there is none."""
        key = _key(session_id, path)
        await self._admit(session_id, False)
        try:
            with missing_errors(path):
                found = await obstore.head_async(self._store, key)
        except ObjectMissing:
            return None
        return StoredObject(path, found["size"], found["last_modified"])

    async def sessions(self) -> list[str]:
        """The ids of all sessions of which something is stored, in order."""
        with named_errors(_ROOT):
            answer = await obstore.list_with_delimiter_async(self._store, prefix=_ROOT)
        return sorted(name for prefix in answer["common_prefixes"] if is_id(name := prefix.rpartition("/")[2]))

    async def list(self, session_id: str, folder: str = "", after: str = "") -> AsyncIterator[StoredObject]:
        """What lies in `folder` and the folders below it, in the byte order of the paths, those beyond `after`.

        Takes the memory of a page; in a local folder also that of the names in one folder.
        """
        root = _key(session_id)
        prefix = _key(session_id, folder) if folder else root
        offset = f"{root}/{after}" if after else ""
        await self._admit(session_id, False)
        async for batch in self._pages(prefix, offset):
            for each in batch:
                yield StoredObject(each.path.removeprefix(f"{root}/"), each.size, each.modified_at)

    async def _pages(self, prefix: str, offset: str) -> AsyncIterator[Sequence[FoundFile]]:
        if self._folder is not None:
            found = walk(self._folder, prefix, offset)
            with named_errors(prefix):
                while page := await asyncio.to_thread(lambda: list(islice(found, _PAGE))):
                    yield page
            return
        with named_errors(prefix):
            async for batch in obstore.list(self._store, prefix=prefix, offset=offset or None, chunk_size=_PAGE):
                yield [FoundFile(entry["path"], entry["size"], entry["last_modified"]) for entry in batch]

    async def delete(self, session_id: str, paths: Sequence[str]) -> None:
        """Remove these objects; it is fine when some are not there."""
        keys = [_key(session_id, path) for path in paths]
        await self._admit(session_id, True)
        if self._folder is None:
            with named_errors("what is to be removed"):
                await obstore.delete_async(self._store, keys)
            return
        for key in keys:  # A local folder stops at the first one that is missing.
            with suppress(ObjectMissing), missing_errors(key):
                await obstore.delete_async(self._store, key)

    async def claim(self, deployment: str) -> str:
        """The deployment to which this storage belongs: `deployment`, unless another one has claimed it before."""
        with named_errors(_CLAIM):
            try:
                await obstore.put_async(self._store, _CLAIM, deployment.encode(), mode="create")
            except AlreadyExistsError:
                pass
            else:
                return deployment
        return await self.claimed_by() or deployment

    async def claimed_by(self) -> str | None:
        """The deployment to which this storage belongs; None before one has claimed it."""
        try:
            with missing_errors(_CLAIM):
                answer = await obstore.get_async(self._store, _CLAIM)
                return bytes(await answer.bytes_async()).decode()
        except ObjectMissing:
            return None

    async def remove_unfinished(self, older_than_s: float) -> int:
        """Remove what killed writers left in a local folder; how many files. A bucket has rules of its own for this."""
        if self._folder is None:
            return 0
        with named_errors(_ROOT):
            return await asyncio.to_thread(remove_unfinished, self._folder, older_than_s, datetime.now(UTC))


def _key(session_id: str, path: str | None = None) -> str:
    parts = [] if path is None else path.split("/")
    if not is_id(session_id) or any(part in {"", ".", ".."} for part in parts):
        raise StorageError(f"{path!r} is not a path in session storage")
    return "/".join([_ROOT, session_id, *parts])
