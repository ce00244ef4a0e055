"""A folder of session storage as a tar stream: one entry for each file, in the order of their paths."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from activities.stream_requests import StreamBroken
from activities.tar import END_OF_ARCHIVE, EntryKind, TarEntry, header_of, padding
from activities.workspaces.entries import Report
from activities.workspaces.selection import OURS
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.storage import StoredFile
from sandhold.storage import FileStore

SMALL_BYTES = 256 * 1024
"""Files up to this size are read as a whole, several ahead: a bucket takes 20 ms to answer for each."""
AHEAD = 16
_MODE = 0o644


async def folder_as_tar(files: FileStore, folder: str, report: Report) -> AsyncGenerator[bytes]:
    """The folder's files. One that is removed meanwhile is left out; StreamBroken when one is replaced by another."""
    ahead: deque[tuple[StoredFile, asyncio.Task[bytes | None] | None]] = deque()
    try:
        async for found in files.list(folder):
            if _name(folder, found).partition("/")[0] == OURS:
                continue
            is_small = found.size <= SMALL_BYTES
            ahead.append((found, asyncio.create_task(_whole(files, found)) if is_small else None))
            if len(ahead) >= AHEAD:
                async with aclosing(_entry(files, folder, report, *ahead.popleft())) as pieces:
                    async for piece in pieces:
                        yield piece
        while ahead:
            async with aclosing(_entry(files, folder, report, *ahead.popleft())) as pieces:
                async for piece in pieces:
                    yield piece
        yield END_OF_ARCHIVE
    finally:
        reading = [task for _, task in ahead if task is not None]
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def _entry(
    files: FileStore, folder: str, report: Report, found: StoredFile, reading: asyncio.Task[bytes | None] | None
) -> AsyncGenerator[bytes]:
    name = _name(folder, found).encode()
    content: AsyncIterator[bytes]
    if reading is not None:
        data = await reading
        if data is None:
            report.skip(name, "vanished")
            return
        content = _one(data)
    else:
        content = files.read(found.path)
    entry = TarEntry(name, EntryKind.FILE, _MODE, int(found.modified_at.timestamp()), found.size, b"")
    yield header_of(entry)
    passed = 0
    async for piece in content:
        passed += len(piece)
        yield piece
    if passed != found.size:
        raise StreamBroken(f"{found.path} in session storage was replaced while it was read")
    yield padding(found.size)
    report.take_file(found.size)


def _name(folder: str, found: StoredFile) -> str:
    return found.path.removeprefix(f"{folder}/") if folder else found.path


async def _whole(files: FileStore, found: StoredFile) -> bytes | None:
    """The file's bytes; None when it was removed."""
    try:
        return b"".join([piece async for piece in files.read(found.path)])
    except ToolFailure as failure:
        if failure.error.code is ErrorCode.PATH_NOT_FOUND:
            return None
        raise


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data
