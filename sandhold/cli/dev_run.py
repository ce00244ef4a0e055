"""What `sandhold dev` does: run the stack, show where everything is, end in order."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sandhold.cli.stack.errors import PartFailed, StackFailed
from sandhold.cli.stack.interrupts import Interrupted, until_interrupted
from sandhold.cli.stack.options import StackOptions
from sandhold.cli.stack.stack import Stack
from sandhold.console.access import console_token, token_file
from sandhold.settings import Settings


def run_dev(settings: Settings, options: StackOptions, console: Console) -> int:
    """Keep the stack up until a signal or until it cannot go on; the exit code."""
    return asyncio.run(_run(settings, options, console))


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
    program = "sandhold" if shutil.which("sandhold") else ".venv/bin/sandhold"
    prefix = f"{_environment_for(stack)}{program}"
    console.print("\nGo on in another terminal:", highlight=False)
    for command in (
        "session start --session first",
        "call first daytona_create_sandbox '{}'",
        "exec first sandbox-1 -- uname -a",
        "session end first",
    ):
        console.print(f"  {prefix} {command}", markup=False, highlight=False)
    show_clear_text(stack, console)
    console.print("\nCtrl-C ends the stack; sessions are kept.", highlight=False)


def show_clear_text(stack: Stack, console: Console) -> None:
    """Tell how payloads are read. The token itself is shown on a terminal only: other output is kept somewhere."""
    if stack.console_url is None:
        return
    token = console_token(stack.settings) if console.is_terminal else "TOKEN"
    console.print(
        "\nTemporal's Web UI shows cipher text. Your browser shows clear text once its Codec Server settings, with "
        '"Use my browser setting", have the endpoint',
        highlight=False,
    )
    console.print(f"  {stack.console_url}/{token}", markup=False, highlight=False)
    if not console.is_terminal and stack.settings.console_token is None:
        console.print(f"with the TOKEN in {token_file(stack.settings)}", markup=False, highlight=False)


def addresses(stack: Stack) -> list[tuple[str, str]]:
    """What is where, for people."""
    provider = "local" if stack.local_provider else "hosted"
    rows = [("Temporal Web UI", stack.ui_url or "not started here")]
    rows.append(("Console (codec server)", stack.console_url or "not started here"))
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
