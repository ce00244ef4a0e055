"""What a session keeps in an object store: arguments and results too large for a message, the output of commands."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError
from obstore.store import ObjectStore, from_url
from pydantic import JsonValue

from sandhold.contracts.calls import StorageRef, json_bytes
from sandhold.contracts.names import is_id
from sandhold.storage.segments import SegmentReader, Stream


class StorageError(RuntimeError):
    """A document is missing or is not what its reference says."""


class DocumentMissing(StorageError):
    """This storage holds no such document: whoever made the reference stored it elsewhere, or it was removed."""


class SessionStorage:
    """Reads and writes documents below `sessions/<session_id>/`.

    A document is written as a whole or not at all, and writing the same one again is harmless.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def open(cls, url: str) -> SessionStorage:
        """Open the store at `url`; a local folder (`file:///...`) is made when it is missing."""
        parts = urlsplit(url)
        if parts.scheme == "file":
            Path(unquote(parts.path)).mkdir(parents=True, exist_ok=True)
        return cls(from_url(url))

    async def put_json(self, session_id: str, path: str, value: JsonValue) -> StorageRef:
        """Store `value` at `path` below the session and return its reference."""
        data = json_bytes(value)
        await obstore.put_async(self._store, self._key(session_id, path), data)
        return StorageRef(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    async def get_json(self, session_id: str, ref: StorageRef) -> JsonValue:
        """The document behind `ref`. Raises DocumentMissing, and StorageError when it was changed."""
        try:
            answer = await obstore.get_async(self._store, self._key(session_id, ref.path))
            data = bytes(await answer.bytes_async())
        except (NotFoundError, FileNotFoundError) as error:
            raise DocumentMissing(f"session storage holds no {ref.path}") from error
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise StorageError(f"{ref.path} in session storage is not what was stored there")
        value: JsonValue = json.loads(data)
        return value

    async def read_output(self, session_id: str, call_id: str, stream: Stream, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a command's output from `offset` on; none at or behind what is stored so far."""
        return await SegmentReader(self).read(session_id, call_id, stream, offset, limit)

    async def put_bytes(self, session_id: str, path: str, data: bytes) -> None:
        """Store `data` at `path` below the session, in place of what was there."""
        await obstore.put_async(self._store, self._key(session_id, path), data)

    async def put_new(self, session_id: str, path: str, data: bytes) -> bool:
        """Store `data` at `path` if nothing is there; whether it was stored. Of several at once one is."""
        try:
            await obstore.put_async(self._store, self._key(session_id, path), data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    async def get_bytes(self, session_id: str, path: str) -> bytes | None:
        """What is stored at `path`; None when nothing is."""
        try:
            answer = await obstore.get_async(self._store, self._key(session_id, path))
            return bytes(await answer.bytes_async())
        except (NotFoundError, FileNotFoundError):
            return None

    async def list(self, session_id: str, folder: str) -> AsyncIterator[tuple[str, int]]:
        """Name and size of everything that is stored in `folder`, in no order; nothing when there is none."""
        prefix = self._key(session_id, folder)
        async for batch in obstore.list(self._store, prefix=prefix):
            for entry in batch:
                yield entry["path"].removeprefix(f"{prefix}/"), entry["size"]

    async def delete(self, session_id: str, path: str) -> None:
        """Remove the document at `path`; it is fine when there is none."""
        with contextlib.suppress(NotFoundError, FileNotFoundError):
            await obstore.delete_async(self._store, self._key(session_id, path))

    @staticmethod
    def _key(session_id: str, path: str) -> str:
        segments = path.split("/")
        if not is_id(session_id) or any(segment in {"", ".", ".."} for segment in segments):
            raise StorageError(f"{path!r} is not a path in session storage")
        return f"sessions/{session_id}/{path}"
