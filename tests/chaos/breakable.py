"""A stack whose worker and Temporal server are processes of their own, to be killed and started again at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from abc import ABC, abstractmethod
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowHistory

from sandhold.cli.stack.ports import LOOPBACK, any_port
from sandhold.cli.stack.temporal_server import dev_server_arguments, temporal_program
from sandhold.client import Session
from sandhold.client.connection import NO_RETRIES
from sandhold.settings import Settings
from sandhold.temporal import TemporalUnreachable, connect
from tests.local_daytona_server import CHECKOUT, running_local_daytona
from tests.session_folder import SessionFolder
from tests.stack import CONVERTER, Stack, environment_of, histories, replayer, running_stack

READY_WITHIN_S = 90.0
RENEWED_AT_EVENTS = 200
"""Workflows continue as new as often as a short while allows, instead of after 1,200 events."""
_RESTART_PAUSE_S = 0.2


class Part(ABC):
    """A program that ends only by `kill`: as its supervisor would, this starts it again when it ends by itself."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.kills = 0
        self.own_ends: list[int] = []
        """The exit codes with which it ended without being killed."""
        self._kept: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def running(self) -> bool:
        """Whether it was started and not killed since."""
        return self._kept is not None

    async def start(self) -> None:
        """Start it; it is ready when this returns."""
        assert self._kept is None, f"{self.name} runs already"
        self._ready.clear()
        self._kept = asyncio.create_task(self._keep_running())
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait([ready, self._kept], timeout=READY_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._kept.done():
            self._kept.result()
        assert self._ready.is_set(), f"{self.name} is not ready; its log ends with\n{self.log.read_text()[-2000:]}"

    async def kill(self) -> None:
        """End it by SIGKILL. It stays down until it is started again."""
        if self._kept is None:
            return
        kept, self._kept = self._kept, None
        self.kills += 1
        self._note("killed")
        kept.cancel()
        await asyncio.wait([kept])

    async def _keep_running(self) -> None:
        while True:
            self._note("started")
            code = await self._run()
            self._note(f"ended with {code}")
            self.own_ends.append(code)
            await asyncio.sleep(_RESTART_PAUSE_S)

    @abstractmethod
    async def _run(self) -> int:
        """Run it once, and say when it is ready; its exit code. Cancelling this kills it."""

    def _is_ready(self) -> None:
        self._note("ready")
        self._ready.set()

    def _note(self, what: str) -> None:
        """Into its own log, beside what it says itself."""
        with self.log.open("a") as log:
            log.write(f"--- {datetime.now(UTC).isoformat()} {what}\n")


class TemporalServer(Part):
    """Temporal's development server on a database file and a fixed port."""

    def __init__(self, database: Path, renewed_at_events: int | None) -> None:
        super().__init__("temporal", database.with_suffix(".log"))
        port = any_port()
        self.settings = Settings(temporal_address=f"{LOOPBACK}:{port}")
        self._arguments = dev_server_arguments(port=port, ui_port=None, database=database)
        if renewed_at_events is not None:
            suggestion = f"limit.historyCount.suggestContinueAsNew={renewed_at_events}"
            self._arguments += ["--dynamic-config-value", suggestion]

    async def _run(self) -> int:
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                temporal_program(), *self._arguments, stdin=DEVNULL, stdout=log, stderr=log
            )
        try:
            while process.returncode is None:
                with contextlib.suppress(TemporalUnreachable):
                    await connect(self.settings, converter=CONVERTER)
                    self._is_ready()
                    return await process.wait()
                await asyncio.sleep(0.05)
            return process.returncode
        finally:
            await _end(process)


