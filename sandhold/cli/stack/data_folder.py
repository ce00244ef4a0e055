"""The data folder of a stack: one stack at a time, its logs, and the file that tells others where it is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from pydantic import JsonValue

from sandhold.cli.stack.errors import AlreadyRunning, StackFailed
from sandhold.settings import STACK_FILE

_LOCK = "stack.lock"
_CLEAN_UP_S = 5.0


class DataFolder:
    """Holds the folder's lock while it is open. The lock goes with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.stack_file = self.path / STACK_FILE
        self.logs = self.path / "logs"
        self._lock: int | None = None

    def __enter__(self) -> DataFolder:
        """Make and lock the folder. Raises AlreadyRunning with the process id of the stack that has it."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StackFailed(f"the data folder {self.path} cannot be used: {error}") from error
        try:
            self._take(lock)
        except StackFailed:
            os.close(lock)
            raise
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.stack_file.unlink()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def lock(self) -> int:
        """The descriptor that holds the lock."""
        if self._lock is None:
            raise ValueError("the data folder is not open")
        return self._lock

    def clear(self) -> None:
        """Remove everything in the folder but its lock."""
        for entry in self.path.iterdir():
            if entry.name == _LOCK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        self.logs.mkdir()

    def write_stack(self, stack: Mapping[str, JsonValue]) -> None:
        """Replace `stack.json` as a whole; no reader ever sees half of it."""
        fresh = self.stack_file.with_suffix(".json.new")
        fresh.write_text(json.dumps(stack, indent=2) + "\n")
        fresh.replace(self.stack_file)

    def fresh_log(self, part: str) -> Path:
        """The log file of `part`, empty; that of the run before is kept beside it."""
        log = self.logs / f"{part}.log"
        with contextlib.suppress(FileNotFoundError):
            log.replace(self.logs / f"{part}.previous.log")
        log.touch()
        return log

    def _take(self, lock: int) -> None:
        deadline = time.monotonic() + _CLEAN_UP_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 32, 0).decode().strip()
                # The guard of a stack that was killed holds the lock for the moment it needs to clean up.
                if time.monotonic() < deadline and not _is_alive(holder):
                    time.sleep(0.05)
                    continue
                raise AlreadyRunning(
                    f"a stack already runs on {self.path} as process {holder or 'unknown'}; use it, end it, "
                    "or set SANDHOLD_DATA_DIR to another folder"
                ) from None
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            return


def _is_alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
