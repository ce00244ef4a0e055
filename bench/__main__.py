"""`python -m bench`: bring the stack up, measure, print, end. Exit code 0 whether or not the targets are met."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from rich.console import Console

from bench.measure import EARLY_CALL, Bench, Counts
from bench.plain import PLAIN_QUEUE, PlainSandhold
from bench.report import Report, show
from bench.running import leave, provider_of, run_bench
from sandhold.cli.stack.errors import StackFailed
from sandhold.cli.stack.plans import worker_plan
from sandhold.cli.stack.stack import Stack
from sandhold.client import Sandhold

LONG_CALL = 5000


def main() -> int:
    """Run the bench as the command line says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure what a call costs on this machine.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    parser.add_argument("--long", action="store_true", help=f"compare call 50 with call {LONG_CALL:,}")
    parser.add_argument("--rounds", type=_positive, default=Counts.rounds, help="rounds of the latencies")
    parser.add_argument("--late-call", type=int, default=Counts.late_call, help="the call to compare call 50 with")
    parser.add_argument("--window", type=_positive, default=Counts.window, help="calls around those two")
    parser.add_argument("--concurrent-calls", type=_positive, default=Counts.concurrent_calls)
    parser.add_argument("--creates", type=_positive, default=Counts.creates)
    given = parser.parse_args()
    late_call = LONG_CALL if given.long else given.late_call
    if not given.window <= EARLY_CALL or late_call < EARLY_CALL + 2 * given.window:
        parser.error(f"the windows around call {EARLY_CALL} and call {late_call} do not fit")
    counts = Counts(given.rounds, late_call, given.window, given.concurrent_calls, given.creates)

    async def measure(stack: Stack, console: Console) -> Report:
        async with floor_worker(stack), plain_worker(stack), provider_of(stack) as provider:
            sandhold = await Sandhold.connect(stack.settings)
            plain = PlainSandhold(sandhold.client, stack.settings)
            return await Bench(sandhold, plain, provider, stack.pids()["worker"], counts, console).run()

    return run_bench(measure, show, given.json)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


@contextlib.asynccontextmanager
async def floor_worker(stack: Stack) -> AsyncIterator[None]:
    """The floor's worker, in a process of its own as the real one is."""
    address = stack.settings.temporal_address
    assert address is not None
    async with _worker("bench.floor_worker", address, env=os.environ):
        yield


@contextlib.asynccontextmanager
async def plain_worker(stack: Stack) -> AsyncIterator[None]:
    """The real worker once more, without encryption."""
    real = worker_plan(2, stack.settings, local_provider=True, named_ports=False)
    async with _worker("bench.plain", env={**real.env, "SANDHOLD_TASK_QUEUE": PLAIN_QUEUE}):
        yield


@contextlib.asynccontextmanager
async def _worker(module: str, *arguments: str, env: Mapping[str, str]) -> AsyncIterator[None]:
    """A worker that polls now, and ends with its standard input."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        cwd=Path(__file__).parent.parent,
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if not (await process.stdout.readline()).startswith(b"ready"):
            raise StackFailed(f"{module} ended with code {await process.wait()}")
        yield
    finally:
        process.stdin.close()
        await process.wait()


if __name__ == "__main__":
    leave(main())
