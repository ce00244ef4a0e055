"""Holders of sealed values that need nothing else, in memory and in an SQLite file; and what tests of keys share."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from sandhold.security import Envelope, Place, data_keys, key_rings, removal, rotation
from sandhold.security.holders import SealedRow
from tests.workflows.waiting import eventually

SETTLES_S = 2.0
"""After a key is turned; ten times as long as any process here goes on with the one before."""


def settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts in seconds and minutes elsewhere counts in tenths and seconds in this process."""
    monkeypatch.setattr(key_rings, "LOOK_AGAIN_S", SETTLES_S / 20)
    monkeypatch.setattr(data_keys, "LOOK_AGAIN_S", SETTLES_S / 20)
    monkeypatch.setattr(rotation, "SETTLES_S", SETTLES_S)
    monkeypatch.setattr(removal, "MARGIN", timedelta(seconds=SETTLES_S))
    monkeypatch.setattr(removal, "LISTED_AFTER", timedelta(seconds=2))


async def executions(client: Client, query: str = "") -> list[WorkflowExecution]:
    """The runs that Temporal lists."""
    listed = client.list_workflows(query)
    return [WorkflowExecution(workflow_id=each.id, run_id=each.run_id) async for each in listed]


async def forgotten(client: Client, query: str = "") -> None:
    """Have Temporal forget every run of the query; none is listed afterwards.

    What is still listed is deleted again: the server lists it a little longer, and has been seen to do so for good.
    """

    async def left() -> int:
        found = await executions(client, query)
        await asyncio.gather(*(_deleted(client, each) for each in found))
        return len(found)

    await eventually(left, lambda count: count == 0, "no execution", pause_s=0.2)


async def _deleted(client: Client, execution: WorkflowExecution) -> None:
    request = DeleteWorkflowExecutionRequest(namespace=client.namespace, workflow_execution=execution)
    try:
        await client.workflow_service.delete_workflow_execution(request)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:  # Deleted already.
            raise


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
