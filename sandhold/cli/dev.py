"""`sandhold dev`: the whole stack on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import shlex
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sandhold.cli.stack.errors import PartFailed, StackFailed
from sandhold.cli.stack.interrupts import Interrupted, until_interrupted
from sandhold.cli.stack.options import MAX_WORKERS, StackOptions, UnknownPart, parts_named
from sandhold.cli.stack.stack import Stack
from sandhold.settings import Settings, SettingsError


def dev(
    without: Annotated[
        str, typer.Option(help="Parts to leave out, comma-separated: temporal, daytona, worker, console.")
    ] = "",
    workers: Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="How many workers to run.")] = 1,
    temporal_port: Annotated[int | None, typer.Option(help="Port of Temporal (7233 when it is free).")] = None,
    ui_port: Annotated[int | None, typer.Option(help="Port of Temporal's Web UI (8233 when it is free).")] = None,
    daytona_port: Annotated[int | None, typer.Option(help="Port of the local Daytona (any free one).")] = None,
) -> None:
    """Keep the whole stack up on this machine: Temporal, the local Daytona, workers.

    With DAYTONA_API_KEY set the same stack talks to Daytona instead of the local server.
    """
    console = Console(soft_wrap=True)
    try:
        settings = Settings.load(running_stack=False)
        options = StackOptions(
            data_dir=settings.data_dir,
            without=parts_named(without),
            workers=workers,
            temporal_port=temporal_port,
            ui_port=ui_port,
            daytona_port=daytona_port,
        )
    except (SettingsError, UnknownPart) as error:
        console.print(f"[red]{escape(str(error))}[/]")
        raise typer.Exit(2) from error
    raise typer.Exit(asyncio.run(_run(settings, options, console)))


async def _run(settings: Settings, options: StackOptions, console: Console) -> int:
    was_ready = False

    def told(part: str, what: str) -> None:
        console.print(f"[dim]{datetime.now().astimezone():%H:%M:%S}[/] {escape(part)}: {escape(what)}", highlight=False)

    stack = Stack(settings, options, told)

    async def serve() -> None:
        nonlocal was_ready
        async with stack:
            was_ready = True
            show_addresses(stack, console)
            await stack.wait()

    try:
        await until_interrupted(stack, serve())
    except Interrupted:
        console.print("stopped; sessions are kept and go on with the next start")
        # To be ended is how this command succeeds, unless it had not got there yet.
        return 0 if was_ready else 130
    except StackFailed as failure:
        show_failure(failure, console)
    return 1


def show_failure(failure: StackFailed, console: Console) -> None:
    """Say what went wrong, with the last lines of the log of the part that failed."""
    if isinstance(failure, PartFailed) and failure.log_tail:
        console.print(f"[dim]--- the end of {escape(str(failure.log))}[/]")
        console.print(failure.log_tail, markup=False, highlight=False)
        console.print("[dim]---[/]")
    console.print(f"[red]{escape(str(failure))}[/]")


def show_addresses(stack: Stack, console: Console) -> None:
    """Print where everything is, as a table on a terminal, else as plain lines."""
    rows = addresses(stack)
    if console.is_terminal:
        table = Table(show_header=False, title="Sandhold is up", title_justify="left", border_style="dim")
        for name, value in rows:
            table.add_row(name, escape(value))
        console.print(table)
    else:
        for name, value in rows:
            console.print(f"{name}: {value}", markup=False, highlight=False)
    prefix = _environment_for(stack)
    console.print("\nGo on in another terminal:", highlight=False)
    for command in (
        "sandhold session start --session first",
        "sandhold call first daytona_create_sandbox '{}'",
        "sandhold exec first sandbox-1 -- uname -a",
        "sandhold session end first",
    ):
        console.print(f"  {prefix}{command}", markup=False, highlight=False)
    console.print("\nCtrl-C ends the stack; sessions are kept.", highlight=False)


def addresses(stack: Stack) -> list[tuple[str, str]]:
    """What is where, for people."""
    provider = "local" if stack.local_provider else "hosted"
    rows = [("Temporal Web UI", stack.ui_url or "not started here")]
    rows.append(("Temporal", stack.settings.temporal_address or "not started here"))
    rows.append((f"Daytona API ({provider})", stack.settings.daytona_api_url or "not started here"))
    rows += [
        (f"Health of {name}", part.url) for name, part in stack.parts.items() if name.startswith("worker") and part.url
    ]
    rows.append(("Data folder", str(stack.folder.path)))
    rows.append(("Logs", str(stack.folder.logs)))
    if stack.local_provider:
        rows.append(("Daytona API key", f"in {stack.folder.path / 'daytona' / 'api-key'}"))
    return rows


def _environment_for(stack: Stack) -> str:
    """What to put before a command so that it finds this stack from the folder where it was started."""
    if stack.folder.path == Path(".sandhold").absolute():
        return ""
    return f"SANDHOLD_DATA_DIR={shlex.quote(str(stack.folder.path))} "
