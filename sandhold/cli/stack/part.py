"""One supervised process of the stack: started until ready, restarted when it dies, ended as gently as time allows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sandhold.cli.stack.errors import PartFailed
from sandhold.cli.stack.guard import Guard

LOG_TAIL_LINES = 25
READY_PREFIX = "ready "
FIRST_PAUSE_S = 0.1
OLD_AGE_S = 10.0
"""A part that lived for longer starts again without a long pause."""


@dataclass(frozen=True)
class PartPlan:
    """How one part is started, how one sees that it is ready, and how long it may take to end."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    ready_within_s: float
    stop_within_s: float
    restart_after_at_most_s: float
    """Ceiling of the pause before a restart; the pause doubles while the part keeps dying young."""
    probe: Callable[[], Awaitable[bool]] | None = None
    """Tells whether the part answers; without it the part prints `ready <URL>` on stdout."""
    restart_command: Callable[[str], Sequence[str]] | None = None
    """The command for a restart, given the URL of the first start: others were told that address."""


@dataclass
class Part:
    """A running part. `pid` and `url` are those of the process that runs now."""

    plan: PartPlan
    guard: Guard
    log: Path
    changed: Callable[[str, str], None]
    """Called with the part's name and what happened to it, in words."""
    process: asyncio.subprocess.Process | None = None
    url: str | None = None
    _first_url: str | None = None
    supervision: asyncio.Task[None] | None = None
    """Ends only with an exception: what kept the part from being restarted."""
    _group: int | None = None
    _pump: asyncio.Task[None] | None = None
    _ready_line: asyncio.Future[str] = field(init=False)

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def pid(self) -> int | None:
        running = self.process is not None and self.process.returncode is None
        return self.process.pid if self.process and running else None

    async def start(self) -> None:
        """Start the part; it is ready afterwards, and supervised. Raises PartFailed, and nothing of it is left."""
        try:
            await self._start_until_ready()
        except BaseException:
            self.kill()
            raise
        self.supervision = asyncio.create_task(self._supervise(), name=f"supervise {self.name}")

    async def stop(self) -> None:
        """End the part: gently at first, after its time by force. Afterwards its process group is gone."""
        if self.supervision is not None:
            self.supervision.cancel()
            await asyncio.wait([self.supervision])
        if self.process is not None:
            if self.pid is not None:
                # It may have ended without the event loop knowing yet.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.process.wait(), self.plan.stop_within_s)
            self.kill()
            await self.process.wait()
        if self._pump is not None:
            await asyncio.wait([self._pump], timeout=1.0)
            self._pump.cancel()

    def kill(self) -> None:
        """End the part's process group at once."""
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, signal.SIGKILL)
            self.guard.forget(self._group)
            self._group = None

    def log_tail(self) -> str:
        """The last lines that the part wrote."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 16_384))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:])

    async def _start_until_ready(self) -> None:
        command = self.plan.command
        if self._first_url is not None and self.plan.restart_command is not None:
            command = self.plan.restart_command(self._first_url)
        self._ready_line = asyncio.get_running_loop().create_future()
        with self.log.open("ab") as log:
            self.process = await self.guard.spawn(
                command, env=dict(self.plan.env), cwd=self.plan.cwd, stdout=subprocess.PIPE, stderr=log.fileno()
            )
        self._group = self.process.pid
        self._pump = asyncio.create_task(self._read_stdout(self.process), name=f"stdout of {self.name}")
        ready = asyncio.create_task(self._wait_ready())
        ended = asyncio.create_task(self.process.wait())
        try:
            await asyncio.wait([ready, ended], timeout=self.plan.ready_within_s, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                self.url = await ready
                self._first_url = self._first_url or self.url
            elif ended.done():
                raise self._failure(f"ended at once with code {self.process.returncode}")
            else:
                raise self._failure(f"did not become ready within {self.plan.ready_within_s:g} s")
        finally:
            ready.cancel()
            ended.cancel()

    async def _wait_ready(self) -> str | None:
        if self.plan.probe is None:
            return await asyncio.shield(self._ready_line)
        while not await self.plan.probe():  # noqa: ASYNC110 - another process tells no event of ours
            await asyncio.sleep(0.03)
        return None

    async def _read_stdout(self, process: asyncio.subprocess.Process) -> None:
        """Keep reading for as long as the part writes: a full pipe would block it."""
        assert process.stdout is not None
        with self.log.open("ab") as log:
            async for line in process.stdout:
                log.write(line)
                log.flush()
                text = line.decode(errors="replace").strip()
                if text.startswith(READY_PREFIX) and not self._ready_line.done():
                    self._ready_line.set_result(text.removeprefix(READY_PREFIX))

    async def _supervise(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            assert self.process is not None
            started = time.monotonic()
            code = await self.process.wait()
            self.kill()  # what it left behind in its group
            if time.monotonic() - started > OLD_AGE_S:
                pause_s = FIRST_PAUSE_S
            self.changed(self.name, f"{_how_it_ended(code)}; starting it again")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, self.plan.restart_after_at_most_s)
            try:
                await self._start_until_ready()
            except PartFailed as failure:
                self.changed(self.name, str(failure))
                self.kill()
            else:
                self.changed(self.name, f"runs again as process {self.process.pid}")

    def _failure(self, reason: str) -> PartFailed:
        return PartFailed(self.name, reason, self.log, self.log_tail())


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"
