"""A session's files: what its user put there or had put there, by paths, within the quotas of the policy."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.policy import Policy
from sandhold.contracts.session_paths import session_folder, session_path
from sandhold.contracts.storage import StoredFile
from sandhold.storage.errors import NameTaken, ObjectMissing, StorageError
from sandhold.storage.objects import PART_BYTES, SessionObjects, StoredObject
from sandhold.storage.quota import STEP_BYTES, QuotaExceeded, Reservation, Usage

Progress = Callable[[int], None]
"""Told how many bytes have passed so far."""

_AREA = "files"
_DELETED_AT_ONCE = 500


@dataclass(frozen=True)
class Quota:
    """What a policy allows."""

    session_bytes: int
    file_bytes: int

    @classmethod
    def of(cls, policy: Policy) -> Quota:
        return cls(policy.storage_quota_bytes, policy.file_quota_bytes)


class FileStore:
    """The files of one session. A file is there as a whole or not at all.

    Raises ToolFailure: InvalidSessionPath, `path_not_found`, `invalid_arguments` where a name would be both a file and
    a folder, QuotaExceeded, `storage_full`, `conflict` when a file is replaced while it is read or an earlier session
    left what is stored, and `internal` when the storage cannot be reached (retryable) or refuses access.
    """

    def __init__(self, objects: SessionObjects, usage: Usage, session_id: str) -> None:
        self._objects = objects
        self._usage = usage
        self._session_id = session_id

    async def list(self, folder: str = "", after: str = "") -> AsyncIterator[StoredFile]:
        """The files in `folder` and below, by the byte order of their paths, those beyond the path `after`."""
        folder = session_folder(folder)
        beyond = _stored(session_path(after)) if after else ""
        with _failures(folder or "/"):
            async for each in self._objects.list(self._session_id, _stored(folder) if folder else _AREA, beyond):
                yield _file(each)

    async def find(self, path: str) -> StoredFile:
        """Size and time of the file."""
        path = session_path(path)
        with _failures(path):
            found = await self._objects.find(self._session_id, _stored(path))
            if found is None:
                raise await self._missing(path)
        return _file(found)

    async def is_folder(self, path: str) -> bool:
        """Whether files lie below `path`. All of the session's files are a folder, if there are any or not."""
        folder = session_folder(path)
        with _failures(folder or "/"):
            return not folder or await self._has_files(folder)

    async def read(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The file's bytes from `start` to before `end` (by default its end), in pieces of about 1 MiB."""
        path = session_path(path)
        with _failures(path):
            try:
                async for piece in self._objects.read(self._session_id, _stored(path), start, end):
                    yield piece
            except ObjectMissing:
                raise await self._missing(path) from None

    async def write(
        self,
        path: str,
        data: bytes | AsyncIterable[bytes],
        quota: Quota,
        *,
        size: int | None = None,
        progress: Progress | None = None,
        is_fresh: bool = False,
    ) -> StoredFile:
        """Store a file, in place of one of this name. What does not fit is refused before it is written.

        `size` is that of a stream, where it is known: too much of it is refused at once, and another length is an
        error. When anything fails, nothing is stored, and what was there stays. With `is_fresh` the caller answers for
        it that nothing is there or in its way (see `is_free`): of many small files each is stored four times as fast.
        """
        path = session_path(path)
        pieces = _one(data) if isinstance(data, bytes) else data
        size = len(data) if isinstance(data, bytes) else size
        if size is not None:
            _check_file(size, quota)
        with _failures(path):
            replaced = 0 if is_fresh else await self._replaced(path)
            incoming = _Incoming(pieces, size, quota, progress)
            is_small = await incoming.ends_within(PART_BYTES) if size is None else size < PART_BYTES
            least = len(incoming.begun) if size is None else size
            if is_small:
                async with self._usage.admitted(self._session_id, least, quota.session_bytes, replaced):
                    await incoming.ends_within(PART_BYTES)
                    await self._objects.put(self._session_id, _stored(path), incoming.begun)
            else:
                wished = min(STEP_BYTES, quota.file_bytes) if size is None else size
                async with self._usage.reserved(self._session_id, least, wished, quota.session_bytes, replaced) as room:
                    await self._objects.write(self._session_id, _stored(path), incoming.all(room))
            if progress is not None:
                progress(incoming.passed)
            if is_fresh:
                return StoredFile(path=path, size=incoming.passed, modified_at=datetime.now(UTC))
            return await self.find(path)

    async def is_free(self, folder: str) -> bool:
        """Whether nothing is stored in this folder, nor anything in its place or in its way."""
        folder = session_folder(folder)
        parts = folder.split("/") if folder else []
        with _failures(folder or "/"):
            for count in range(1, len(parts) + 1):
                if await self._objects.find(self._session_id, _stored("/".join(parts[:count]))) is not None:
                    return False
            async for _ in self.list(folder):
                return False
        return True

    async def delete(self, path: str) -> None:
        """Remove the file; `path_not_found` when there is none."""
        found = await self.find(path)
        with _failures(found.path):
            await self._objects.delete(self._session_id, [_stored(found.path)])

    async def delete_folder(self, folder: str = "") -> int:
        """Remove all files in `folder` and below; how many there were."""
        removed = 0
        with _failures(folder or "/"):
            batch: list[str] = []
            async for each in self.list(folder):
                batch.append(_stored(each.path))
                if len(batch) == _DELETED_AT_ONCE:
                    await self._objects.delete(self._session_id, batch)
                    removed, batch = removed + len(batch), []
            await self._objects.delete(self._session_id, batch)
        return removed + len(batch)

    async def _replaced(self, path: str) -> int:
        """The size of the file that a new one would replace. Raises ToolFailure where a folder and a file would meet.

        A bucket knows no folders, and would hold both.
        """
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts))]
        *files, here, is_folder = await asyncio.gather(
            *(self._objects.find(self._session_id, _stored(each)) for each in above),
            self._objects.find(self._session_id, _stored(path)),
            self._has_files(path),
        )
        for name, found in zip(above, files, strict=True):
            if found is not None:
                raise _name_taken(path, f"{name} is a file, so nothing can lie in it")
        if is_folder:
            raise _name_taken(path, "it is a folder with files in it")
        return here.size if isinstance(here, StoredObject) else 0

    async def _has_files(self, folder: str) -> bool:
        async for _ in self._objects.list(self._session_id, _stored(folder)):
            return True
        return False

    async def _missing(self, path: str) -> ToolFailure:
        if await self._has_files(path):
            return ToolFailure(ErrorCode.PATH_NOT_FOUND, f"{path} in session storage is a folder, not a file")
        return ToolFailure(ErrorCode.PATH_NOT_FOUND, f"session storage holds no file {path}")


