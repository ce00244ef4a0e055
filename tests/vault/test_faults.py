"""When the database is away, full, broken or refuses: a typed error without its words, and no half-done change."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from sandhold.contracts.errors import ErrorCode
from sandhold.security import open_key_ring
from sandhold.settings import Settings, SettingsError
from sandhold.vault import (
    Vault,
    VaultDamaged,
    VaultError,
    VaultFull,
    VaultNewer,
    VaultRefused,
    VaultUnavailable,
    open_vault,
)
from sandhold.vault.database import SqliteDatabase, open_database
from tests.postgres_server import PASSWORD, PostgresServer, running_postgres
from tests.stack import KEY_RING

SECRET = "dtn_canary_0123456789"


def at(url: str | None, data_dir: Path) -> Settings:
    return Settings(
        data_dir=data_dir, keyring=SecretStr(KEY_RING), database_url=None if url is None else SecretStr(url)
    )


async def opened(settings: Settings) -> Vault:
    return await open_vault(settings, open_key_ring(settings))


@pytest.fixture
async def in_a_file(tmp_path: Path) -> AsyncIterator[Vault]:
    vault = await opened(at(None, tmp_path))
    await vault.put_connection("alice", "daytona", SecretStr(SECRET), replaces=0)
    yield vault
    await vault.close()


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server that the tests of this module may kill."""
    with running_postgres() as server:
        yield server


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:pass-of-canary@host/database",
        "not a url",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file?mode=ro",
        "postgresql+psycopg://user:pass-of-canary@host/database",
        "postgresql://user:pass-of-canary@host:port/database",
    ],
)
def test_a_url_that_names_no_vault_is_a_wrong_setting_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="SANDHOLD_DATABASE_URL") as wrong:
        open_database(at(url, tmp_path))
    assert "canary" not in str(wrong.value)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        (None, "{data}/vault.db"),
        ("sqlite:////some/where/v.db", "/some/where/v.db"),
        ("sqlite+aiosqlite:////some/where/v.db", "/some/where/v.db"),
        ("sqlite:///below/v.db", "{cwd}/below/v.db"),
    ],
)
def test_a_file_is_named_by_a_url_or_lies_in_the_data_folder(tmp_path: Path, url: str | None, path: str) -> None:
    database = open_database(at(url, tmp_path))
    assert isinstance(database, SqliteDatabase)
    assert str(database.path) == path.format(data=tmp_path, cwd=Path.cwd())


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
async def test_what_is_shown_of_a_server_has_no_password(postgres: PostgresServer, tmp_path: Path, scheme: str) -> None:
    url = (await postgres.new_database()).replace("postgresql", scheme)
    vault = await opened(at(url, tmp_path))
    assert vault.shown.startswith(f"postgresql://127.0.0.1:{postgres.port}/vault_")
    await vault.close()


async def refused(settings: Settings, kind: type[VaultError], caplog: pytest.LogCaptureFixture) -> VaultError:
    """Opening raises exactly this; neither the error nor the log tells a password or where it was caused."""
    with pytest.raises(VaultError) as raised:
        await opened(settings)
    assert type(raised.value) is kind
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
    for text in (
        str(raised.value),
        repr(raised.value),
        caplog.text,
        *(str(record.__dict__) for record in caplog.records),
    ):
        assert PASSWORD not in text
        assert "wrong-canary" not in text
    return raised.value


