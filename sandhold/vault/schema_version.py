"""Bringing a vault's database to the version of this build, once, however many processes start at the same time."""

from __future__ import annotations

import asyncio
import logging
import threading

from sqlalchemy import Connection, column, inspect, select, table

from sandhold.vault.database import Database
from sandhold.vault.schema import HEAD, VERSION_TABLE

_one_at_a_time = threading.Lock()
"""Alembic's environment belongs to the process."""


async def bring_up_to_date(database: Database) -> None:
    """Return when the database has the version of this build. What it holds is kept.

    A migration is carried out as a whole or not at all. Raises VaultNewer, and other VaultErrors.
    """
    if await asyncio.to_thread(database.is_there):
        async with database.reading() as connection:
            if await connection.run_sync(version_of) == HEAD:
                return
    await asyncio.to_thread(_migrate, database)


def version_of(connection: Connection) -> str | None:
    """The version of a database; None of an empty one."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(select(column("version_num")).select_from(table(VERSION_TABLE))).scalar()


def _migrate(database: Database) -> None:
    with _one_at_a_time, database.made():
        asyncio.run(_migrated(database))


async def _migrated(database: Database) -> None:
    async with database.migrating() as connection:
        if await connection.run_sync(version_of) == HEAD:
            # Another process was first.
            return
    # Alembic tells of each step, and of its plugins.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It takes a second to load, in which no transaction should keep others from writing.
    from sandhold.vault.upgrade import upgrade

    async with database.migrating() as connection:
        await connection.run_sync(upgrade)
