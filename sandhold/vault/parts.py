"""What the parts of the vault share: the database, the envelope, and word of every change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sandhold.security import Envelope
from sandhold.vault.database import Database

Watcher = Callable[[str, str], None]
"""Told after a change of ours: the table, and the owner or session whose rows changed."""


@dataclass
class Parts:
    """One open vault."""

    database: Database
    envelope: Envelope
    watchers: list[Watcher] = field(default_factory=list)

    def changed(self, table: str, whose: str) -> None:
        """Tell everybody who watches."""
        for watcher in self.watchers:
            watcher(table, whose)


def now() -> datetime:
    return datetime.now(UTC)
