"""One segment of a command's output: what may be shown of it, and which of the bytes that the command wrote that is.

Offsets count what the command wrote. Secrets in it are stored as what replaces them, which has another length, so a
segment begins with an index: (little-endian)

    8 bytes   MAGIC, the format and its version
    u32       CRC-32 of all that follows up to the shown bytes
    u32, u32  which bytes of the command it stands for: from `begin` to before `end`, counted from the segment's offset
    u64       how many secrets were replaced in the stream before it
    u32       how many are in it, and for each three u32: where it begins, how many bytes it stands for, and how many
              bytes are shown in their place

and then come the bytes to show. A secret belongs as a whole to the segment in which it begins: `end` may lie behind the
segment's last byte, and the next segment's `begin` is as far behind its first. A segment without an index is of the
time before there was redaction, and holds what the command wrote.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate

SEGMENT_BYTES = 1024 * 1024
MAGIC = b"\x93shseg1\n"
_CHECKED = struct.Struct("<8sI")
_HEAD = struct.Struct("<IIQI")
_NUMBERS = "I"
"""The type of the index's numbers, of four bytes on every machine that this runs on."""


@dataclass(frozen=True)
class OutputWindow:
    """What may be shown of `size` bytes from `offset` on, of those that the command wrote."""

    offset: int
    size: int
    data: bytes
    redactions: int = 0
    """How many secrets in it were replaced."""

    @property
    def end(self) -> int:
        """Where the next window begins."""
        return self.offset + self.size


class Segment:
    """A segment in memory. Positions count from its offset in the stream."""

    def __init__(self, begin: int = 0, redacted_before: int = 0, *, is_plain: bool = False) -> None:
        self.begin = self.end = begin
        self.redacted_before = redacted_before
        self.is_plain = is_plain
        """Whether it is of the time before there was redaction."""
        self.stored_bytes = 0
        """Its size in storage, if it comes from there."""
        self.shown = bytearray()
        self._places = array(_NUMBERS)
        self._sizes = array(_NUMBERS)
        self._shown_sizes = array(_NUMBERS)

    @property
    def redactions(self) -> int:
        """How many secrets were replaced in the stream up to the end of this segment."""
        return self.redacted_before + len(self._places)

    @property
    def is_empty(self) -> bool:
        return self.end == self.begin

    @property
    def is_full(self) -> bool:
        return self.end >= SEGMENT_BYTES

    def next(self) -> Segment:
        """The empty segment behind this one, which is full."""
        return Segment(max(0, self.end - SEGMENT_BYTES), self.redactions)

    def show(self, data: memoryview) -> int:
        """Take of `data` what belongs here, as it is; how many bytes that is."""
        taken = data[: max(0, SEGMENT_BYTES - self.end)]
        self.shown += taken
        self.end += len(taken)
        return len(taken)

    def replace(self, size: int, shown: bytes) -> None:
        """Show something else in the place of `size` bytes."""
        self._places.append(self.end)
        self._sizes.append(size)
        self._shown_sizes.append(len(shown))
        self.shown += shown
        self.end += size

    def window(self, first: int, limit: int | None = None) -> OutputWindow:
        """What is here of at most `limit` bytes from `first` on.

        Begins behind a secret of which `first` is in the middle; the last is in it as a whole, also beyond the limit.
        """
        first = max(first, self.begin)
        at = bisect_right(self._places, first) - 1
        if at >= 0 and self._places[at] < first:
            first = max(first, self._places[at] + self._sizes[at])
        last = self.end if limit is None else min(self.end, first + limit)
        at = bisect_left(self._places, last) - 1
        if at >= 0:
            last = max(last, self._places[at] + self._sizes[at])
        if first >= last:
            return OutputWindow(first, 0, b"")
        before, until = bisect_left(self._places, first), bisect_left(self._places, last)
        grown = self._grown()
        data = self.shown[first - self.begin + grown[before] : last - self.begin + grown[until]]
        return OutputWindow(first, last - first, bytes(data), until - before)

    def _grown(self) -> list[int]:
        """By how many bytes what is shown is longer than what it stands for, before each secret and at the end."""
        more = (shown - size for shown, size in zip(self._shown_sizes, self._sizes, strict=True))
        return list(accumulate(more, initial=0))

    def encoded(self) -> bytes:
        """As it lies in storage."""
        head = _HEAD.pack(self.begin, self.end, self.redacted_before, len(self._places))
        index = head + b"".join(map(_bytes, (self._places, self._sizes, self._shown_sizes)))
        return b"".join((_CHECKED.pack(MAGIC, zlib.crc32(index)), index, self.shown))

    @classmethod
    def decoded(cls, data: bytes) -> Segment:
        """The segment that lies so in storage."""
        segment = _indexed(data) or _plain(data)
        segment.stored_bytes = len(data)
        return segment


def _indexed(data: bytes) -> Segment | None:
    """The segment, if it begins with an index."""
    index_at = _CHECKED.size + _HEAD.size
    if not data.startswith(MAGIC) or len(data) < index_at:
        return None
    begin, end, redacted_before, count = _HEAD.unpack_from(data, _CHECKED.size)
    shown_at = index_at + 3 * count * array(_NUMBERS).itemsize
    if _CHECKED.unpack_from(data)[1] != zlib.crc32(memoryview(data)[_CHECKED.size : shown_at]):
        return None
    segment = Segment(begin, redacted_before)
    segment.end = end
    numbers = _numbers(data[index_at:shown_at])
    segment._places, segment._sizes, segment._shown_sizes = (numbers[n * count : (n + 1) * count] for n in range(3))
    segment.shown += memoryview(data)[shown_at:]
    return segment


def _plain(data: bytes) -> Segment:
    segment = Segment(is_plain=True)
    segment.shown += data
    segment.end = len(data)
    return segment


def _bytes(numbers: array[int]) -> bytes:
    return _little_endian(numbers).tobytes()


def _numbers(data: bytes) -> array[int]:
    numbers = array(_NUMBERS)
    numbers.frombytes(data)
    return _little_endian(numbers)


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers
