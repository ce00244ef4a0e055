"""A stack whose worker and Temporal server are processes of their own, to be killed and started again at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from temporalio.client import WorkflowHistory

from sandhold.cli.stack.ports import LOOPBACK, any_port
from sandhold.cli.stack.temporal_server import dev_server_arguments, temporal_program
from sandhold.client.connection import NO_RETRIES
from sandhold.settings import Settings
from sandhold.temporal import TemporalUnreachable, connect
from tests.local_daytona_server import CHECKOUT, running_local_daytona
from tests.stack import Stack, environment_of, histories, replayer, running_stack

READY_WITHIN_S = 90.0
_RESTART_PAUSE_S = 0.2


class Part:
    """A program that ends only by `kill`: like its supervisor, this starts it again when it ends by itself."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.kills = 0
        self.own_ends: list[int] = []
        """The exit codes with which it ended without being killed."""
        self._command = command
        self._log = log
        self._env = env
        self._process: Process | None = None
        self._kept: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def running(self) -> bool:
        """Whether it was started and not killed since."""
        return self._kept is not None

    async def start(self) -> None:
        """Start it; it is ready when this returns, unless it is killed meanwhile."""
        assert self._kept is None, f"{self.name} runs already"
        self._ready.clear()
        self._kept = asyncio.create_task(self._keep_running())
        ready = asyncio.create_task(self._ready.wait())
        done, _ = await asyncio.wait([ready, self._kept], timeout=READY_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        assert done, f"{self.name} is not ready; see {self._log}:\n{self._log.read_text()[-2000:]}"

    async def kill(self) -> None:
        """End it by SIGKILL. It stays down until it is started again."""
        if self._kept is None:
            return
        kept, self._kept = self._kept, None
        self.kills += 1
        kept.cancel()
        await asyncio.wait([kept])

    async def _keep_running(self) -> None:
        while True:
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=DEVNULL, stdout=PIPE, stderr=log, env=self._env
                )
            try:
                await self._until_ready(self._process)
                self._ready.set()
                self.own_ends.append(await self._process.wait())
            finally:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
            await asyncio.sleep(_RESTART_PAUSE_S)

    async def _until_ready(self, process: Process) -> None:
        """Return when it is ready, or has ended."""
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if line.startswith(b"ready "):
                return


class TemporalServer(Part):
    """Temporal's development server on a database file and a fixed port."""

    def __init__(self, database: Path) -> None:
        self.port = any_port()
        self.settings = Settings(temporal_address=f"{LOOPBACK}:{self.port}")
        arguments = dev_server_arguments(port=self.port, ui_port=None, database=database)
        super().__init__("temporal", [str(temporal_program()), *arguments], database.with_suffix(".log"))

    async def _until_ready(self, process: Process) -> None:
        assert process.stdout is not None
        printed = asyncio.create_task(process.stdout.read())  # so that it never blocks on a full pipe
        while not printed.done():
            with contextlib.suppress(TemporalUnreachable):
                await connect(self.settings)
                return
            await asyncio.sleep(0.05)


class BreakableStack:
    """The stack, and its parts that tests break."""

    def __init__(self, stack: Stack, worker: Part, temporal: Part) -> None:
        self.stack = stack
        self.worker = worker
        self.temporal = temporal

    async def mend(self) -> None:
        """Everything runs again and nothing is going to go wrong."""
        await self.stack.faults.clear()
        for part in (self.temporal, self.worker):
            if not part.running:
                await part.start()


@contextlib.asynccontextmanager
async def breakable_stack(data_dir: Path) -> AsyncIterator[BreakableStack]:
    """A stack of its own in `data_dir`, with a worker that is ready. At the end all that it ran is replayed."""
    temporal = TemporalServer(data_dir / "temporal.db")
    async with contextlib.AsyncExitStack() as resources:
        resources.push_async_callback(temporal.kill)
        daytona_starts = resources.enter_async_context(running_local_daytona(data_dir / "daytona"))
        _, daytona = await asyncio.gather(temporal.start(), daytona_starts)
        client = await connect(temporal.settings, retries=NO_RETRIES)
        stack = await resources.enter_async_context(
            running_stack(client, daytona, data_dir, task_queue="sandhold-chaos", workers=False)
        )
        worker = Part(
            "worker",
            [sys.executable, str(CHECKOUT / "worker.py")],
            data_dir / "worker.log",
            environment_of(stack, data_dir),
        )
        resources.push_async_callback(worker.kill)
        await worker.start()
        breakable = BreakableStack(stack, worker, temporal)
        yield breakable
        await breakable.mend()
        await _all_replay(stack)


async def _all_replay(stack: Stack) -> None:
    found = [history async for history in histories(stack.temporal)]
    assert len(found) >= len(stack.opened)

    async def each() -> AsyncIterator[WorkflowHistory]:
        for history in found:
            yield history

    replayed = await replayer().replay_workflows(each(), raise_on_replay_failure=False)
    assert not replayed.replay_failures, f"{len(replayed.replay_failures)} do not replay: {replayed.replay_failures}"
