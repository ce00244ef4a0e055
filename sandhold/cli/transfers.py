"""Copying between session storage and local files: whole or not at all, several at once, with progress for people."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from sandhold.cli import streams
from sandhold.cli.progress import TransferProgress
from sandhold.client import SandholdError, SessionFiles
from sandhold.contracts.session_paths import InvalidSessionPath, session_folder
from sandhold.contracts.storage import StoredFile

T = TypeVar("T")

_AT_ONCE = 4
_PIECE_BYTES = 1024 * 1024


class LocalFileUnusable(SandholdError):
    """A local file or folder cannot be read or written."""


class ChangedMeanwhile(SandholdError):
    """A local file grew or shrank while it was read."""


@dataclass(frozen=True)
class Skipped:
    """What was not copied, and why."""

    path: str
    reason: str


@dataclass
class Transferred:
    """What was copied."""

    files: int = 0
    bytes: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, size: int) -> None:
        self.files += 1
        self.bytes += size

    def skip(self, path: str, reason: object) -> None:
        shown = path.encode("utf-8", "backslashreplace").decode()  # a name need not be valid Unicode
        self.skipped.append(Skipped(shown, str(reason)))


async def get_file(stored: SessionFiles, path: str, target: Path) -> Transferred:
    """Copy one file to `target`, or into it where that is a folder. What is no file, like a device, is written to."""
    found = await stored.find(path)
    if _is_folder(target):
        target /= found.path.rpartition("/")[2]
    copied = Transferred()
    with TransferProgress(f"get {found.path}", found.size) as progress:
        fetch = _pour if _is_special(target) else _fetch
        copied.add(await fetch(stored, found, target, progress))
    return copied


async def get_folder(stored: SessionFiles, folder: str, target: Path) -> Transferred:
    """Copy all files of the folder to the same places below `target`."""
    top = session_folder(folder)
    copied = Transferred()
    with TransferProgress(f"get {top or '/'}", None) as progress:

        async def fetch(found: StoredFile) -> None:
            place = target / found.path.removeprefix(top).removeprefix("/")
            try:
                copied.add(await _fetch(stored, found, place, progress))
            except LocalFileUnusable as error:
                copied.skip(found.path, error)

        await _several(fetch, stored.list(top))
    if not copied.files and not copied.skipped:
        await stored.find(folder)  # which says what is missing
    return copied


async def to_stdout(stored: SessionFiles, path: str) -> None:
    """Write one file to stdout. Raises BrokenPipeError when nobody reads any more."""
    async for piece in stored.stream(path):
        await streams.write(sys.stdout, piece)


async def put_file(stored: SessionFiles, source: Path, path: str) -> Transferred:
    """Copy one local file to `path`."""
    copied = Transferred()
    with _opened(source, follow=True) as file:
        size = os.fstat(file.fileno()).st_size
        with TransferProgress(f"put {source}", size) as progress:
            copied.add((await stored.write(path, _pieces(file, size), size=size, progress=progress.one_file())).size)
    return copied


async def put_folder(stored: SessionFiles, source: Path, folder: str) -> Transferred:
    """Copy all files below `source` to the same places below `folder`.

    Links are not followed; they and what is no file are named as left out. Empty folders are not kept.
    """
    if not _is_folder(source):
        raise LocalFileUnusable(f"{source} is not a folder")
    top = session_folder(folder)
    copied = Transferred()
    with TransferProgress(f"put {source}", None) as progress:

        async def send(local: Path) -> None:
            name = local.relative_to(source).as_posix()
            try:
                with _opened(local, follow=False) as file:
                    size = os.fstat(file.fileno()).st_size
                    target = f"{top}/{name}" if top else name
                    await stored.write(target, _pieces(file, size), size=size, progress=progress.one_file())
                    copied.add(size)
            except (LocalFileUnusable, ChangedMeanwhile, InvalidSessionPath) as error:
                copied.skip(name, error)

        await _several(send, _files_below(source, copied))
    return copied


async def put_stdin(stored: SessionFiles, path: str) -> Transferred:
    """Store all of stdin as one file."""

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await streams.read(sys.stdin, _PIECE_BYTES):
            yield piece

    copied = Transferred()
    with TransferProgress(f"put {path}", None) as progress:
        copied.add((await stored.write(path, pieces(), progress=progress.one_file())).size)
    return copied


async def _several(copy: Callable[[T], Awaitable[None]], found: AsyncIterator[T]) -> None:
    """Copy what is found, a few at a time. The first error ends all and is raised."""
    running: set[asyncio.Future[None]] = set()
    try:
        async for each in found:
            running.add(asyncio.ensure_future(copy(each)))
            if len(running) >= _AT_ONCE:
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for copying in ended:
                    copying.result()
        while running:
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for copying in ended:
                copying.result()
    finally:
        for copying in running:
            copying.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _fetch(stored: SessionFiles, found: StoredFile, target: Path, progress: TransferProgress) -> int:
    """Copy one file, in place of a local one once it is whole; how many bytes it has. Raises LocalFileUnusable."""
    if _is_special(target):
        raise LocalFileUnusable(f"{target} is not a regular file")
    unfinished = target.with_name(f".sandhold-{secrets.token_hex(8)}")
    with _usable(target, "written"):
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        file = unfinished.open("xb")
    try:
        with file:
            async for piece in stored.stream(found.path, progress=progress.one_file()):
                with _usable(target, "written"):
                    await asyncio.to_thread(file.write, piece)
            size = file.tell()
        with _usable(target, "written"):
            unfinished.replace(target)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return size


async def _pour(stored: SessionFiles, found: StoredFile, target: Path, progress: TransferProgress) -> int:
    """Write one file to a device or pipe; how many bytes it has. Raises LocalFileUnusable, also where nobody reads."""
    size = 0
    with _usable(target, "written"):
        # Opening a pipe waits for its reader, unless asked not to; writing to one should.
        descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        async for piece in stored.stream(found.path, progress=progress.one_file()):
            left = memoryview(piece)
            while left:
                with _usable(target, "written"):
                    left = left[await asyncio.to_thread(file.write, left) :]
            size += len(piece)
    return size


async def _files_below(source: Path, copied: Transferred) -> AsyncIterator[Path]:
    """The files in the order of folders; links to folders and folders that cannot be read are left out by name."""

    def left_out(error: OSError) -> None:
        copied.skip(Path(error.filename).relative_to(source).as_posix(), error.strerror)

    walk = os.walk(source, onerror=left_out)
    while (level := await asyncio.to_thread(next, walk, None)) is not None:
        folder, folders, names = level
        folders.sort()
        for name in folders:
            if (Path(folder) / name).is_symlink():
                copied.skip((Path(folder) / name).relative_to(source).as_posix(), "it is a link")
        for name in sorted(names):
            yield Path(folder) / name


def _is_folder(path: Path) -> bool:
    return path.is_dir()


def _is_special(path: Path) -> bool:
    """Whether it is there and neither file nor folder: to put a file in its place would take it away."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextmanager
def _opened(path: Path, *, follow: bool) -> Iterator[BinaryIO]:
    """The open file. Raises LocalFileUnusable for what is none, or cannot be read."""
    with _usable(path, "read"):
        if not follow and path.is_symlink():
            raise LocalFileUnusable(f"{path} is a link")
        # Opening a pipe waits for its writer, unless asked not to.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LocalFileUnusable(f"{path} is not a regular file")
        yield cast("BinaryIO", file)


async def _pieces(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    """The file's bytes. Raises ChangedMeanwhile when they are not as many as it had."""
    passed = 0
    while True:
        with _usable(Path(str(file.name)), "read"):
            piece = await asyncio.to_thread(file.read, _PIECE_BYTES)
        passed += len(piece)
        if passed > size or (not piece and passed < size):
            raise ChangedMeanwhile("it changed while it was read")
        if not piece:
            return
        yield piece


@contextmanager
def _usable(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalFileUnusable(f"{path} cannot be {done}: {error.strerror or error}") from error
