"""`sandhold demo`: the main job, shown. A scripted agent works in a session of a stack of its own."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from sandhold.settings import Settings, SettingsError


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the stack up afterwards, until Ctrl-C, to look around.")
    ] = False,
) -> None:
    """Run the main job: a scripted agent does real work in a durable session, through crashes.

    Uses a data folder and ports of its own, so that it works beside a running `sandhold dev`. With
    DAYTONA_API_KEY set it runs against that Daytona account.
    """
    console = Console(soft_wrap=True)
    try:
        settings = Settings.load(running_stack=False)
    except SettingsError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        raise typer.Exit(2) from error
    # Imported here: the provider's client alone takes a second, which the other commands need not wait for.
    from sandhold.cli.demo_run import run_demo

    raise typer.Exit(run_demo(settings, console, keep=keep))
