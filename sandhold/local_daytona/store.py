"""The data folder: one server at a time, one durable record per sandbox.

lock            held by the server that owns the folder
api-key         the key of this server unless one was given, mode 0600
organization    the id of the one organisation
records/ID.json one sandbox each
sandboxes/ID/   the sandbox's own folder, with its disk
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import secrets
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from sandhold.local_daytona.records import SandboxRecord, State


class DataFolderInUse(RuntimeError):
    """Another server runs on this data folder."""


class DataFolderDamaged(RuntimeError):
    """A record cannot be read. The message names the file; nothing was changed."""


class DataFolder:
    """The folder of one server; two servers on one folder would each kill what the other starts."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock
        self._writes: dict[str, asyncio.Lock] = {}
        self._work: set[asyncio.Task[None]] = set()

    @classmethod
    def open(cls, path: Path) -> DataFolder:
        """Own the folder until `close` or the end of the process. Raises DataFolderInUse."""
        path = path.absolute()
        for folder in (path, path / "records", path / "sandboxes"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (path / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise DataFolderInUse(
                f"{path} is in use by another local Daytona (process {owner}); stop it or name another --data-dir"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        return cls(path, lock)

    def close(self) -> None:
        self._lock.close()

    def sandbox_folder(self, sandbox_id: str) -> Path:
        return self.path / "sandboxes" / sandbox_id

    def organization_id(self) -> str:
        """The id of this folder's organisation, the same in every run."""
        return self._kept("organization", lambda: str(uuid.uuid4()))

    def api_key(self) -> str:
        """This folder's own key, made on the first call and readable by its owner only."""
        return self._kept("api-key", lambda: f"dtn_{secrets.token_hex(32)}")

    def _kept(self, name: str, make: Callable[[], str]) -> str:
        path = self.path / name
        if not path.exists():
            _write_durably(path, make())
        return path.read_text().strip()

    def records(self) -> Iterator[SandboxRecord]:
        """Every sandbox on record. Raises DataFolderDamaged."""
        for path in sorted((self.path / "records").glob("*.json")):
            try:
                yield SandboxRecord.model_validate_json(path.read_bytes())
            except ValidationError as error:
                raise DataFolderDamaged(f"{path} is not a sandbox's record: {error}") from error

    async def save(self, record: SandboxRecord) -> None:
        """The record as it is now, or a later form of it, is on the disk when this returns.

        Unless the sandbox is destroyed by then: a late change does not bring its record back.
        """
        async with self._writes.setdefault(record.id, asyncio.Lock()):
            if record.state is State.DESTROYED:
                self._writes.pop(record.id, None)
                return
            await self._in_thread(_write_durably, self._record_path(record.id), record.model_dump_json())

    async def remove(self, sandbox_id: str) -> None:
        """The sandbox's folder and then its record are gone when this returns. Raises OSError."""
        async with self._writes.setdefault(sandbox_id, asyncio.Lock()):
            await self._in_thread(_remove_tree, self.sandbox_folder(sandbox_id))
            path = self._record_path(sandbox_id)
            for each in (path, _draft_of(path)):
                each.unlink(missing_ok=True)
        self._writes.pop(sandbox_id, None)

    async def flush(self) -> None:
        """Nothing is being written any more when this returns, not even for a caller that was cancelled."""
        await asyncio.gather(*self._work, return_exceptions=True)

    async def _in_thread(self, function: Callable[..., None], *arguments: Path | str) -> None:
        # A thread cannot be cancelled with the task that waits for it.
        work = asyncio.create_task(asyncio.to_thread(function, *arguments))
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        await asyncio.shield(work)

    def _record_path(self, sandbox_id: str) -> Path:
        return self.path / "records" / f"{sandbox_id}.json"


def _write_durably(path: Path, text: str) -> None:
    """`path` holds either what it held or all of `text`, also after a power failure; mode 0600."""
    draft = _draft_of(path)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _remove_tree(folder: Path) -> None:
    """Remove a sandbox's folder. Raises OSError; a repetition goes on where it broke off.

    What is in it was made by untrusted code: folders without any rights, or nested deeper than a recursion
    or a path name can follow. So every folder is opened to its owner and moved to the top before it is read.
    """
    top = folder.with_name(f".{folder.name}.removing")
    top.mkdir(mode=0o700, exist_ok=True)
    names = itertools.count()

    def to_the_top(each: Path) -> Path:
        each.chmod(stat.S_IRWXU)
        while (place := top / str(next(names))).exists():
            continue
        return each.rename(place)

    if folder.exists():
        to_the_top(folder)
    waiting = list(top.iterdir())
    while waiting:
        parent = waiting.pop()
        with os.scandir(parent) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(to_the_top(Path(entry)))
                else:
                    Path(entry).unlink()
        parent.rmdir()
    top.rmdir()
