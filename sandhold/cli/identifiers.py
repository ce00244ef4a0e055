"""Ids on the command line: one that cannot be is a usage error, told before anything is asked."""

from __future__ import annotations

from typing import Annotated

import typer

from sandhold.contracts.names import is_id


def valid_id(given: str | None) -> str | None:
    """The id as it was given. Raises BadParameter when no session or sandbox can have it."""
    if given is not None and not is_id(given):
        raise typer.BadParameter(f"{given[:100]!r}: lower-case letters, digits and hyphens, at most 63")
    return given


SessionArgument = Annotated[str, typer.Argument(metavar="SESSION", callback=valid_id, help="The session's id.")]
SandboxArgument = Annotated[str, typer.Argument(metavar="SANDBOX", callback=valid_id, help="The sandbox's id.")]
