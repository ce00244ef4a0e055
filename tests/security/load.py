"""Load on a deployment: several sessions and several callers at once, none of which may see anything fail."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import SecretStr

from sandhold.client import Session
from sandhold.temporal import session_record
from tests.stack import Stack
from tests.workflows.calls import creates, exec_ok
from tests.workflows.waiting import LONG_ENOUGH_S, eventually

FIXED, CHANGING = "FIXED_TOKEN", "CHANGING_TOKEN"


@dataclass(frozen=True)
class Used:
    """A session under load: its sandbox, and the run that its secrets belong to."""

    session: Session
    run_id: str
    box: str


class Load:
    """Callers without a pause. Each goes round and round, and the first that sees something wrong fails the test."""

    def __init__(self, stack: Stack, used: list[Used]) -> None:
        self._stack = stack
        self.used = used
        self.rounds: Counter[str] = Counter()
        """How often each caller has been round."""
        self._ends = False
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """With two callers a session: commands of each, and beside them something else for each."""
        others = [self._files, self._output, self._secrets, self._short_sessions]
        for used, other in zip(self.used, others, strict=True):
            self._call(f"commands in {used.box}", used, self._commands)
            self._call(other.__name__, used, other)

    def _call(self, name: str, used: Used, once: Callable[[Used, int], Awaitable[None]]) -> None:
        async def around() -> None:
            for number in itertools.count():
                if self._ends:
                    return
                await once(used, number)
                self.rounds[name] += 1

        self._tasks.append(asyncio.create_task(around(), name=name))

    async def everybody_goes_on(self) -> None:
        """Return once every caller has been round from now on. Raises what a caller has seen."""
        before = Counter(self.rounds)

        async def late() -> list[str]:
            for task in self._tasks:
                if task.done():
                    task.result()
            return [task.get_name() for task in self._tasks if self.rounds[task.get_name()] <= before[task.get_name()]]

        await eventually(late, lambda names: not names, "that every caller has been round")

    async def end(self) -> None:
        """Let every caller finish its round. Raises what one has seen."""
        self._ends = True
        async with asyncio.timeout(LONG_ENOUGH_S):
            await asyncio.gather(*self._tasks)

    async def break_off(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _commands(self, used: Used, number: int) -> None:
        said = await exec_ok(used.session, used.box, f'echo "{number} ${FIXED}"', output="normal")
        assert said["stdout"] == f"{number} [redacted:{FIXED}]\n"

    async def _files(self, used: Used, number: int) -> None:
        text = f"{number}\n" * 1000
        await used.session.files.write("note.txt", text.encode())
        assert await used.session.files.read("note.txt") == text.encode()
        pushed = await used.session.push_files(used.box, [("note.txt", "/home/daytona/note.txt")])
        assert (pushed.files_uploaded, pushed.files_failed) == (1, [])
        saved = await used.session.download_workspace(used.box, session_path="saved", format="files")
        assert saved.files_downloaded >= 1

    async def _output(self, used: Used, number: int) -> None:
        command = await used.session.start(used.box, f'for n in 1 2 3; do echo "{number} $n"; sleep 0.1; done')
        told = [chunk.data async for chunk in command.output()]
        assert b"".join(told).decode() == "".join(f"{number} {n}\n" for n in (1, 2, 3))

    async def _secrets(self, used: Used, number: int) -> None:
        """Given again and again, also between the moments at which a rotation reads a value and writes it anew."""
        value = SecretStr(f"changing-value-{number:04}")
        await self._stack.vault.set_secret(used.session.session_id, used.run_id, CHANGING, value)
        assert (await self._stack.vault.secrets(used.session.session_id, used.run_id))[CHANGING] == value
        await asyncio.sleep(0.02)

    async def _short_sessions(self, used: Used, number: int) -> None:
        session = await self._stack.open()
        box = await creates(session)
        assert (await exec_ok(session, box, f"echo {number}", output="normal"))["stdout"] == f"{number}\n"
        await session.end()


@asynccontextmanager
async def load(stack: Stack) -> AsyncIterator[Load]:
    """Four sessions with two callers each, until the block ends; then every caller has ended without a fault."""
    running = Load(stack, await asyncio.gather(*(_used(stack, f"owner-{number}") for number in range(4))))
    running.begin()
    try:
        yield running
        await running.end()
    finally:
        await running.break_off()


async def _used(stack: Stack, owner: str) -> Used:
    session = await stack.open(owner)
    run_id = (await session_record(stack.temporal, session.session_id)).run_id
    await stack.vault.set_secret(session.session_id, run_id, FIXED, SecretStr(f"never-said-{session.session_id}"))
    return Used(session, run_id, await creates(session, secret_env=[FIXED]))
