"""Real local Daytona servers for tests: each a process of its own on a port that the kernel chose."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from daytona import AsyncDaytona, DaytonaConfig

from tests.local_daytona_faults import FaultPlan

CHECKOUT = Path(__file__).parents[1]
API_KEY = "key-of-the-tests"
READY_WITHIN_S = 60.0
ENDED_WITHIN_S = 20.0


@dataclass(frozen=True)
class LocalDaytona:
    """A running server. `url` is its API address; `faults` answers only if it was started with them."""

    url: str
    api_key: str
    process: Process
    faults: FaultPlan
    http: aiohttp.ClientSession
    data_dir: Path

    @property
    def origin(self) -> str:
        return self.url.removesuffix("/api")

    def client(self) -> AsyncDaytona:
        """A new official client of this server; the caller closes it."""
        return AsyncDaytona(DaytonaConfig(api_key=self.api_key, api_url=self.url, target="local"))

    async def kill(self) -> None:
        """End the server as a crash would."""
        self.process.kill()
        await self.process.wait()


class ServerDidNotStart(AssertionError):
    """The server ended before it was ready; carries its exit code and what it said."""

    def __init__(self, code: int | None, said: str) -> None:
        super().__init__(f"the local Daytona ended with {code}:\n{said}")
        self.code = code
        self.said = said


@contextlib.asynccontextmanager
async def running_local_daytona(
    data_dir: Path,
    *,
    faults: bool = True,
    api_key: str = API_KEY,
    port: int = 0,
    minute_s: float | None = None,
    check_period_s: float | None = None,
    options: Sequence[str] = (),
) -> AsyncIterator[LocalDaytona]:
    """A server on `data_dir` that serves now and has ended, with its sandboxes, afterwards.

    Its log is `log` beside the data folder. Raises ServerDidNotStart.
    """
    command = [sys.executable, "-m", "sandhold.local_daytona", "--port", str(port), "--data-dir", str(data_dir)]
    if faults:
        command.append("--faults")
    if minute_s is not None:
        command += ["--minute-seconds", str(minute_s)]
    if check_period_s is not None:
        command += ["--check-period", str(check_period_s)]
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    log = data_dir.with_name(f"{data_dir.name}.log")
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command,
            *options,
            cwd=CHECKOUT,
            env={**os.environ, "SANDHOLD_LOCAL_DAYTONA_API_KEY": api_key},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    try:
        url = await asyncio.wait_for(_ready(process, log), READY_WITHIN_S)
        async with aiohttp.ClientSession() as http:
            yield LocalDaytona(url, api_key, process, FaultPlan(http, url, api_key), http, data_dir)
    finally:
        await _end(process)


async def _ready(process: Process, log: Path) -> str:
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    if not line.startswith("ready "):
        raise ServerDidNotStart(await process.wait(), line + log.read_text())
    return line.removeprefix("ready ").strip()


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), ENDED_WITHIN_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
