"""Bringing a vault's database to the version of this build, once, however many processes start at the same time."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

from sqlalchemy import Connection, column, inspect, select, table

from sandhold.vault.database import Database
from sandhold.vault.errors import VaultNewer
from sandhold.vault.schema import HEAD, VERSION_TABLE

logger = logging.getLogger("sandhold.vault")

MIGRATIONS = Path(__file__).parent / "migrations"
_one_at_a_time = threading.Lock()
"""Alembic's environment belongs to the process."""


async def bring_up_to_date(database: Database) -> None:
    """Return when the database has the version of this build. Its contents are as they were.

    A migration is carried out as a whole or not at all. Raises VaultNewer, and other VaultErrors.
    """
    if await asyncio.to_thread(database.is_there):
        async with database.reading() as connection:
            if await connection.run_sync(_version) == HEAD:
                return
    await asyncio.to_thread(_migrate, database)


def _version(connection: Connection) -> str | None:
    """None of an empty database."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(select(column("version_num")).select_from(table(VERSION_TABLE))).scalar()


def _migrate(database: Database) -> None:
    with _one_at_a_time:
        asyncio.run(_migrated(database))


async def _migrated(database: Database) -> None:
    async with database.migrating() as connection:
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    # It tells of each step, and of its plugins.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    found = _version(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise VaultNewer(found)
    command.upgrade(config, HEAD)
    if found != HEAD:
        logger.info("the vault was brought to a new version", extra={"from": found, "to": HEAD})
