"""`sandhold dev`: the whole stack on this machine until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from sandhold.cli.stack.options import MAX_WORKERS, StackOptions, UnknownPart, parts_named
from sandhold.settings import Settings, SettingsError


def dev(
    without: Annotated[
        str, typer.Option(help="Parts to leave out, comma-separated: temporal, daytona, worker, console.")
    ] = "",
    workers: Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="How many workers to run.")] = 1,
    temporal_port: Annotated[int | None, typer.Option(help="Port of Temporal (7233 when it is free).")] = None,
    ui_port: Annotated[int | None, typer.Option(help="Port of Temporal's Web UI (8233 when it is free).")] = None,
    daytona_port: Annotated[int | None, typer.Option(help="Port of the local Daytona (any free one).")] = None,
    console_port: Annotated[int | None, typer.Option(help="Port of the console (8234 when it is free).")] = None,
) -> None:
    """Keep the whole stack up on this machine: Temporal, the local Daytona, workers, the console.

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
            console_port=console_port,
        )
    except (SettingsError, UnknownPart) as error:
        console.print(f"[red]{escape(str(error))}[/]")
        raise typer.Exit(2) from error
    # Imported here: the other commands need none of it, and start sooner without.
    from sandhold.cli.dev_run import run_dev

    raise typer.Exit(run_dev(settings, options, console))