class _Incoming:
    """A stream on its way in: counted, and held against what was declared and what is allowed."""

    def __init__(self, pieces: AsyncIterable[bytes], size: int | None, quota: Quota, progress: Progress | None) -> None:
        self._pieces = aiter(pieces)
        self._quota = quota
        self._progress = progress
        self.size = size
        self.begun = b""
        self.passed = 0

    async def ends_within(self, limit: int) -> bool:
        """Read the beginning; whether that is all of it, and less than `limit` bytes. Safe to repeat once it was."""
        begun = bytearray(self.begun)
        while len(begun) < limit:
            piece = await self._next()
            if piece is None:
                self.begun = bytes(begun)
                return True
            begun += piece
        self.begun = bytes(begun)
        return False

    async def all(self, room: Reservation) -> AsyncIterator[bytes]:
        """The beginning and the rest, each piece once there is room reserved for it."""
        piece: bytes | None = self.begun
        self.begun = b""
        while piece is not None:
            if self.passed > room.size:
                await room.grow(self.passed, min(self.passed + STEP_BYTES, self._quota.file_bytes))
            await room.keep()
            yield piece
            if self._progress is not None:
                self._progress(self.passed)
            piece = await self._next()

    async def _next(self) -> bytes | None:
        piece = await anext(self._pieces, None)
        if piece is not None:
            self.passed += len(piece)
        if self.size is None:
            _check_file(self.passed, self._quota)
        elif self.passed > self.size or (piece is None and self.passed < self.size):
            raise ToolFailure(
                ErrorCode.INVALID_ARGUMENTS,
                f"{self.size} bytes were announced, and {'more' if piece is not None else self.passed} came",
            )
        return piece


async def _one(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), PART_BYTES):
        yield data[start : start + PART_BYTES]


def _check_file(size: int, quota: Quota) -> None:
    if size > quota.file_bytes:
        raise QuotaExceeded(
            f"a file may have {quota.file_bytes} bytes, and this one has more",
            "Store it in several files.",
        )


def _name_taken(path: str, reason: str) -> ToolFailure:
    return ToolFailure(
        ErrorCode.INVALID_ARGUMENTS, f"{path} cannot be stored: {reason}", hint="Choose another name, or delete first."
    )


# obstore keeps names that end in # and a number for objects that are not finished yet, in a local folder.
_LIKE_UNFINISHED = re.compile(r"#\d+~*\Z")
_MARKED = re.compile(r"#\d+~+\Z")


def _stored(path: str) -> str:
    """The object's path below the session. The last `~` of a name like `a#1~` is ours."""
    parts = (part + "~" if _LIKE_UNFINISHED.search(part) else part for part in path.split("/"))
    return "/".join([_AREA, *parts])


def _file(stored: StoredObject) -> StoredFile:
    parts = stored.path.split("/")[1:]
    path = "/".join(part[:-1] if _MARKED.search(part) else part for part in parts)
    return StoredFile(path=path, size=stored.size, modified_at=stored.modified_at)


@contextmanager
def _failures(path: str) -> Iterator[None]:
    """Say what the storage's errors mean for whoever called."""
    try:
        yield
    except NameTaken as error:
        raise _name_taken(path, "a name cannot be both a file and a folder") from error
    except StorageError as error:
        raise error.failure(path) from error
