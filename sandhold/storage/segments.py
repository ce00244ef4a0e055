"""The output of commands in session storage: written while they run, read at any offset, both in bounded memory.

A stream lies in the folder `calls/<call folder>/stdout` (or `stderr`) as segments, each named by its offset in the
stream as 20 digits. Offsets count what the command wrote, and those of segments are multiples of SEGMENT_BYTES; what is
stored is what may be shown of it (`segment_format`). A full segment is final: it is never written again with other
bytes, and whoever writes it again after a crash writes the same. What does not fill a segment yet lies under the
segment's name with `.part` behind it, and is written anew while it grows; the end of the stream is final again. So a
writer that was thought dead and comes back late can only put an old part beside what is final.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

from sandhold.contracts.names import call_folder, output_folder
from sandhold.security.redaction import Piece, Redactor
from sandhold.storage.quota import QuotaExceeded, Usage
from sandhold.storage.redaction import StreamRedaction
from sandhold.storage.segment_format import SEGMENT_BYTES, OutputWindow, Segment

__all__ = ["SEGMENT_BYTES", "OutputWindow", "SegmentReader", "SegmentWriter", "Stream", "segment_path"]

REWRITE_S = 1.0
"""A segment that is not full is written anew at most this often."""
AT_ONCE_BYTES = 64 * 1024
"""Redacting more than this takes so long that everything else in the process goes on beside it."""
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


@dataclass(frozen=True)
class _Part:
    """What lies in storage of the segment that is being written."""

    end: int
    """The end of the bytes that it stands for, from the segment's offset."""
    size: int


