"""The database under a vault: a file of SQLite's, or PostgreSQL. What goes wrong on the way comes out as VaultError."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import URL, Connection, event, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from sandhold.settings import Settings, SettingsError
from sandhold.vault.errors import VaultRefused, named_errors

CONNECT_TIMEOUT_S = 10.0
STATEMENT_TIMEOUT_S = 15.0
"""A statement of a vault takes milliseconds: a database that takes longer does not answer."""
MIGRATION_TIMEOUT_S = 600.0
"""How long a migration may take, and so how long other processes wait for it."""
_CONNECTIONS = 5
_MIGRATION_LOCK = 0x73616E64686F6C64
"""Any number does, as long as every version of Sandhold takes this one."""
_WRITES = "sandhold_writes"


class Database(ABC):
    """Connections to one database."""

    kind: ClassVar[str]

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writing = engine.execution_options(**{_WRITES: True})

    @property
    @abstractmethod
    def shown(self) -> str:
        """Where it is, without a password."""

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection to look at things with."""
        with named_errors():
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: carried out as a whole when it is left, and not at all when something is raised."""
        with named_errors():
            async with self._writing.begin() as connection:
                yield connection

    @abstractmethod
    async def lock(self, connection: AsyncConnection, number: int) -> None:
        """Wait to be the only transaction that holds the lock of this number; it goes with the transaction."""

    @abstractmethod
    def made(self) -> AbstractContextManager[None]:
        """The database is there, and what can be done to be alone with it before a connection is. Blocks."""

    @abstractmethod
    def migrating(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction on a new connection, alone among all processes within `made`."""

    @abstractmethod
    def is_there(self) -> bool:
        """Whether there is something to connect to. Blocks. Raises VaultRefused when it must not be used as it is."""

    async def close(self) -> None:
        """Let go of all connections."""
        await self._engine.dispose()


def open_database(settings: Settings) -> Database:
    """The database that the settings name; nothing is connected yet. Raises SettingsError."""
    if settings.database_url is None:
        return SqliteDatabase(settings.data_dir.absolute() / "vault.db")
    given = settings.database_url.get_secret_value()
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise SettingsError(_NO_DATABASE) from None
    match url.drivername:
        case "sqlite" | "sqlite+aiosqlite" if url.database and url.database != ":memory:" and not url.query:
            return SqliteDatabase(Path(url.database).absolute())
        case "postgresql" | "postgres" | "postgresql+asyncpg":
            return PostgresDatabase(given, url)
    raise SettingsError(_NO_DATABASE)


_NO_DATABASE = (
    "SANDHOLD_DATABASE_URL: must be sqlite:////absolute/path or postgresql://user:password@host:port/database, "
    "with special characters percent-encoded"
)


class SqliteDatabase(Database):
    """A file that only its owner may read, with a write-ahead log: readers and the one writer do not wait."""

    kind = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path
        # `rw`: a connection never makes the file, which would have the wrong mode.
        self._url = URL.create("sqlite+aiosqlite", database=path.as_uri(), query={"mode": "rw", "uri": "true"})
        super().__init__(self._connected(pool_size=_CONNECTIONS, max_overflow=0, pool_timeout=CONNECT_TIMEOUT_S))

    @property
    def shown(self) -> str:
        return str(self.path)

    async def lock(self, connection: AsyncConnection, number: int) -> None:
        """There is one writer at a time as it is."""

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        engine = self._connected(poolclass=NullPool)
        try:
            with named_errors():
                async with engine.execution_options(**{_WRITES: True}).begin() as connection:
                    yield connection
        finally:
            await engine.dispose()

    def is_there(self) -> bool:
        with named_errors():
            try:
                mode = self.path.stat().st_mode
            except FileNotFoundError:
                return False
        if not stat.S_ISREG(mode):
            raise VaultRefused(f"the vault {self.path} is no file")
        if stat.S_IMODE(mode) & 0o077:
            raise VaultRefused(f"others may read the vault {self.path}; do `chmod 600 {self.path}`")
        return True

    def _connected(self, **options: Any) -> AsyncEngine:
        engine = create_async_engine(
            self._url,
            hide_parameters=True,
            # Without an isolation level the driver begins no transactions: its own leave out changes of tables.
            connect_args={"timeout": CONNECT_TIMEOUT_S, "isolation_level": None},
            **options,
        )
        event.listen(engine.sync_engine, "connect", _overwrite_what_is_deleted)
        event.listen(engine.sync_engine, "begin", _begin)
        return engine

    @contextmanager
    def made(self) -> Iterator[None]:
        """Alone among processes of this machine: the lock of the file itself comes too late for its making."""
        with named_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_name(f"{self.path.name}.lock")
            lock = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with named_errors():
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._make()
            yield
        finally:
            os.close(lock)

    def _make(self) -> None:
        """The file is there, with its mode and a write-ahead log."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        with contextlib.closing(sqlite3.connect(self.path, timeout=CONNECT_TIMEOUT_S)) as connection:
            while True:
                try:
                    connection.execute("PRAGMA journal_mode = WAL").close()
                    return
                except sqlite3.OperationalError as error:
                    # For this change it does not wait by itself for somebody who just has a look.
                    if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)


def _overwrite_what_is_deleted(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    """A transaction that is to write takes its lock at once: one that read first could not get it any more."""
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class PostgresDatabase(Database):
    """PostgreSQL. Its URL is read as libpq does: `sslmode`, sockets, PGPASSWORD and a password file work."""

    kind = "postgresql"

    def __init__(self, given: str, url: URL) -> None:
        self._dsn = "postgresql://" + given.partition("://")[2]
        self._shown = URL.create("postgresql", host=url.host, port=url.port, database=url.database)
        super().__init__(
            self._connected(
                STATEMENT_TIMEOUT_S,
                pool_size=_CONNECTIONS,
                max_overflow=_CONNECTIONS,
                pool_timeout=CONNECT_TIMEOUT_S,
                pool_pre_ping=True,
            )
        )

    @property
    def shown(self) -> str:
        return self._shown.render_as_string()

    def is_there(self) -> bool:
        return True

    async def lock(self, connection: AsyncConnection, number: int) -> None:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})

    def made(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        engine = self._connected(MIGRATION_TIMEOUT_S, poolclass=NullPool)
        try:
            with named_errors():
                async with engine.begin() as connection:
                    await self.lock(connection, _MIGRATION_LOCK)
                    yield connection
        finally:
            await engine.dispose()

    def _connected(self, statement_timeout_s: float, **options: Any) -> AsyncEngine:
        async def connect() -> asyncpg.Connection:
            return await asyncpg.connect(
                self._dsn,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=statement_timeout_s,
                server_settings={"application_name": "sandhold vault"},
            )

        return create_async_engine("postgresql+asyncpg://", async_creator=connect, hide_parameters=True, **options)
