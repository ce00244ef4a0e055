"""Holders of sealed values that need nothing else: in memory, and in an SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from sandhold.security import Envelope, Place
from sandhold.security.holders import SealedRow


def place(number: int) -> Place:
    return Place("connection", f"owner-{number % 7}", str(number), "api_key")


def value(number: int) -> bytes:
    return f"the secret {number}".encode()


class MemoryValues:
    """Sealed values in a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[str, SealedRow] = {}
        self.reads = 0
        self.writes = 0
        self.fails_after: int | None = None
        """Raise after so many replacements, as if the process were killed there."""

    async def fill(self, envelope: Envelope, count: int) -> None:
        for number in range(count):
            await self.put(number, await envelope.seal(value(number), place(number)))

    async def put(self, number: int, sealed: bytes) -> None:
        cursor = f"{number:06}"
        self.rows[cursor] = SealedRow(cursor, place(number), sealed)

    async def sealed_batch(self, after: str, limit: int) -> Sequence[SealedRow]:
        self.reads += 1
        await asyncio.sleep(0)
        return [self.rows[cursor] for cursor in sorted(self.rows) if cursor > after][:limit]

    async def replace_sealed(self, row: SealedRow, new: bytes) -> bool:
        await asyncio.sleep(0)
        if self.fails_after is not None and self.writes >= self.fails_after:
            raise ConnectionError("killed here")
        lies = self.rows.get(row.cursor)
        if lies is None or lies.sealed != row.sealed:
            return False
        self.writes += 1
        self.rows[row.cursor] = SealedRow(row.cursor, row.place, new)
        return True


class SqliteValues:
    """Sealed values in a table: what is committed survives a killed process."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, timeout=30)
        # A killed process is survived without waiting for the disk.
        self._database.execute("PRAGMA journal_mode = wal")
        self._database.execute("PRAGMA synchronous = off")
        self._database.execute("CREATE TABLE IF NOT EXISTS held (number INTEGER PRIMARY KEY, sealed BLOB NOT NULL)")

    async def fill(self, envelope: Envelope, count: int) -> None:
        for number in range(count):
            await self.put(number, await envelope.seal(value(number), place(number)))

    async def put(self, number: int, sealed: bytes) -> None:
        self._database.execute("INSERT OR REPLACE INTO held VALUES (?, ?)", (number, sealed))

    async def sealed_batch(self, after: str, limit: int) -> Sequence[SealedRow]:
        found = self._database.execute(
            "SELECT number, sealed FROM held WHERE number > ? ORDER BY number LIMIT ?", (int(after or -1), limit)
        )
        return [SealedRow(str(number), place(number), sealed) for number, sealed in found]

    async def replace_sealed(self, row: SealedRow, new: bytes) -> bool:
        done = self._database.execute(
            "UPDATE held SET sealed = ? WHERE number = ? AND sealed = ?", (new, int(row.cursor), row.sealed)
        )
        return done.rowcount == 1
