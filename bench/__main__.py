"""`python -m bench`: bring the stack up, measure, print, end. Exit code 0 whether or not the targets are met."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from rich.console import Console

from bench.measure import EARLY_CALL, Bench, Counts
from bench.report import Report, show
from bench.running import leave, provider_of, run_bench
from sandhold.cli.stack.errors import StackFailed
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
        async with floor_worker(stack), provider_of(stack) as provider:
            sandhold = await Sandhold.connect(stack.settings)
            return await Bench(sandhold, provider, stack.pids()["worker"], counts, console).run()

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
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.floor_worker", address),
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if await process.stdout.readline() != b"ready\n":
            raise StackFailed(f"the floor's worker ended with code {await process.wait()}")
        yield
    finally:
        process.stdin.close()
        await process.wait()


if __name__ == "__main__":
    leave(main())