class SegmentWriter:
    """Stores one stream in order, redacted, from an offset at which a segment begins.

    Holds less than a segment, and costs nothing in storage before the first byte. Bytes that may be the beginning of a
    secret are held back until that is known. What does not fit in `quota`, what the session may hold, is not stored,
    nor is anything behind it: the stream ends early, and `whole` says so. Without a `redactor` what looks like a secret
    to anybody is redacted.
    """

    def __init__(
        self,
        storage: Objects,
        session_id: str,
        call_id: str,
        stream: Stream,
        offset: int = 0,
        *,
        redactor: Redactor | None = None,
        quota: int | None = None,
    ) -> None:
        if offset % SEGMENT_BYTES:
            raise ValueError(f"no segment begins at {offset}")
        self._quota = quota
        self.whole = True
        self._storage = storage
        self._at = (session_id, call_id, stream)
        self._began = self._full = self._taken = offset
        self._redaction = StreamRedaction(redactor or Redactor({}))
        self._segment = Segment()
        self._part: _Part | None = None
        self._rewrite_at = 0.0
        self.redactions = 0
        """How many secrets were replaced from the beginning of the stream on."""

    @property
    def offset(self) -> int:
        """Where the next byte belongs."""
        return self._taken

    @property
    def full_bytes(self) -> int:
        """How far full segments reach in storage: what a later writer may begin at."""
        return self._full

    @property
    def unseen(self) -> bool:
        """Whether there are bytes that readers could see and cannot yet."""
        return self.whole and self._segment.end > (self._part.end if self._part else self._segment.begin)

    async def go_on(self) -> None:
        """Go on behind all that an earlier writer has stored from `offset` on. Only before anything was taken."""
        stored = SegmentReader(self._storage)
        before = await stored.segment(*self._at, self._full - SEGMENT_BYTES) if self._full else None
        while (found := await stored.segment(*self._at, self._full)) is not None and found.is_full:
            before, self._full = found, self._full + SEGMENT_BYTES
        self._began = self._full
        self._segment = before.next() if before is not None else Segment()
        plain = b""
        if found is not None:
            self._part = _Part(found.end, found.stored_bytes)
            if found.is_plain:
                plain = bytes(found.shown[self._segment.begin :])
            else:
                self._segment = found
        self._taken = self._full + self._segment.end
        self.redactions = self._segment.redactions
        await self.take(plain)

    async def use(self, redactor: Redactor) -> None:
        """Redact by this one from here on."""
        if self.whole and redactor is not self._redaction.redactor:
            await self._store(self._redaction.use(redactor))

    async def take(self, data: bytes) -> None:
        """Take the bytes at `offset`. All full segments are in storage when this returns, unless the stream is cut."""
        self._taken += len(data)
        if not self.whole:
            return
        if len(data) <= AT_ONCE_BYTES:
            await self._store(self._redaction.feed(data))
        else:
            await self._store(await asyncio.to_thread(self._redaction.feed, data))

    async def flush(self) -> None:
        """Store what does not fill a segment, so that readers see it; nothing within REWRITE_S of the last time."""
        if not self.unseen or time.monotonic() < self._rewrite_at:
            return
        if self._part is None:
            # An earlier writer may have come further, and readers have seen it: what is stored never shrinks.
            earlier = await self._storage.get_bytes(self._session_id, self._path(PART_SUFFIX))
            end = Segment.decoded(earlier).end if earlier else self._segment.begin
            self._part = _Part(end, len(earlier or b""))
        if self._segment.end > self._part.end:
            data = self._segment.encoded()
            try:
                async with self._admitted(len(data) - self._part_size):
                    await self._put(self._path(PART_SUFFIX), data)
            except QuotaExceeded:
                self._cut()
                return
            self._part = _Part(self._segment.end, len(data))
        self._rewrite_at = time.monotonic() + REWRITE_S

    async def finish(self, *, cut: bool = False) -> None:
        """Store the rest as the end of the stream; with `cut` more followed, and is lost. Safe to repeat."""
        if self.whole:
            await self._store(self._redaction.end(cut=cut))
        if self._segment.is_empty:
            return
        data = self._segment.encoded()
        try:
            async with self._admitted(len(data) - self._part_size):
                await self._put(self._path(), data)
        except QuotaExceeded:
            self._cut()
            return
        await self._storage.delete(self._session_id, self._path(PART_SUFFIX))

    async def _store(self, pieces: Iterable[Piece]) -> None:
        """Add the pieces to the stream, and store the segments that are full then."""
        full: list[bytes] = []
        for piece in pieces:
            if piece.name is not None:
                self._segment.replace(piece.size, piece.data)
                self.redactions += 1
                self._next_if_full(full)
                continue
            data = memoryview(piece.data)
            while data:
                data = data[self._segment.show(data) :]
                self._next_if_full(full)
        if not full:
            return
        try:
            async with self._admitted(sum(map(len, full)) - self._part_size):
                await asyncio.gather(*(self._put(self._path(number=n), each) for n, each in enumerate(full)))
        except QuotaExceeded:
            self._cut()
            return
        if self._part_size or self._full == self._began:  # an earlier writer's, at the beginning
            await self._storage.delete(self._session_id, self._path(PART_SUFFIX))
        self._full, self._part = self._full + len(full) * SEGMENT_BYTES, None

    @property
    def _part_size(self) -> int:
        """What lies in storage of the segment that is being written."""
        return 0 if self._part is None else self._part.size

    def _next_if_full(self, full: list[bytes]) -> None:
        while self._segment.is_full:
            full.append(self._segment.encoded())
            self._segment = self._segment.next()

    def _admitted(self, more: int) -> AbstractAsyncContextManager[None]:
        """For a write by which the session comes to hold so much more."""
        if self._quota is None or more <= 0:
            return nullcontext()
        return self._storage.usage.admitted(self._session_id, more, self._quota)

    def _cut(self) -> None:
        """Store nothing any more, also not when there is room again: a stream has no gaps. What readers saw stays."""
        self.whole = False
        self._segment = Segment()

    @property
    def _session_id(self) -> str:
        return self._at[0]

    def _path(self, suffix: str = "", *, number: int = 0) -> str:
        """The place of the segment that is being written, or of one of those behind it."""
        _, call_id, stream = self._at
        return segment_path(call_id, stream, self._full + number * SEGMENT_BYTES) + suffix

    async def _put(self, path: str, data: bytes) -> None:
        await self._storage.put_bytes(self._session_id, path, data)


