"""What can be chosen about a stack."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

PART_NAMES = ("temporal", "daytona", "worker", "console")
MAX_WORKERS = 16


class UnknownPart(ValueError):
    """`--without` names something that is no part of the stack."""


@dataclass(frozen=True)
class StackOptions:
    """A port of None takes the usual one when it is free, else any; a number means that one or an error."""

    data_dir: Path
    without: frozenset[str] = field(default_factory=frozenset)
    workers: int = 1
    temporal_port: int | None = None
    ui_port: int | None = None
    daytona_port: int | None = None
    console_port: int | None = None
    usual_ports: bool = True
    """False takes free ports even where the usual ones are free, to leave those to others."""
    fresh: bool = False
    """True begins with an empty data folder, whatever was in it."""


def parts_named(text: str) -> frozenset[str]:
    """The parts in a comma-separated list. Raises UnknownPart with the names that exist."""
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    unknown = sorted(names.difference(PART_NAMES))
    if unknown:
        raise UnknownPart(f"there is no part {', '.join(unknown)}; the parts are {', '.join(PART_NAMES)}")
    return names
