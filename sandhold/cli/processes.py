"""`sandhold worker` and `sandhold local-daytona`: this process becomes that server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import sandhold
from sandhold.cli.output import EXIT_USAGE, output


def worker() -> None:
    """Run a worker: it hosts the workflows and activities of the deployment that the environment names."""
    program = Path(sandhold.__file__).resolve().parent.parent / "worker.py"
    if not program.is_file():
        output.fail(
            "this installation has no worker: only the client and the contracts are in the package",
            "no_worker",
            "Run it from a checkout of the repository, or use the container image.",
        )
        raise typer.Exit(EXIT_USAGE)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, str(program)])  # noqa: S606 - this very interpreter, no shell


def local_daytona(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes any free one.")] = 0,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the sandboxes are kept (default: in SANDHOLD_DATA_DIR).")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="By default one that is kept in the data folder.")] = None,
    faults: Annotated[bool, typer.Option("--faults", help="Let clients break things, for tests.")] = False,
    route: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:PORT=HOST:PORT", help="Where a target that sandboxes name leads; repeatable."),
    ] = None,
) -> None:
    """Run the local Daytona server; prints `ready http://127.0.0.1:PORT/api` once it serves."""
    try:
        from sandhold.local_daytona.command import run
    except ModuleNotFoundError as missing:
        output.fail(
            f"the local server needs {missing.name}, which is not installed",
            "not_installed",
            "Install the package with its extra `local`.",
        )
        raise typer.Exit(EXIT_USAGE) from missing
    folder = data_dir or Path(os.environ.get("SANDHOLD_DATA_DIR") or ".sandhold") / "daytona"
    raise typer.Exit(run(port, folder, api_key, faults, routes=route or ()))
