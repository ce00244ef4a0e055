"""The output of commands in session storage: written while they run, read at any offset, both in bounded memory.

A stream lies in the folder `calls/<call folder>/stdout` (or `stderr`) as segments, each named by its offset in the
stream as 20 digits. Offsets are multiples of SEGMENT_BYTES. A full segment is final: it is never written again with
other bytes, and whoever writes it again after a crash writes the same. What does not fill a segment yet lies under the
segment's name with `.part` behind it, and is written anew while it grows; the end of the stream is final again. So a
writer that was thought dead and comes back late can only put an old part beside what is final.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

from sandhold.contracts.names import call_folder, output_folder
from sandhold.storage.quota import QuotaExceeded, Usage

SEGMENT_BYTES = 1024 * 1024
REWRITE_S = 1.0
"""A segment that is not full is written anew at most this often."""
PART_SUFFIX = ".part"

Stream = Literal["stdout", "stderr"]


class Objects(Protocol):
    """Where segments are kept: `SessionStorage`."""

    usage: Usage

    async def put_bytes(self, session_id: str, path: str, data: bytes) -> None: ...
    async def get_bytes(self, session_id: str, path: str) -> bytes | None: ...
    async def delete(self, session_id: str, path: str) -> None: ...
    def list(self, session_id: str, folder: str) -> AsyncIterator[tuple[str, int]]: ...


def segment_path(call_id: str, stream: Stream, offset: int) -> str:
    """The place of the segment that begins at `offset`, below the session's prefix."""
    return f"{output_folder(call_id, stream)}/{offset:020d}"


class SegmentWriter:
    """Stores one stream in order, from an offset at which a segment begins.

    Holds less than a segment, and costs nothing in storage before the first byte. What does not fit in `quota`, what
    the session may hold, is not stored, nor is anything behind it: the stream ends early, and `whole` says so.
    """

    def __init__(
        self,
        storage: Objects,
        session_id: str,
        call_id: str,
        stream: Stream,
        offset: int = 0,
        *,
        quota: int | None = None,
    ) -> None:
        if offset % SEGMENT_BYTES:
            raise ValueError(f"no segment begins at {offset}")
        self._quota = quota
        self._dropped = 0
        self.whole = True
        self._storage = storage
        self._session_id = session_id
        self._call_id = call_id
        self._stream: Stream = stream
        self._began = self._full = offset
        self._rest = bytearray()
        self._part_bytes: int | None = None
        self._rewrite_at = 0.0

    @property
    def offset(self) -> int:
        """Where the next byte belongs."""
        return self._full + len(self._rest) + self._dropped

    @property
    def full_bytes(self) -> int:
        """Bytes that lie in storage in full segments: what a later writer may begin at."""
        return self._full

    @property
    def unseen(self) -> bool:
        """Whether there are bytes that readers cannot see yet."""
        return self.whole and len(self._rest) > (self._part_bytes or 0)

    def go_on_behind(self, part: bytes) -> None:
        """Go on behind what an earlier writer has stored of the segment at `offset`. Only before anything was taken."""
        self._rest += part
        self._part_bytes = len(part)

    async def take(self, data: bytes) -> None:
        """Take the bytes at `offset`. All full segments are in storage when this returns, unless the stream is cut."""
        if not self.whole:
            self._dropped += len(data)
            return
        at = self._full
        self._rest += data
        full: list[tuple[int, bytes]] = []
        while len(self._rest) >= SEGMENT_BYTES:
            full.append((at, bytes(self._rest[:SEGMENT_BYTES])))
            del self._rest[:SEGMENT_BYTES]
            at += SEGMENT_BYTES
        if not full:
            return
        try:
            async with self._admitted(at - self._full - (self._part_bytes or 0)):
                await asyncio.gather(
                    *(self._put(segment_path(self._call_id, self._stream, n), each) for n, each in full)
                )
        except QuotaExceeded:
            self._cut(at - self._full)
            return
        if self._part_bytes or self._full == self._began:  # an earlier writer's, at the beginning
            await self._storage.delete(self._session_id, self._part_path())
        self._full, self._part_bytes = at, None

    async def flush(self) -> None:
        """Store what does not fill a segment, so that readers see it; nothing within REWRITE_S of the last time."""
        if not self.unseen or time.monotonic() < self._rewrite_at:
            return
        if self._part_bytes is None:
            # An earlier writer may have come further, and readers have seen it: what is stored never shrinks.
            earlier = await self._storage.get_bytes(self._session_id, self._part_path())
            self._part_bytes = len(earlier or b"")
        if len(self._rest) > self._part_bytes:
            try:
                async with self._admitted(len(self._rest) - self._part_bytes):
                    await self._put(self._part_path(), bytes(self._rest))
            except QuotaExceeded:
                self._cut()
                return
            self._part_bytes = len(self._rest)
        self._rewrite_at = time.monotonic() + REWRITE_S

    async def finish(self) -> None:
        """Store the rest as the end of the stream. Safe to repeat."""
        if not self._rest:
            return
        try:
            async with self._admitted(len(self._rest) - (self._part_bytes or 0)):
                await self._put(segment_path(self._call_id, self._stream, self._full), bytes(self._rest))
        except QuotaExceeded:
            self._cut()
            return
        await self._storage.delete(self._session_id, self._part_path())

    def _admitted(self, more: int) -> AbstractAsyncContextManager[None]:
        """For a write by which the session comes to hold so much more."""
        if self._quota is None or more <= 0:
            return nullcontext()
        return self._storage.usage.admitted(self._session_id, more, self._quota)

    def _cut(self, taken: int = 0) -> None:
        """Store nothing any more, also not when there is room again: a stream has no gaps. What readers saw stays."""
        self.whole = False
        self._dropped += taken + len(self._rest)
        self._rest.clear()

    def _part_path(self) -> str:
        return segment_path(self._call_id, self._stream, self._full) + PART_SUFFIX

    async def _put(self, path: str, data: bytes) -> None:
        await self._storage.put_bytes(self._session_id, path, data)


