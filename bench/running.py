"""Running a bench: a stack that is up only for it, the provider's own client beside it, what is printed at the end."""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NoReturn, TypeVar

from daytona import AsyncDaytona, DaytonaConfig
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

from sandhold.cli.dev_run import show_failure
from sandhold.cli.stack.errors import StackFailed
from sandhold.cli.stack.interrupts import Interrupted, until_interrupted
from sandhold.cli.stack.options import StackOptions
from sandhold.cli.stack.plans import without_proxy_on_loopback
from sandhold.cli.stack.stack import Stack
from sandhold.settings import Settings

R = TypeVar("R", bound=BaseModel)


def _nothing(_: object) -> Sequence[str]:
    return ()


def run_bench(
    measure: Callable[[Stack, Console], Awaitable[R]],
    show: Callable[[R, Console], None],
    json_file: Path | None,
    missed: Callable[[R], Sequence[str]] = _nothing,
) -> int:
    """Bring a stack up, measure, print, write the figures to the file as well, end. The exit code: 1 when something is
    `missed`, of which it says a sentence each."""
    console = Console(soft_wrap=True)
    try:
        report = asyncio.run(_on_own_stack(measure, console))
    except Interrupted:
        return 130
    except StackFailed as failure:
        show_failure(failure, console)
        return 1
    show(report, console)
    if json_file is not None:
        json_file.write_text(report.model_dump_json(indent=2) + "\n")
    misses = missed(report)
    for each in misses:
        console.print(f"[red]missed[/]: {escape(each)}", highlight=False)
    return 1 if misses else 0


async def _on_own_stack(measure: Callable[[Stack, Console], Awaitable[R]], console: Console) -> R:
    """Measure on a stack that is up only for that. Raises StackFailed and Interrupted."""

    def told(part: str, what: str) -> None:
        console.print(f"  [dim]{escape(part)}: {escape(what)}[/]", highlight=False)

    # A stack of its own with the local Daytona, whatever the environment says about another.
    settings = Settings.load(running_stack=False)
    nowhere = dict.fromkeys(["temporal_address", "storage_url", "daytona_api_url", "daytona_api_key"])
    own = settings.model_copy(update=nowhere)
    options = StackOptions(data_dir=settings.data_dir / "bench", fresh=True, usual_ports=False)
    stack = Stack(own, options, told)

    async def work() -> R:
        async with stack:
            return await measure(stack, console)

    return await until_interrupted(stack, work())


@asynccontextmanager
async def provider_of(stack: Stack) -> AsyncIterator[AsyncDaytona]:
    """The provider's own client for the stack's local Daytona."""
    os.environ.update(without_proxy_on_loopback(os.environ))
    key = stack.settings.daytona_api_key
    assert key is not None
    # Without polling the client would connect an event socket, which takes SIGINT over (see `sandhold.stop_signals`).
    warnings.filterwarnings("ignore", message="Polling-only mode", category=DeprecationWarning)
    config = DaytonaConfig(
        api_key=key.get_secret_value(), api_url=stack.settings.daytona_api_url, use_deprecated_polling=True
    )
    async with AsyncDaytona(config) as provider:
        yield provider


def leave(code: int) -> NoReturn:
    """End the process: the interpreter sometimes aborts at exit once Temporal's client ran (see `worker.py`)."""
    with suppress(ValueError):
        sys.stdout.flush()
    os._exit(code)
