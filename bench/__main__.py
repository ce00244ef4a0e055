"""`python -m bench`: bring the stack up, measure, print, end. Exit code 0 whether or not the targets are met."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

from daytona import AsyncDaytona, DaytonaConfig
from rich.console import Console
from rich.markup import escape

from bench.measure import EARLY_CALL, Bench, Counts
from bench.report import Report, show
from sandhold.cli.dev_run import show_failure
from sandhold.cli.stack.errors import StackFailed
from sandhold.cli.stack.interrupts import Interrupted, until_interrupted
from sandhold.cli.stack.options import StackOptions
from sandhold.cli.stack.plans import without_proxy_on_loopback
from sandhold.cli.stack.stack import Stack
from sandhold.client import Sandhold
from sandhold.settings import Settings

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
    console = Console(soft_wrap=True)
    try:
        report = asyncio.run(_run(counts, console))
    except Interrupted:
        return 130
    except StackFailed as failure:
        show_failure(failure, console)
        return 1
    show(report, console)
    if given.json is not None:
        given.json.write_text(report.model_dump_json(indent=2) + "\n")
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


async def _run(counts: Counts, console: Console) -> Report:
    """Measure on a stack that is up only for that. Raises StackFailed and Interrupted."""

    def told(part: str, what: str) -> None:
        console.print(f"  [dim]{escape(part)}: {escape(what)}[/]", highlight=False)

    # A stack of its own with the local Daytona, whatever the environment says about another.
    settings = Settings.load(running_stack=False)
    nowhere = dict.fromkeys(["temporal_address", "storage_url", "daytona_api_url", "daytona_api_key"])
    own = settings.model_copy(update=nowhere)
    options = StackOptions(data_dir=settings.data_dir / "bench", fresh=True, usual_ports=False)
    stack = Stack(own, options, told)

    async def work() -> Report:
        async with stack, floor_worker(stack):
            return await _measure(stack, counts, console)

    return await until_interrupted(stack, work())


async def _measure(stack: Stack, counts: Counts, console: Console) -> Report:
    os.environ.update(without_proxy_on_loopback(os.environ))
    key = stack.settings.daytona_api_key
    assert key is not None
    # Without polling the client would connect an event socket, which takes SIGINT over (see `sandhold.stop_signals`).
    warnings.filterwarnings("ignore", message="Polling-only mode", category=DeprecationWarning)
    config = DaytonaConfig(
        api_key=key.get_secret_value(), api_url=stack.settings.daytona_api_url, use_deprecated_polling=True
    )
    async with AsyncDaytona(config) as provider:
        sandhold = await Sandhold.connect(stack.settings)
        return await Bench(sandhold, provider, stack.pids()["worker"], counts, console).run()


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
    code = main()
    sys.stdout.flush()
    # The interpreter sometimes aborts at exit once Temporal's client ran (see `worker.py`).
    os._exit(code)
