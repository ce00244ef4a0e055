"""Bringing a directory or a file of a sandbox into session storage, in one pass and little memory."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from typing import Protocol, TypeVar

from activities.stream_requests import StreamBroken, StreamEnd
from activities.stream_scripts import PACK
from activities.streams import SandboxOutput, SandboxStreams
from activities.tar import TarBroken, Visitor
from activities.workspaces.archive import SUFFIX, ArchiveChecker, ArchiveWriter, WrittenOtherwise
from activities.workspaces.entries import EntryRules, Report, readable
from activities.workspaces.packed import Packed
from activities.workspaces.saving import FilesSaving
from activities.workspaces.selection import Selection
from activities.workspaces.single_files import FileWriter
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.session_paths import session_folder
from sandhold.contracts.steps import SandboxRef
from sandhold.contracts.workspaces import DownloadWorkspaceArguments, DownloadWorkspaceResult
from sandhold.storage import FileStore, Quota

Out = TypeVar("Out")

STEPS_AT_ONCE = 8
"""How many steps are taken before what they made is stored."""
OUT_AT_ONCE = 10_000
"""When they make as much as this, which may be small, fewer."""


class _Writer(Visitor, Protocol[Out]):
    def take(self) -> list[Out]: ...


class WorkspaceDownload:
    """One download, once."""

    def __init__(
        self, streams: SandboxStreams, files: FileStore, quota: Quota, path: str, asked: DownloadWorkspaceArguments
    ) -> None:
        """`path` is the directory or file in the sandbox, absolute. To be made in a thread: patterns take a while."""
        self._streams = streams
        self._files = files
        self._quota = quota
        self._path = posixpath.normpath(path)
        self._asked = asked
        self._selection = Selection(self._path, asked.include or (), asked.exclude or ())
        self._begin()

    def _begin(self) -> None:
        self.report = Report()
        self._rules = EntryRules(self._selection, self._asked.format, self._quota.file_bytes, self.report)

    async def run(self, ref: SandboxRef, call_id: str) -> DownloadWorkspaceResult:
        """Download it. An archive is stored as a whole or not at all, single files each so.

        Raises ToolFailure, and what may go better in another attempt as ApplicationError. Single files that were stored
        before a failure stay.
        """
        try:
            if self._asked.format == "archive" and self._selection.is_tars_own:
                with suppress(WrittenOtherwise):
                    async with self._streams.read(ref, call_id, PACK, self._environment()) as output:
                        return await self._as_archive(output, ArchiveChecker(self._rules, self.report))
                self._begin()
            async with self._streams.read(ref, call_id, PACK, self._environment()) as output:
                if self._asked.format == "archive":
                    return await self._as_archive(output, ArchiveWriter(self._rules, self.report))
                return await self._as_files(output)
        except TarBroken as error:
            raise StreamBroken(str(error)) from error

    async def _as_archive(
        self, output: SandboxOutput, writer: ArchiveChecker | ArchiveWriter
    ) -> DownloadWorkspaceResult:
        path = session_folder(self._asked.session_path) + SUFFIX

        async def content() -> AsyncGenerator[bytes]:
            tap = writer.tap if isinstance(writer, ArchiveChecker) else None
            async with aclosing(self._steps(output, writer, tap)) as steps:
                async for piece in steps:
                    yield piece
            for piece in await asyncio.to_thread(writer.end):
                yield piece

        async with aclosing(content()) as pieces:
            await self._files.write(path, pieces, self._quota)
        return self._result(f"/{path}", archive_bytes=writer.bytes, sha256=writer.sha256)

    async def _as_files(self, output: SandboxOutput) -> DownloadWorkspaceResult:
        folder = session_folder(self._asked.session_path)
        writer = FileWriter(self._rules, self.report, folder)
        is_fresh = await self._files.is_free(folder)
        saving = FilesSaving(self._files, self._quota, self.report, is_fresh=is_fresh)
        try:
            async with aclosing(self._steps(output, writer)) as orders:
                await saving.carry_out(orders)
        except ToolFailure as failure:
            if not self.report.files:
                raise
            stored = f"{self.report.files} files with {self.report.bytes} bytes were stored before that, and stay"
            told = failure.error.model_copy(update={"message": f"{failure.error.message}; {stored}"})
            raise ToolFailure(**told.model_dump()) from failure
        return self._result(f"/{folder}")

    async def _steps(
        self, output: SandboxOutput, writer: _Writer[Out], tap: Callable[[bytes], None] | None = None
    ) -> AsyncGenerator[Out]:
        """What the writer makes of the stream, some steps at a time: in a thread, as it computes."""
        packed = Packed(self._path, writer, tap)

        def reading(pieces: list[bytes]) -> Iterator[None]:
            for piece in pieces:
                for _ in packed.feed(piece):
                    if tap is not None and not packed.is_canonical:
                        raise WrittenOtherwise
                    if packed.is_file:
                        self._rules.only_name = posixpath.basename(self._path).encode()
                    yield

        async for pieces in output.batches():
            steps = reading(pieces)
            more = True
            while more:
                more, out = await asyncio.to_thread(_several, steps, writer)
                for each in out:
                    yield each
        await asyncio.to_thread(self._finish, packed, output.end)

    def _finish(self, packed: Packed, end: StreamEnd) -> None:
        """See that everything came. Raises ToolFailure when it did not, and StreamBroken where that may be chance."""
        try:
            packed.close()
        except TarBroken as error:
            last_words = readable(end.said).strip().rpartition("\n")[2][-200:]
            if "short read" in last_words:
                raise ToolFailure(
                    ErrorCode.CONFLICT,
                    "a file became shorter while it was read, and the sandbox's tar gives up then",
                    hint="End what writes there, or leave it out with exclude.",
                    retryable=True,
                ) from error
            raise StreamBroken(f"{error}; the sandbox's tar ended with {end.exit_code}: {last_words}") from error
        self._rules.finish(end.said, is_cut=end.is_said_cut)

    def _environment(self) -> dict[str, str]:
        operands = self._selection.operands_for_tar()
        return {
            "SANDHOLD_ROOT": self._path,
            "SANDHOLD_NAMES": "\n".join(self._selection.names_for_tar()),
            "SANDHOLD_PATHS": "\n".join(self._selection.paths_for_tar()),
            "SANDHOLD_OPERANDS": "\n".join(operands or ()),
            "SANDHOLD_HARD_LINKS": "keep" if self._asked.format == "archive" else "copy",
        }

    def _result(
        self, path: str, *, archive_bytes: int | None = None, sha256: str | None = None
    ) -> DownloadWorkspaceResult:
        report = self.report
        return DownloadWorkspaceResult(
            session_path=path,
            format=self._asked.format,
            files_downloaded=report.files,
            bytes=report.bytes,
            archive_bytes=archive_bytes,
            sha256=sha256,
            files_skipped=report.skipped,
            skipped_count=report.skipped_count,
            more_skipped=report.more_skipped,
            files_changed=report.changed,
            changed_count=report.changed_count,
            empty_directories=report.empty_directories,
        )


def _several(steps: Iterator[None], writer: _Writer[Out]) -> tuple[bool, list[Out]]:
    """Take some steps; whether there are more, and what there is."""
    out: list[Out] = []
    for _ in range(STEPS_AT_ONCE):
        if next(steps, writer) is writer:
            return False, out + writer.take()
        out += writer.take()
        if len(out) >= OUT_AT_ONCE:
            break
    return True, out