class WorkerProcess(Part):
    """A worker: ready when it says so, which is when Temporal sees it poll."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        super().__init__("worker", log)
        self._environment = environment
        self._forks: Process | None = None

    async def load(self) -> None:
        """Spend the seconds that importing takes, before a worker is started."""
        with self.log.open("ab") as log:
            self._forks = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.chaos.worker_again"),
                cwd=CHECKOUT,
                env=dict(self._environment),
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
            )
        assert await self._line(self._forks) == ["loaded"], self.log.read_text()

    async def unload(self) -> None:
        """Nothing of it is left."""
        await self.kill()
        if self._forks is not None:
            await _end(self._forks)

    async def _run(self) -> int:
        forks = self._forks
        assert forks is not None
        assert forks.stdin is not None
        forks.stdin.write(b"\n")
        pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # A task of its own, so that a kill at any moment leaves no lines for the next worker.
        reading = asyncio.create_task(self._read_to_end(forks, pid))
        try:
            return await asyncio.shield(reading)
        finally:
            if not reading.done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(await pid, signal.SIGKILL)
                await reading

    async def _read_to_end(self, forks: Process, pid: asyncio.Future[int]) -> int:
        """What one worker says and what is said of it; its exit code."""
        while True:
            match await self._line(forks):
                case ["started", number]:
                    pid.set_result(int(number))
                case ["ready", _]:
                    self._is_ready()
                case ["ended", code]:
                    return int(code)
                case other:
                    raise AssertionError(f"the worker said {other}")

    async def _line(self, forks: Process) -> list[str]:
        assert forks.stdout is not None
        return (await forks.stdout.readline()).decode().split()


class BreakableStack:
    """The stack, and its parts that tests break."""

    def __init__(self, stack: Stack, worker: Part, temporal: Part) -> None:
        self.stack = stack
        self.worker = worker
        self.temporal = temporal
        self._folders: dict[str, SessionFolder] = {}

    async def open(self, **policy: Any) -> Session:
        """A new session, whose storage can be taken away."""
        session = await self.stack.open(**policy)
        self._folders[session.session_id] = SessionFolder(self.stack, session.session_id)
        return session

    def storage_of(self, session: Session) -> SessionFolder:
        return self._folders[session.session_id]

    async def mend(self) -> None:
        """Everything runs and is there, and no fault is planned."""
        for folder in self._folders.values():
            folder.give_back()
        await self.stack.faults.clear()
        for part in (self.temporal, self.worker):
            if not part.running:
                await part.start()


@contextlib.asynccontextmanager
async def breakable_stack(
    data_dir: Path, *, renewed_at_events: int | None = RENEWED_AT_EVENTS
) -> AsyncIterator[BreakableStack]:
    """A stack of its own in `data_dir`, with a worker that is ready. At the end all that it ran is replayed."""
    data_dir.mkdir(exist_ok=True)
    temporal = TemporalServer(data_dir / "temporal.db", renewed_at_events)
    async with contextlib.AsyncExitStack() as resources:
        resources.push_async_callback(temporal.kill)
        daytona_starts = resources.enter_async_context(running_local_daytona(data_dir / "daytona"))
        _, daytona = await asyncio.gather(temporal.start(), daytona_starts)
        client = await connect(temporal.settings, converter=CONVERTER, retries=NO_RETRIES)
        stack = await resources.enter_async_context(
            running_stack(client, daytona, data_dir, task_queue="sandhold-chaos", workers=False)
        )
        worker = WorkerProcess(environment_of(stack, data_dir), data_dir / "worker.log")
        resources.push_async_callback(worker.unload)
        await worker.load()
        await worker.start()
        breakable = BreakableStack(stack, worker, temporal)
        yield breakable
        await breakable.mend()
        await _all_replay(stack)


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def _all_replay(stack: Stack) -> None:
    found = [history async for history in histories(stack.temporal)]
    assert len(found) >= len(stack.opened)

    async def each() -> AsyncIterator[WorkflowHistory]:
        for history in found:
            yield history

    replayed = await replayer().replay_workflows(each(), raise_on_replay_failure=False)
    assert not replayed.replay_failures, f"{len(replayed.replay_failures)} do not replay: {replayed.replay_failures}"
