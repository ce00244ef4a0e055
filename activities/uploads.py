"""Bringing files of session storage into a sandbox: each by a stream of its own, whole or not at all."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

from activities.arrivals import Arrivals
from activities.files import absolute
from activities.shown_texts import as_shown
from activities.workspaces.restore import WorkspaceRestore
from sandhold.contracts.base import Message
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure, as_application_error
from sandhold.contracts.excerpts import beginning_of
from sandhold.contracts.session_paths import session_path
from sandhold.contracts.steps import SandboxRef
from sandhold.contracts.transfers import FailedUpload, PushFilesResult, UploadFile
from sandhold.storage import FileStore

SMALL_BYTES = 1024 * 1024
SMALL_AT_ONCE = 4
"""Files up to SMALL_BYTES that travel at once. Larger ones go alone: each takes up to 32 MiB of memory."""
_MESSAGE_CHARS = 500


class Settled(Message):
    """What became of one file: a failure, or how many files and bytes it was."""

    files: int = 0
    bytes: int = 0
    error: ToolError | None = None


@dataclass
class Upload:
    """The files of one call, and what has become of them so far: an attempt goes on where the one before was."""

    files: list[UploadFile]
    settled: dict[int, Settled] = field(default_factory=dict)
    """By the file's place in the list."""

    def open(self) -> Iterator[tuple[int, UploadFile]]:
        return ((number, file) for number, file in enumerate(self.files) if number not in self.settled)

    def result(self) -> PushFilesResult:
        """What came of all of them."""
        result = PushFilesResult()
        for number, file in enumerate(self.files):
            settled = self.settled[number]
            result.files_uploaded += settled.files
            result.bytes += settled.bytes
            if settled.error is not None:
                result.files_failed.append(
                    FailedUpload(session_path=file.session_path, sandbox_path=file.sandbox_path, error=settled.error)
                )
        return result


class FileUploads:
    """Uploads into one sandbox on behalf of one call."""

    def __init__(self, arrivals: Arrivals, files: FileStore, ref: SandboxRef, call_id: str) -> None:
        self._arrivals = arrivals
        self._files = files
        self._ref = ref
        self._call_id = call_id

    async def carry_out(self, upload: Upload) -> None:
        """Settle all of the upload's files. Raises what another attempt may mend: that one has the rest to do."""
        small: list[tuple[int, UploadFile]] = []
        large: list[tuple[int, UploadFile]] = []
        for number, file in upload.open():
            try:
                found = await self._files.find(file.session_path)
            except ToolFailure:
                large.append((number, file))  # a folder, or nothing: told when its turn comes
            else:
                (small if found.size <= SMALL_BYTES else large).append((number, file))
        places = asyncio.Semaphore(SMALL_AT_ONCE)

        async def settle(number: int, file: UploadFile) -> None:
            async with places:
                upload.settled[number] = await self._settled(number, file)

        settling = [asyncio.create_task(settle(*each)) for each in small]
        try:
            await asyncio.gather(*settling)
        finally:
            for task in settling:
                task.cancel()
            await asyncio.gather(*settling, return_exceptions=True)
        for number, file in large:
            upload.settled[number] = await self._settled(number, file)

    async def _settled(self, number: int, file: UploadFile) -> Settled:
        # Each file has streams of its own; no call id has a %.
        stream_id = f"{self._call_id}%{number}"
        try:
            return await self._brought(stream_id, file)
        except ToolFailure as failure:
            raise_if_storage_is_away(failure)
            error = await as_shown(failure.error)
            return Settled(error=error.model_copy(update={"message": beginning_of(error.message, _MESSAGE_CHARS)}))

    async def _brought(self, stream_id: str, file: UploadFile) -> Settled:
        source = session_path(file.session_path)
        path = absolute(file.sandbox_path)
        if path.endswith("/"):
            path += posixpath.basename(source)
        try:
            found = await self._files.find(source)
        except ToolFailure as failure:
            if failure.error.code is not ErrorCode.PATH_NOT_FOUND or not await self._files.is_folder(source):
                raise
            restore = WorkspaceRestore(self._arrivals, self._files, source, absolute(file.sandbox_path))
            await restore.run(self._ref, stream_id)
            return Settled(files=restore.report.files, bytes=restore.report.bytes)
        async with aclosing(self._files.read(source)) as pieces:  # type: ignore[type-var]
            await self._arrivals.place(self._ref, stream_id, path, pieces, size=found.size)
        return Settled(files=1, bytes=found.size)


def raise_if_storage_is_away(failure: ToolFailure) -> None:
    """Raise what makes Temporal try again, when it was session storage that could not be reached."""
    if failure.error.code is ErrorCode.INTERNAL and failure.error.retryable:
        raise as_application_error(failure.error, non_retryable=False) from failure