@dataclass(frozen=True)
class Extent:
    """What is stored of a stream."""

    size: int = 0
    """Bytes of the command."""
    redactions: int = 0
    """Secrets among them that were replaced."""


class SegmentReader:
    """Reads streams while they grow and afterwards. Holds one segment at a time."""

    def __init__(self, storage: Objects) -> None:
        self._storage = storage

    async def read(self, session_id: str, call_id: str, stream: Stream, offset: int, limit: int) -> OutputWindow:
        """What may be shown of at most `limit` bytes from `offset` on; of none at or behind what is stored so far.

        Begins behind a secret of which `offset` is in the middle; the last is in it as a whole, also beyond the limit.
        """
        data: list[bytes] = []
        at, size, redactions = offset, 0, 0
        async for window in self.windows(session_id, call_id, stream, offset, limit):
            if not data:
                at = window.offset
            data.append(window.data)
            size = window.end - at
            redactions += window.redactions
        return OutputWindow(at, size, b"".join(data), redactions)

    async def windows(
        self, session_id: str, call_id: str, stream: Stream, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[OutputWindow]:
        """What is stored from `offset` on, segment by segment, to the limit or the end of what is stored so far.

        To follow a stream that grows, go on from the end of the last window after a while.
        """
        while limit is None or limit > 0:
            start = offset - offset % SEGMENT_BYTES
            segment = await self.segment(session_id, call_id, stream, start)
            if segment is None:
                start -= SEGMENT_BYTES
                before = await self.segment(session_id, call_id, stream, start) if start >= 0 else None
                if before is not None and start + before.end > offset:
                    # In the middle of the last secret, which goes on beyond its segment.
                    yield OutputWindow(start + before.end, 0, b"")
                return
            window = segment.window(offset - start, limit)
            yield OutputWindow(start + window.offset, window.size, window.data, window.redactions)
            if not segment.is_full:
                return
            limit = None if limit is None else limit - window.size
            offset = start + window.end

    async def extent(self, session_id: str, call_id: str, stream: Stream) -> Extent:
        """How far the stream is stored, from its beginning without a gap."""
        found: set[int] = set()
        async for name, _ in self._storage.list(session_id, output_folder(call_id, stream)):
            _note(found, name)
        last = _row(found) - 1
        segment = await self.segment(session_id, call_id, stream, last * SEGMENT_BYTES) if last >= 0 else None
        return Extent() if segment is None else Extent(last * SEGMENT_BYTES + segment.end, segment.redactions)

    async def segments(self, session_id: str, call_id: str) -> dict[Stream, int]:
        """How many segments of each stream are stored, from its beginning without a gap. All but the last are full.

        One list.
        """
        folders: dict[str, Stream] = {"stdout": "stdout", "stderr": "stderr"}
        found: dict[Stream, set[int]] = {"stdout": set(), "stderr": set()}
        async for path, _ in self._storage.list(session_id, f"calls/{call_folder(call_id)}"):
            folder, _, name = path.partition("/")
            if folder in folders:
                _note(found[folders[folder]], name)
        return {stream: _row(offsets) for stream, offsets in found.items()}

    async def segment(self, session_id: str, call_id: str, stream: Stream, offset: int) -> Segment | None:
        """The segment at `offset` as far as it is stored; None when it is not."""
        data = await self._bytes(session_id, segment_path(call_id, stream, offset))
        return None if data is None else Segment.decoded(data)

    async def _bytes(self, session_id: str, path: str) -> bytes | None:
        final = await self._storage.get_bytes(session_id, path)
        if final is not None:
            return final
        part = await self._storage.get_bytes(session_id, path + PART_SUFFIX)
        if part is not None:
            return part
        # Between the two looks the part may have become final.
        return await self._storage.get_bytes(session_id, path)


def _note(offsets: set[int], name: str) -> None:
    """Note the offset of the segment, if `name` is one's."""
    digits = name.removesuffix(PART_SUFFIX)
    if digits.isdecimal():
        offsets.add(int(digits))


def _row(offsets: set[int]) -> int:
    """How many segments are in the row that begins at 0."""
    number = 0
    while number * SEGMENT_BYTES in offsets:
        number += 1
    return number
