"""A workspace as one archive: the sandbox's own if that holds nothing else, and else one that is written anew."""

from __future__ import annotations

import hashlib

from activities.tar import END_OF_ARCHIVE, EntryKind, TarEntry, header_of, padding
from activities.workspaces.entries import EntryRules, Report
from activities.zstd import ZstdCompressor

SUFFIX = ".tar.zst"
_LEVEL = 1
_GATHERED_BYTES = 64 * 1024
"""Headers and small files are compressed together; what is as large as this by itself."""
_ZEROS = memoryview(bytes(2 * _GATHERED_BYTES))


class WrittenOtherwise(Exception):
    """The sandbox's archive is not what we would have written: it has to be written anew."""


class ArchiveChecker:
    """A visitor of the sandbox's archive that lets it pass as it is, while every header in it is byte for byte the one
    that ArchiveWriter would write, and nothing in it has to be left out. Raises WrittenOtherwise.

    GNU tar's are, unless there are holes, pipes, devices, or other things that are seldom. Packing again what has just
    been unpacked would be most of the work of a download.
    """

    def __init__(self, rules: EntryRules, report: Report) -> None:
        self._rules = rules
        self._report = report
        self._size = 0
        self._ready: list[bytes] = []
        self._digest = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        """Of everything that was taken from `take`."""
        return self._digest.hexdigest()

    def tap(self, data: bytes) -> None:
        """Is shown the archive as it comes, each piece before its entries."""
        self._digest.update(data)
        self.bytes += len(data)
        self._ready.append(data)

    def pass_files(self, data: bytes, at: int) -> int:
        return self._rules.pass_files(data, at)

    def begin(self, entry: TarEntry) -> bool:
        blocks = entry.blocks
        if not self._rules.takes(entry) or header_of(entry) != blocks:
            raise WrittenOtherwise
        self._size = entry.size
        if entry.kind is not EntryKind.FILE:
            self._report.take_other(entry.kind)
        return entry.kind is EntryKind.FILE

    def content(self, piece: memoryview) -> None:
        """It is in what passes."""

    def hole(self, size: int) -> None:
        raise WrittenOtherwise

    def finish(self) -> None:
        self._report.take_file(self._size)

    def take(self) -> list[bytes]:
        """What has come of the archive since the last time."""
        ready, self._ready = self._ready, []
        return ready

    def end(self) -> list[bytes]:
        return self.take()


class ArchiveWriter:
    """A visitor of the sandbox's archive that makes another one of it."""

    def __init__(self, rules: EntryRules, report: Report) -> None:
        self._rules = rules
        self._report = report
        self._compressor = ZstdCompressor(_LEVEL)
        self._gathered: list[bytes | memoryview] = []
        self._weight = 0
        self._size = 0
        self._ready: list[bytes] = []
        self._digest = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        """Of everything that was taken from `take`."""
        return self._digest.hexdigest()

    def pass_files(self, data: bytes, at: int) -> int:
        end = self._rules.pass_files(data, at)
        if end > at:
            self._add(data[at:end])
        return end

    def begin(self, entry: TarEntry) -> bool:
        if not self._rules.takes(entry):
            return False
        self._add(header_of(entry))
        if entry.kind is not EntryKind.FILE:
            self._report.take_other(entry.kind)
            return False
        self._size = entry.size
        return True

    def content(self, piece: memoryview) -> None:
        self._add(piece)

    def hole(self, size: int) -> None:
        for start in range(0, size, len(_ZEROS)):
            self._add(_ZEROS[: size - start])

    def finish(self) -> None:
        self._add(padding(self._size))
        self._report.take_file(self._size)

    def take(self) -> list[bytes]:
        """What is ready of the archive since the last time."""
        self._compress()
        ready, self._ready = self._ready, []
        return ready

    def end(self) -> list[bytes]:
        """The rest of the archive."""
        self._add(END_OF_ARCHIVE)
        self._compress()
        self._store(self._compressor.flush())
        return self.take()

    def _add(self, piece: bytes | memoryview) -> None:
        if len(piece) >= _GATHERED_BYTES:
            self._compress()
            self._store(self._compressor.compress(piece))
            return
        self._gathered.append(piece)
        self._weight += len(piece)
        if self._weight >= _GATHERED_BYTES:
            self._compress()

    def _compress(self) -> None:
        if self._gathered:
            self._store(self._compressor.compress(b"".join(self._gathered)))
            self._gathered.clear()
            self._weight = 0

    def _store(self, data: bytes) -> None:
        if data:
            self._digest.update(data)
            self.bytes += len(data)
            self._ready.append(data)
