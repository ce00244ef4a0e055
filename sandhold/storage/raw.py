"""Objects as the store has them: bytes under keys, whole or not at all. Only `SessionObjects` comes here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, GenericError, JoinError, NotFoundError, PreconditionError
from obstore.store import ObjectStore

from sandhold.contracts.storage_url import local_folder
from sandhold.storage.errors import ObjectChanged, ObjectMissing, missing_errors, named_errors
from sandhold.storage.feed import Feed
from sandhold.storage.folder import FoundFile, make_durable, remove_unfinished, replace_durably, walk
from sandhold.storage.location import open_store

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, UpdateVersion
    from typing_extensions import Buffer

PART_BYTES = 5 * 1024 * 1024
"""An object above this is sent in parts of this size: the least that S3 takes, which has room for 10,000 of them."""
_PARTS_AT_ONCE = 2
_PIECE_BYTES = 1024 * 1024
_PAGE = 1000
_HEAD_BYTES = 128
"""Of an object, in which it differs from every other: its header has a random key."""
_FUTILE_READS = 3
"""A read that broke off goes on, unless so many requests in a row have brought nothing."""


class RawObjects:
    """A local folder or a bucket. Raises StorageError, which tells of `path`, and nothing of the store's own."""

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder

    @classmethod
    def open(cls, url: str) -> RawObjects:
        return cls(open_store(url), local_folder(url))

    async def put(self, key: str, path: str, data: Buffer) -> None:
        """Store `data`, in place of what was there."""
        with named_errors(path):
            await obstore.put_async(self._store, key, data, use_multipart=False)

    async def put_new(self, key: str, path: str, data: Buffer) -> bool:
        """Store `data` if nothing is there; whether it was stored. Of several at once one is."""
        with named_errors(path):
            try:
                await obstore.put_async(self._store, key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    async def make_durable(self, key: str, path: str) -> None:
        """Return once the object would outlast a loss of power. A bucket has seen to it already."""
        if self._folder is not None:
            with named_errors(path):
                await asyncio.to_thread(make_durable, self._folder / key)

    async def replace(self, key: str, path: str, old: bytes, new: bytes) -> bool:
        """Store `new`, durably, if `old` is there; whether it was.

        A bucket compares by itself. In a folder somebody may write between the look and the change: whoever replaces
        there must not mind whose bytes stay.
        """
        try:
            with missing_errors(path):
                answer = await obstore.get_async(self._store, key)
                found, meta = bytes(await answer.bytes_async()), answer.meta
        except ObjectMissing:
            return False
        if found != old:
            return False
        with named_errors(path):
            if self._folder is not None:
                return await asyncio.to_thread(replace_durably, self._folder / key, new)
            version: UpdateVersion = {"e_tag": meta["e_tag"]}
            if meta["version"] is not None:
                version["version"] = meta["version"]
            try:
                await obstore.put_async(self._store, key, new, mode=version)
            except (PreconditionError, NotFoundError):
                return False
        return True

    @asynccontextmanager
    async def upload(self, key: str, path: str) -> AsyncIterator[Upload]:
        """Store what is given inside of the context, and is all of it when `end` has returned; else nothing."""
        # obstore gives an upload up, with all its parts, when its source raises; not when it is cancelled (0.11).
        async with Feed() as feed:
            feed.into(
                obstore.put_async(self._store, key, feed.taken(), chunk_size=PART_BYTES, max_concurrency=_PARTS_AT_ONCE)
            )
            yield Upload(feed, path, lambda size, head: self._holds(key, path, size, head))

    async def _holds(self, key: str, path: str, size: int, head: bytes) -> bool:
        """Whether there is an object of this size that begins like this."""
        try:
            if (await self.find(key, path)).size != size:
                return False
            with missing_errors(path):
                found = bytes(await obstore.get_range_async(self._store, key, start=0, end=len(head)))
        except ObjectMissing:
            return False
        return found == head

    async def get(self, key: str, path: str) -> Buffer:
        """All that is stored. Raises ObjectMissing."""
        with missing_errors(path):
            answer = await obstore.get_async(self._store, key)
            return await answer.bytes_async()

    def reading(
        self, key: str, path: str, start: int = 0, end: int | None = None, version: str | None = None
    ) -> Reading:
        """A read of the bytes from `start` to before `end`, of that version of the object where one is named."""
        return Reading(self._store, key, path, start, end, version)

    async def find(self, key: str, path: str) -> FoundFile:
        """The object's size and time. Raises ObjectMissing."""
        with missing_errors(path):
            found = await obstore.head_async(self._store, key)
        return FoundFile(key, found["size"], found["last_modified"])

    async def folders(self, prefix: str) -> list[str]:
        """The names of what folders lie directly in `prefix`."""
        with named_errors(prefix):
            answer = await obstore.list_with_delimiter_async(self._store, prefix=prefix)
        return [each.rpartition("/")[2] for each in answer["common_prefixes"]]

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[Sequence[FoundFile]]:
        """What lies below `prefix`, in the byte order of the keys, those beyond the key `after`, page by page.

        Takes the memory of a page; in a local folder also that of the names in one folder.
        """
        if self._folder is not None:
            found = walk(self._folder, prefix, after)
            with named_errors(prefix):
                while page := await asyncio.to_thread(lambda: list(islice(found, _PAGE))):
                    yield page
            return
        with named_errors(prefix):
            async for batch in obstore.list(self._store, prefix=prefix, offset=after or None, chunk_size=_PAGE):
                yield [FoundFile(entry["path"], entry["size"], entry["last_modified"]) for entry in batch]

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove these objects; it is fine when some are not there."""
        if self._folder is None:
            with named_errors("what is to be removed"):
                await obstore.delete_async(self._store, keys)
            return
        for key in keys:  # A local folder stops at the first one that is missing.
            with suppress(ObjectMissing), missing_errors(key):
                await obstore.delete_async(self._store, key)

    async def remove_unfinished(self, older_than_s: float) -> int:
        """Remove what killed writers left in a local folder; how many files. A bucket has rules of its own for this."""
        if self._folder is None:
            return 0
        with named_errors("what is left unfinished"):
            return await asyncio.to_thread(remove_unfinished, self._folder, older_than_s, datetime.now(UTC))


class Upload:
    """An object that is being stored."""

    def __init__(self, feed: Feed, path: str, is_stored: Callable[[int, bytes], Awaitable[bool]]) -> None:
        self._feed = feed
        self._path = path
        self._is_stored = is_stored
        self._size = 0
        self._head = b""

    async def give(self, data: bytes | bytearray) -> None:
        """The next bytes of it."""
        if len(self._head) < _HEAD_BYTES:
            self._head += bytes(data[: _HEAD_BYTES - len(self._head)])
        self._size += len(data)
        with named_errors(self._path):
            await self._feed.give(data)

    async def end(self) -> None:
        """Return once it is stored.

        When the answer to the last request is lost, obstore sends it again, and a bucket says that there is no such
        upload any more. Then the object is there, if the first one was heard: no two sealed ones begin alike.
        """
        try:
            with named_errors(self._path):
                await self._feed.end()
        except ObjectMissing:
            if self._size == 0 or not await self._is_stored(self._size, self._head):
                raise


class Reading:
    """The bytes of one object, however long the reader takes.

    An answer that breaks off, or that the client gives up as it lasts too long, is gone on with by another request for
    the rest of the same object.
    """

    def __init__(
        self, store: ObjectStore, key: str, path: str, start: int, end: int | None, version: str | None
    ) -> None:
        self._store = store
        self._key = key
        self._path = path
        self._at = start
        self._end = end
        self.version = version
        """Which object it is, where the store tells; known with the first piece."""
        self.size = 0
        """Of the whole object; known with the first piece."""

    async def pieces(self) -> AsyncIterator[Buffer]:
        """The bytes; none when the object ends before them. Raises ObjectMissing and ObjectChanged."""
        futile = 0
        while True:
            with missing_errors(self._path):
                answer = await self._answer()
                if answer is None:
                    return
                if self.version is not None and answer.meta["e_tag"] != self.version:
                    raise ObjectChanged(f"{self._path} was replaced while it was read")
                self.version, self.size = answer.meta["e_tag"], answer.meta["size"]
                before = self._at
                try:
                    async for piece in answer.stream(min_chunk_size=_PIECE_BYTES):
                        yield piece
                        self._at += len(piece)
                    return
                except (GenericError, JoinError):
                    if self._at >= (self.size if self._end is None else min(self.size, self._end)):
                        return
                    futile = 0 if self._at > before else futile + 1
                    if self.version is None or futile >= _FUTILE_READS:
                        raise

    async def _answer(self) -> GetResult | None:
        """The store's answer with the bytes from here on; None when the object ends before them."""
        options: GetOptions = {}
        if self._end is not None:
            options["range"] = (self._at, self._end)
        elif self._at:
            options["range"] = {"offset": self._at}
        if self.version is not None:
            options["if_match"] = self.version
        try:
            return await obstore.get_async(self._store, self._key, options=options)
        except GenericError:
            # A store refuses a range that begins behind the end, by an error that does not say so (obstore 0.11).
            if "range" not in options or self._at < (await obstore.head_async(self._store, self._key))["size"]:
                raise
            return None
