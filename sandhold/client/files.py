"""A session's files in storage, as a client sees them: listed, read, written and deleted, also after its end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from datetime import timedelta

from temporalio.service import RPCError, RPCStatusCode

from sandhold.client.absence import Absence
from sandhold.client.errors import SessionEnded, SessionNotFound
from sandhold.client.requests import Deadline, TemporalRequests
from sandhold.contracts.sessions import SessionStart
from sandhold.contracts.storage import StoredFile
from sandhold.storage import FileStore, Progress, Quota, SessionStorage, StorageError
from sandhold.storage.remains import MarkUnreadable, Remains
from sandhold.temporal import session_start

_SEEN_FOR_S = 5.0
"""A session that was seen a moment ago is not asked for again before each of many files."""


class SessionFiles:
    """The files of one session. Needs no worker.

    Paths are written like `notes/plan.md`, with or without a slash before. Files can be written while the session is
    open, and read and deleted as long as they are kept, also after its end. Raises SessionNotFound, SessionEnded and
    TemporalUnreachable, and ToolFailure: `invalid_arguments` for a path that cannot be one, `path_not_found`,
    `quota_exceeded`, `storage_full`, `internal` when the storage cannot be reached (retryable) or refuses access, and
    `conflict` when a file is replaced while it is read, or an earlier session of this id left what is stored.
    """

    def __init__(self, session_id: str, requests: TemporalRequests, storage: Callable[[], SessionStorage]) -> None:
        self._session_id = session_id
        self._requests = requests
        self._storage = storage
        self._absence = Absence(session_id, requests)
        self._quota: Quota | None = None
        self._seen_at: dict[bool, float] = {}

    async def list(self, folder: str = "", *, after: str = "", limit: int | None = None) -> AsyncIterator[StoredFile]:
        """The files in `folder` and below, in the order of their paths.

        At most `limit`; the next ones are those `after` the last path. Memory stays bounded however many there are; in
        a local folder it takes the names in one folder.
        """
        await self._check(open_only=False)
        left = limit
        if left == 0:
            return
        async for each in self._store.list(folder, after):
            yield each
            if left is not None:
                left -= 1
                if left == 0:
                    return

    async def find(self, path: str) -> StoredFile:
        """Size and time of a file."""
        await self._check(open_only=False)
        return await self._store.find(path)

    async def is_folder(self, path: str) -> bool:
        """Whether files lie below `path`."""
        await self._check(open_only=False)
        return await self._store.is_folder(path)

    async def read(
        self, path: str, *, start: int = 0, end: int | None = None, progress: Progress | None = None
    ) -> bytes:
        """The bytes of a file from `start` to before `end`, all at once: `stream` is for large ones."""
        return b"".join([piece async for piece in self.stream(path, start=start, end=end, progress=progress)])

    async def stream(
        self, path: str, *, start: int = 0, end: int | None = None, progress: Progress | None = None
    ) -> AsyncIterator[bytes]:
        """The bytes of a file from `start` to before `end`, in pieces of about 1 MiB.

        `progress` is told after each piece how many bytes have come so far.
        """
        await self._check(open_only=False)
        passed = 0
        async for piece in self._store.read(path, start, end):
            yield piece
            passed += len(piece)
            if progress is not None:
                progress(passed)

    async def write(
        self,
        path: str,
        data: bytes | AsyncIterable[bytes],
        *,
        size: int | None = None,
        progress: Progress | None = None,
    ) -> StoredFile:
        """Store a file, in place of one of this name, in constant memory. It is there whole once this returns.

        `size` is that of a stream, where it is known: what does not fit the session's quotas is then refused at once,
        else as soon as too much has come. When anything fails, what was there stays.
        """
        await self._check(open_only=True)
        return await self._store.write(path, data, await self._known_quota(), size=size, progress=progress)

    async def delete(self, path: str) -> None:
        """Remove a file."""
        await self._check(open_only=False)
        await self._store.delete(path)

    async def delete_folder(self, folder: str = "") -> int:
        """Remove all files in `folder` and below; how many there were."""
        await self._check(open_only=False)
        return await self._store.delete_folder(folder)

    async def quota(self, deadline: Deadline) -> Quota | None:
        """What the session's policy allows; None when there is no such session."""
        try:
            return await self._known_quota(deadline)
        except SessionNotFound:
            return None

    @property
    def _store(self) -> FileStore:
        return self._storage().files(self._session_id)

    async def _known_quota(self, deadline: Deadline | None = None) -> Quota:
        if self._quota is None:

            async def attempt(timeout: timedelta) -> SessionStart:
                return await session_start(self._requests.client, self._session_id, timeout=timeout)

            try:
                start = await self._requests.send(attempt, deadline=deadline or Deadline())
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    raise SessionNotFound(self._session_id) from error
                raise
            self._quota = Quota.of(start.policy)
        return self._quota

    async def _check(self, *, open_only: bool) -> None:
        """Raise SessionNotFound, or SessionEnded where the session must be open."""
        if time.monotonic() < self._seen_at.get(open_only, 0.0) + _SEEN_FOR_S:
            return
        is_open = await self._absence.session_is_open(Deadline())
        if is_open is None and not await self._is_remembered():
            raise SessionNotFound(self._session_id)
        if open_only and not is_open:
            raise SessionEnded(self._session_id)
        self._seen_at[open_only] = time.monotonic()

    async def _is_remembered(self) -> bool:
        """Whether storage says that there was such a session, which Temporal has forgotten."""
        try:
            return await Remains(self._storage().objects, self._session_id).mark() is not None
        except MarkUnreadable:
            return True
        except StorageError as error:
            raise error.failure(f"nobody can tell whether there is a session {self._session_id!r}") from error
