"""What sessions keep in an object store: files, arguments and results too large for a message, output of commands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator

from pydantic import JsonValue

from sandhold.contracts.calls import StorageRef, json_bytes
from sandhold.storage.claims import Claims, Lookup
from sandhold.storage.errors import DocumentMissing, StorageError
from sandhold.storage.files import FileStore
from sandhold.storage.objects import SessionObjects
from sandhold.storage.quota import Usage
from sandhold.storage.segments import OutputWindow, SegmentReader, Stream


class SessionStorage:
    """The storage of a deployment: each session's documents, output and files.

    A document is written as a whole or not at all, and writing the same one again is harmless.
    """

    def __init__(self, objects: SessionObjects) -> None:
        self.objects = objects
        self.usage = Usage(objects)

    @classmethod
    def open(cls, url: str) -> SessionStorage:
        """Open the storage at `url`; a local folder (`file:///...`) is made when it is missing. Raises ValueError."""
        return cls(SessionObjects.open(url))

    def guarded(self, lookup: Lookup) -> SessionStorage:
        """The same storage for those who work for sessions: what an earlier session of the same id left is refused.

        Everything then raises StorageOfAnother for such a session, and what `lookup` raises.
        """
        return SessionStorage(self.objects.guarded(Claims(self.objects, lookup).admit))

    def files(self, session_id: str) -> FileStore:
        """The session's files."""
        return FileStore(self.objects, self.usage, session_id)

    async def put_json(self, session_id: str, path: str, value: JsonValue, *, quota: int | None = None) -> StorageRef:
        """Store `value` at `path` below the session and return its reference.

        Raises QuotaExceeded when it does not fit in `quota`, what the session may hold; without one it always does.
        """
        data = json_bytes(value)
        if quota is None:
            await self.put_bytes(session_id, path, data)
        else:
            async with self.usage.admitted(session_id, len(data), quota):
                await self.put_bytes(session_id, path, data)
        return StorageRef(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    async def get_json(self, session_id: str, ref: StorageRef) -> JsonValue:
        """The document behind `ref`. Raises DocumentMissing, and StorageError when it was changed."""
        data = await self.get_bytes(session_id, ref.path)
        if data is None:
            raise DocumentMissing(f"session storage holds no {ref.path}")
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise StorageError(f"{ref.path} in session storage is not what was stored there")
        value: JsonValue = json.loads(data)
        return value

    async def read_output(self, session_id: str, call_id: str, stream: Stream, offset: int, limit: int) -> OutputWindow:
        """What may be shown of at most `limit` bytes of a command's output; see `SegmentReader.read`."""
        return await SegmentReader(self).read(session_id, call_id, stream, offset, limit)

    async def put_bytes(self, session_id: str, path: str, data: bytes) -> None:
        """Store `data` at `path` below the session, in place of what was there."""
        await self.objects.put(session_id, path, data)

    async def put_new(self, session_id: str, path: str, data: bytes) -> bool:
        """Store `data` at `path` if nothing is there; whether it was stored. Of several at once one is."""
        return await self.objects.put_new(session_id, path, data)

    async def get_bytes(self, session_id: str, path: str) -> bytes | None:
        """What is stored at `path`; None when nothing is."""
        return await self.objects.get(session_id, path)

    async def list(self, session_id: str, folder: str) -> AsyncIterator[tuple[str, int]]:
        """Name and size of everything that is stored in `folder`, in order; nothing when there is none."""
        async for each in self.objects.list(session_id, folder):
            yield each.path.removeprefix(f"{folder}/"), each.size

    async def delete(self, session_id: str, path: str) -> None:
        """Remove the document at `path`; it is fine when there is none."""
        await self.objects.delete(session_id, [path])
