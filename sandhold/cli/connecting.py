"""How the commands reach the deployment."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sandhold.settings import Settings

if TYPE_CHECKING:
    from temporalio.runtime import Runtime

    from sandhold.client import Sandhold


async def connected(settings: Settings | None = None) -> Sandhold:
    """A client, with all logs on stderr: stdout is for the answer."""
    from sandhold.client import Sandhold

    return await Sandhold.connect(settings or Settings.load(), runtime=quiet_runtime())


def quiet_runtime() -> Runtime:
    """A runtime whose native core logs through ours instead of to stdout."""
    from temporalio.runtime import Runtime, TelemetryConfig

    from sandhold.logs import core_logging

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # Broken connections are retried and, if that does not help, told as an error.
    logging.getLogger("temporalio.core").setLevel(logging.ERROR)
    return Runtime(telemetry=TelemetryConfig(logging=core_logging()))


def text_argument(given: str) -> str:
    """An argument itself, the content of `@file`, or stdin for `-`. Raises BadParameter when it cannot be read."""
    try:
        if given == "-":
            return typer.get_text_stream("stdin").read()
        if given.startswith("@"):
            return Path(given[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{given}: {error}") from error
    return given
