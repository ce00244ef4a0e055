"""Bringing a saved workspace, or any folder of session storage, into a directory of a sandbox, in little memory."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Protocol

from activities.arrivals import Arrivals
from activities.tar import TarBroken, TarReader
from activities.workspaces.entries import EntryRules, Report
from activities.workspaces.objects import folder_as_tar
from activities.workspaces.packed import STEP_BYTES
from activities.workspaces.plain import Piece, PlainWriter
from activities.workspaces.selection import Selection
from activities.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.session_paths import session_folder
from sandhold.contracts.steps import SandboxRef
from sandhold.storage import FileStore

_NO_LIMIT = 2**62
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC = b"\x1f\x8b"
_WINDOW_LOG = 27
"""What `zstd` itself lends a stream at most, unless it is asked: 128 MiB, of which a level below 20 needs 8."""


class WorkspaceRestore:
    """One restore, once. Files of the same names are replaced, and nothing else is touched."""

    def __init__(self, arrivals: Arrivals, files: FileStore, source: str, path: str) -> None:
        """`source` is an archive or a folder in session storage, `path` an absolute directory in the sandbox."""
        self._arrivals = arrivals
        self._files = files
        self._source = source
        self._path = path
        self.report = Report()

    async def run(self, ref: SandboxRef, call_id: str) -> None:
        """Return when everything is in the sandbox; `report` then says what that is.

        Raises ToolFailure, and what may go better in another attempt as ApplicationError. What came before a failure
        stays.
        """
        content = self._archive() if await self._is_archive() else self._folder()
        async with aclosing(content) as pieces:
            await self._arrivals.unpack(ref, call_id, self._path, pieces)

    async def _is_archive(self) -> bool:
        folder = session_folder(self._source)
        if not folder:
            return False
        try:
            await self._files.find(folder)
        except ToolFailure as failure:
            if failure.error.code is ErrorCode.PATH_NOT_FOUND and await self._files.is_folder(folder):
                return False
            raise
        return True

    def _folder(self) -> AsyncGenerator[bytes]:
        return folder_as_tar(self._files, session_folder(self._source), self.report)

    async def _archive(self) -> AsyncGenerator[bytes]:
        """The archive without compression, made anew of what a workspace can have."""
        rules = EntryRules(Selection(self._path, defaults=()), "archive", _NO_LIMIT, self.report)
        writer = PlainWriter(rules, self.report)
        unpacked = _Unpacked(TarReader(writer))
        steps: Iterator[None]

        def step() -> tuple[bool, list[Piece]]:
            more = next(steps, self) is not self
            return more, writer.take()

        try:
            async with aclosing(self._files.read(self._source)) as pieces:  # type: ignore[type-var]
                async for data in pieces:
                    steps = unpacked.feed(data)
                    more = True
                    while more:
                        more, out = await asyncio.to_thread(step)
                        for piece in _with_zeros(out):
                            yield piece
            unpacked.close()
        except (TarBroken, ZstdError, zlib.error) as error:
            raise ToolFailure(
                ErrorCode.INVALID_ARGUMENTS,
                f"{self._source} in session storage is damaged, or no archive: {error}",
                hint=f"It has to be a tar archive, plain or compressed by gzip or zstd. {self._so_far()}",
            ) from error
        for piece in _with_zeros(writer.end()):
            yield piece

    def _so_far(self) -> str:
        return f"{self.report.files} files were restored before that, and stay." if self.report.files else ""


def _with_zeros(pieces: list[Piece]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        else:
            for start in range(0, piece, STEP_BYTES):
                yield bytes(min(STEP_BYTES, piece - start))


class _Decompressor(Protocol):
    def __call__(self, data: bytes) -> Iterator[bytes]: ...


class _Unpacked:
    """Reads an archive that may be compressed, as its first bytes say."""

    def __init__(self, reader: TarReader) -> None:
        self._reader = reader
        self._begun = b""
        self._decompress: _Decompressor | None = None
        self._ends_well: Callable[[], bool] = lambda: True

    def feed(self, data: bytes) -> Iterator[None]:
        """Read on; comes back after every STEP_BYTES of the plain archive. Raises TarBroken, ZstdError, zlib.error."""
        if self._decompress is None:
            data = self._begun + data
            self._begun = data
            if len(data) < len(_ZSTD_MAGIC):
                return
            self._choose(data)
        assert self._decompress is not None
        for piece in self._decompress(data):
            self._reader.feed(piece)
            yield

    def close(self) -> None:
        """The archive has ended. Raises TarBroken when it should not have yet."""
        if not self._ends_well():
            raise TarBroken("it ends in the middle")
        self._reader.close()

    def _choose(self, begun: bytes) -> None:
        if begun.startswith(_ZSTD_MAGIC):
            zstd = _Zstd()
            self._decompress, self._ends_well = zstd.feed, zstd.ends_well
        elif begun.startswith(_GZIP_MAGIC):
            gzip = _Gzip()
            self._decompress, self._ends_well = gzip.feed, gzip.ends_well
        else:
            self._decompress = _in_steps


def _in_steps(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), STEP_BYTES):
        yield data[at : at + STEP_BYTES]


class _Zstd:
    """Any number of zstd frames, one behind the other."""

    def __init__(self) -> None:
        self._frame: ZstdDecompressor | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data or (self._frame is not None and not self._frame.needs_input):
            frame = self._frame or ZstdDecompressor(options={DecompressionParameter.window_log_max: _WINDOW_LOG})
            self._frame = frame
            yield frame.decompress(data, STEP_BYTES)
            data = b""
            if frame.eof:
                data, self._frame = frame.unused_data, None

    def ends_well(self) -> bool:
        return self._frame is None


class _Gzip:
    """Any number of gzip members, one behind the other; zeros may follow."""

    def __init__(self) -> None:
        self._member: zlib._Decompress | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member is None:
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            member = self._member
            yield member.decompress(data, STEP_BYTES)
            data = member.unconsumed_tail
            if member.eof:
                data, self._member = member.unused_data, None

    def ends_well(self) -> bool:
        return self._member is None
