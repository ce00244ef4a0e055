"""A new vault for each test, on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from sandhold.security import open_key_ring
from sandhold.settings import Settings
from sandhold.vault import Vault, open_vault
from tests.postgres_server import PostgresServer, running_postgres
from tests.stack import KEY_RING

KINDS = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=KINDS)
async def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings that name a new empty database."""
    url = None
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = SecretStr(await server.new_database())
    return Settings(data_dir=tmp_path, keyring=SecretStr(KEY_RING), database_url=url)


@pytest.fixture
async def vault(settings: Settings) -> AsyncIterator[Vault]:
    vault = await open_vault(settings, open_key_ring(settings))
    yield vault
    await vault.close()


@dataclass(frozen=True)
class Behind:
    """The same database, behind the vault's back."""

    settings: Settings

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What a statement answers; what it changes is kept."""
        if self.settings.database_url is None:
            with closing(sqlite3.connect(self.settings.data_dir / "vault.db", timeout=10)) as database, database:
                return list(database.execute(statement).fetchall())
        connection = await asyncpg.connect(self.settings.database_url.get_secret_value())
        try:
            return [tuple(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    async def flip(self, table: str, record: str, at: int) -> None:
        """Turn one bit of the sealed value of a row."""
        [(sealed,)] = await self.rows(f"SELECT sealed FROM {table} WHERE id = '{record}'")
        changed = bytearray(sealed)
        changed[at] ^= 1
        await self.put(table, record, bytes(changed))

    async def put(self, table: str, record: str, sealed: bytes) -> None:
        literal = f"X'{sealed.hex()}'" if self.settings.database_url is None else f"'\\x{sealed.hex()}'::bytea"
        await self.rows(f"UPDATE {table} SET sealed = {literal} WHERE id = '{record}'")


@pytest.fixture
def behind(settings: Settings) -> Behind:
    return Behind(settings)