async def test_a_wrong_password_is_a_refusal(
    postgres: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    error = await refused(at(postgres.url("postgres", password="wrong-canary"), tmp_path), VaultRefused, caplog)
    assert not error.retryable
    assert error.failure("the key of alice").error.code is ErrorCode.INTERNAL


async def test_a_database_that_does_not_exist_is_a_refusal(
    postgres: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await refused(at(postgres.url("never_made"), tmp_path), VaultRefused, caplog)


async def test_a_user_who_may_not_make_tables_is_refused(
    postgres: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = await postgres.new_database()
    await postgres.execute("CREATE ROLE reader LOGIN PASSWORD 'r'")
    await refused(at(f"postgresql://reader:r@{url.rpartition('@')[2]}", tmp_path), VaultRefused, caplog)


async def test_a_server_that_is_not_there_may_come(
    unused_tcp_port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"postgresql://user:wrong-canary@127.0.0.1:{unused_tcp_port}/vault"
    assert (await refused(at(url, tmp_path), VaultUnavailable, caplog)).retryable


async def test_a_server_that_is_killed_in_mid_query_is_away_and_then_there_again(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    url = await own_postgres.new_database()
    vault = await opened(at(url, tmp_path))
    of = (await vault.put_connection("alice", "daytona", SecretStr(SECRET), replaces=0)).id
    # A lock of somebody else's holds the query up until the server is killed.
    holding = asyncio.create_task(own_postgres.execute("BEGIN; LOCK TABLE connections; SELECT pg_sleep(60)", url))
    await asyncio.sleep(0.5)
    waiting = [
        asyncio.create_task(vault.connection("alice", "daytona")),
        asyncio.create_task(vault.put_connection("alice", "daytona", SecretStr("new"), replaces=1)),
        asyncio.create_task(vault.note_failure("alice", of, 1, "refused")),
    ]
    await asyncio.sleep(0.5)
    assert not any(task.done() for task in waiting)
    await asyncio.to_thread(own_postgres.stop)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [VaultUnavailable] * 3
    await asyncio.gather(holding, return_exceptions=True)
    with pytest.raises(VaultUnavailable):
        await vault.connection_rows()
    await vault.note_use("alice", of, 1)  # only bookkeeping: it fails nobody's call
    await asyncio.to_thread(own_postgres.start)
    again = await vault.connection("alice", "daytona")
    assert again is not None
    assert (again.secret.get_secret_value(), again.version, again.last_failure) == (SECRET, 1, None)
    await vault.set_secret("s-1", "run-1", "A", SecretStr("1"))
    await vault.close()


async def test_connections_that_the_server_has_ended_are_replaced(postgres: PostgresServer, tmp_path: Path) -> None:
    url = await postgres.new_database()
    vault = await opened(at(url, tmp_path))
    await asyncio.gather(*(vault.connection_rows() for _ in range(5)))
    ours = f"application_name = 'sandhold vault' AND datname = '{url.rpartition('/')[2]}'"
    await postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")
    assert await asyncio.gather(*(vault.connection_rows() for _ in range(5))) == [[]] * 5
    await vault.close()


async def test_a_vault_that_others_may_read_is_refused(in_a_file: Vault, tmp_path: Path) -> None:
    (tmp_path / "vault.db").chmod(0o640)
    with pytest.raises(VaultRefused, match="chmod 600"):
        await opened(at(None, tmp_path))


async def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vault.db").mkdir()
    with pytest.raises(VaultRefused):
        await opened(at(None, tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(VaultRefused):
        await opened(at(f"sqlite:///{tmp_path}/file/below", tmp_path))


async def test_a_file_that_is_no_database_is_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "vault.db").touch(mode=0o600)
    (tmp_path / "vault.db").write_bytes(b"this is no database at all. " * 1000)
    await refused(at(None, tmp_path), VaultDamaged, caplog)
    assert (tmp_path / "vault.db").read_bytes().startswith(b"this is no database")


async def test_a_file_that_was_damaged_is_told_as_such(tmp_path: Path) -> None:
    vault = await opened(at(None, tmp_path))
    for number in range(40):
        await vault.set_secret("s-1", "run-1", f"S{number}", SecretStr("x" * 2000))
    await vault.close()
    path = tmp_path / "vault.db"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(reversed(data[4096:])))

    async def read() -> None:
        vault = await opened(at(None, tmp_path))
        try:
            await vault.secrets("s-1", "run-1")
        finally:
            await vault.close()

    with pytest.raises(VaultDamaged):
        await read()


async def test_a_table_that_is_missing_is_damage(in_a_file: Vault, tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "vault.db")
    database.execute("DROP TABLE connections")
    database.close()
    with pytest.raises(VaultDamaged):
        await in_a_file.connection_rows()


async def test_a_file_that_may_not_be_written_is_read_all_the_same(in_a_file: Vault) -> None:
    # Root may write everything: so the connection itself is told not to.
    async with in_a_file._parts.database.reading() as connection:
        await connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(VaultRefused):
        await in_a_file.put_connection("alice", "daytona", SecretStr("new"), replaces=1)
    record = await in_a_file.connection("alice", "daytona")
    assert record is not None
    assert record.secret.get_secret_value() == SECRET


async def test_a_full_disk_loses_nothing_that_was_there(in_a_file: Vault) -> None:
    """The file may not grow any more, which SQLite tells as a full disk."""
    async with in_a_file._parts.database.reading() as connection:
        pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
        await connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    async def fill() -> None:
        for number in range(100):
            await in_a_file.set_secret("s-1", "run-1", f"S{number}", SecretStr("x" * 5000))

    with pytest.raises(VaultFull) as full:
        await fill()
    assert full.value.retryable
    record = await in_a_file.connection("alice", "daytona")
    assert record is not None
    assert record.secret.get_secret_value() == SECRET


async def test_a_write_waits_for_that_of_another_process_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandhold.vault.database.CONNECT_TIMEOUT_S", 3.0)
    vault = await opened(at(None, tmp_path))
    other = sqlite3.connect(tmp_path / "vault.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(vault.set_secret("s-1", "run-1", "A", SecretStr("1")))
    await asyncio.sleep(0.3)
    assert not writing.done()
    assert await vault.secrets("s-1", "run-1") == {}
    other.execute("COMMIT")
    await writing
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(VaultUnavailable):
        await vault.set_secret("s-1", "run-1", "B", SecretStr("1"))
    other.execute("ROLLBACK")
    other.close()
    await vault.set_secret("s-1", "run-1", "B", SecretStr("1"))
    await vault.close()


async def test_a_call_that_is_cancelled_leaves_the_vault_usable(vault: Vault) -> None:
    for _ in range(20):
        cancelled = [asyncio.create_task(vault.set_secret("s-1", "run-1", "A", SecretStr("1"))) for _ in range(5)]
        await asyncio.sleep(0.002)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
    await vault.set_secret("s-1", "run-1", "A", SecretStr("2"))
    assert (await vault.secrets("s-1", "run-1"))["A"].get_secret_value() == "2"


def test_a_newer_vault_says_what_to_do() -> None:
    assert "newer build" in (VaultNewer("0999").hint or "")
