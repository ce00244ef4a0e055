"""A tar archive written anew, without compression, from what is taken of another one."""

from __future__ import annotations

from activities.tar import END_OF_ARCHIVE, EntryKind, TarEntry, header_of, padding
from activities.workspaces.entries import EntryRules, Report

Piece = bytes | int
"""A piece of the archive; a number stands for so many zeros, of which there may be more than fit into memory."""


class PlainWriter:
    """A visitor of an archive that makes another one of it."""

    def __init__(self, rules: EntryRules, report: Report) -> None:
        self._rules = rules
        self._report = report
        self._gathered: list[bytes] = []
        self._ready: list[Piece] = []
        self._size = 0

    def pass_files(self, data: bytes, at: int) -> int:
        end = self._rules.pass_files(data, at)
        if end > at:
            self._gathered.append(data[at:end])
        return end

    def begin(self, entry: TarEntry) -> bool:
        if not self._rules.takes(entry):
            return False
        self._gathered.append(header_of(entry))
        if entry.kind is not EntryKind.FILE:
            self._report.take_other(entry.kind)
            return False
        self._size = entry.size
        return True

    def content(self, piece: memoryview) -> None:
        self._gathered.append(bytes(piece))

    def hole(self, size: int) -> None:
        self._join()
        self._ready.append(size)

    def finish(self) -> None:
        self._gathered.append(padding(self._size))
        self._report.take_file(self._size)

    def take(self) -> list[Piece]:
        """What is ready of the archive since the last time."""
        self._join()
        ready, self._ready = self._ready, []
        return ready

    def end(self) -> list[Piece]:
        """The rest of the archive."""
        self._gathered.append(END_OF_ARCHIVE)
        return self.take()

    def _join(self) -> None:
        if self._gathered:
            self._ready.append(b"".join(self._gathered))
            self._gathered.clear()
