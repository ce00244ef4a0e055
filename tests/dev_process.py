"""`sandhold dev` and `sandhold demo` as processes of their own, and what is left of them afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SANDHOLD = Path(sys.executable).with_name("sandhold")
READY = "Ctrl-C ends the stack"
PATIENCE_S = 60.0


class NotReached(AssertionError):
    """What a test waited for did not happen."""


@dataclass(frozen=True)
class ProcessId:
    """A process, told from a later one with the same number by its start time."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        found = _stat(self.pid)
        return found is not None and found[2] == self.started and found[1] != "Z"


@dataclass
class Dev:
    process: subprocess.Popen[bytes]
    data_dir: Path
    output: Path
    processes_seen: list[ProcessId] = field(default_factory=list)

    def see_processes(self) -> None:
        """Remember what runs below it now, to ask later what is left."""
        self.processes_seen += self.descendants()

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def stack(self, below: str = "") -> dict[str, Any]:
        loaded = json.loads((self.data_dir / below / "stack.json").read_text())
        assert isinstance(loaded, dict)
        return loaded

    def pid_of(self, part: str, below: str = "") -> int | None:
        """The process id of a part as `stack.json` tells it now; None while it tells none."""
        try:
            found: int | None = self.stack(below)["pids"].get(part)
        except FileNotFoundError:
            return None
        return found

    def until_ready(self) -> None:
        wait_until(lambda: READY in self.text() or self.process.poll() is not None, self.text)
        assert self.process.poll() is None, self.text()

    def descendants(self) -> list[ProcessId]:
        return descendants(self.process.pid)

    def signal(self, name: signal.Signals) -> None:
        self.process.send_signal(name)

    def code(self) -> int:
        """The exit code, once there is one."""
        return self.process.wait(2 * PATIENCE_S)


@contextlib.contextmanager
def dev_process(
    data_dir: Path, *options: str, command: str = "dev", env: Mapping[str, str] | None = None
) -> Iterator[Dev]:
    """Start the command on `data_dir`; whatever is left of it at the end is killed."""
    data_dir.mkdir(parents=True, exist_ok=True)
    output = data_dir.parent / f"{data_dir.name}-{time.monotonic_ns()}.txt"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [SANDHOLD, command, *options],
            env=clean_environment() | {"SANDHOLD_DATA_DIR": str(data_dir)} | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    dev = Dev(process, data_dir, output)
    try:
        yield dev
    finally:
        left = [ProcessId(process.pid, ""), *dev.descendants()]
        for each in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)


def clean_environment() -> dict[str, str]:
    """This environment without what would point a stack elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SANDHOLD_", "DAYTONA_"))}


def descendants(pid: int) -> list[ProcessId]:
    """Every process below `pid`, whatever its group or user."""
    children: dict[int, list[ProcessId]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
            children.setdefault(stat[0], []).append(ProcessId(int(entry.name), stat[2]))
    found: list[ProcessId] = []
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.append(child)
            waiting.append(child.pid)
    return found


def wait_until(condition: Any, explain: Any = lambda: "") -> None:
    """Return once `condition()` holds. Raises NotReached with what `explain()` says."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise NotReached(explain())
        time.sleep(0.05)


def _stat(pid: int) -> tuple[int, str, str] | None:
    """Parent, state and start time of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[1]), fields[0], fields[19]
