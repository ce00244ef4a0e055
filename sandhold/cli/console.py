"""`sandhold console`: the codec server, by which those who have its token read payloads in Temporal's Web UI."""

from __future__ import annotations

from typing import Annotated

import typer

from sandhold.cli.output import EXIT_USAGE, output


def console(
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port; 0 takes any free one (default: SANDHOLD_CONSOLE_ADDRESS)."),
    ] = None,
) -> None:
    """Serve clear text of payloads to Temporal's Web UI and command line, for those who have the console's token.

    Prints `ready http://HOST:PORT` once it serves. Listens on loopback unless SANDHOLD_CONSOLE_ADDRESS says otherwise.
    """
    from sandhold.logs import configure_logging, register_settings
    from sandhold.security import SecurityError
    from sandhold.settings import Settings, SettingsError

    try:
        from sandhold.console.serving import run
    except ModuleNotFoundError as missing:
        output.fail(
            f"the console needs {missing.name}, which is not installed",
            "not_installed",
            "Install the package with its extra `server`.",
        )
        raise typer.Exit(EXIT_USAGE) from missing
    try:
        settings = Settings.load()
        register_settings(settings)
    except (SettingsError, SecurityError) as error:
        output.fail(str(error), "settings")
        raise typer.Exit(EXIT_USAGE) from error
    if port is not None:
        host = settings.console_address.rpartition(":")[0]
        settings = settings.model_copy(update={"console_address": f"{host}:{port}"})
    configure_logging(settings.log_level, settings.log_format)
    raise typer.Exit(run(settings))