@dataclass(frozen=True)
class Extent:
    """How far a stream is stored, from its beginning without a gap."""

    full_bytes: int = 0
    """In full segments: where a writer may go on."""
    size: int = 0
    """In all: what readers see."""


class SegmentReader:
    """Reads streams while they grow and afterwards. Holds one segment at a time."""

    def __init__(self, storage: Objects) -> None:
        self._storage = storage

    async def read(self, session_id: str, call_id: str, stream: Stream, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset` on; none at or behind what is stored so far."""
        pieces: list[bytes] = []
        async for piece in self.chunks(session_id, call_id, stream, offset):
            pieces.append(piece[:limit])
            limit -= len(pieces[-1])
            if limit <= 0:
                break
        return b"".join(pieces)

    async def chunks(self, session_id: str, call_id: str, stream: Stream, offset: int = 0) -> AsyncIterator[bytes]:
        """What is stored from `offset` on, in pieces of at most SEGMENT_BYTES, to the end of what is stored so far.

        To follow a stream that grows, go on from the offset behind the last piece after a while.
        """
        while True:
            start = offset - offset % SEGMENT_BYTES
            segment = await self._segment(session_id, segment_path(call_id, stream, start))
            piece = segment[offset - start :]
            if piece:
                yield piece
            if len(segment) < SEGMENT_BYTES:
                return
            offset = start + SEGMENT_BYTES

    async def size(self, session_id: str, call_id: str, stream: Stream) -> int:
        """Bytes that are stored so far, from the beginning of the stream without a gap."""
        segments: dict[int, int] = {}
        async for name, size in self._storage.list(session_id, output_folder(call_id, stream)):
            _note(segments, name, size)
        return _extent(segments).size

    async def extents(self, session_id: str, call_id: str) -> dict[Stream, Extent]:
        """How far each stream is stored. One list."""
        folders: dict[str, Stream] = {"stdout": "stdout", "stderr": "stderr"}
        segments: dict[Stream, dict[int, int]] = {"stdout": {}, "stderr": {}}
        async for path, size in self._storage.list(session_id, f"calls/{call_folder(call_id)}"):
            folder, _, name = path.partition("/")
            if folder in folders:
                _note(segments[folders[folder]], name, size)
        return {stream: _extent(found) for stream, found in segments.items()}

    async def _segment(self, session_id: str, path: str) -> bytes:
        """The bytes of the segment so far; none if it does not exist."""
        final = await self._storage.get_bytes(session_id, path)
        if final is not None:
            return final
        part = await self._storage.get_bytes(session_id, path + PART_SUFFIX)
        if part is not None:
            return part
        # Between the two looks the part may have become final.
        return await self._storage.get_bytes(session_id, path) or b""


def _note(segments: dict[int, int], name: str, size: int) -> None:
    """Note the size of the segment, by its offset, if `name` is one's."""
    digits = name.removesuffix(PART_SUFFIX)
    if digits.isdecimal():
        # A part that a late writer left may lie beside the final segment.
        segments[int(digits)] = max(size, segments.get(int(digits), 0))


def _extent(segments: dict[int, int]) -> Extent:
    """How far the row of segments reaches that begins at 0. Only a segment that is final is ever full."""
    full = 0
    while segments.get(full) == SEGMENT_BYTES:
        full += SEGMENT_BYTES
    return Extent(full, full + segments.get(full, 0))
