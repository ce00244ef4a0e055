"""A vault's database comes to this build's version by itself, once, whoever starts at the same time."""

from __future__ import annotations

import asyncio
import importlib
import os
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, insert

from sandhold.security import Envelope, open_key_ring
from sandhold.settings import Settings
from sandhold.vault import Vault, VaultDamaged, VaultNewer, open_vault
from sandhold.vault.database import open_database
from sandhold.vault.schema import HEAD, VERSION_TABLE, metadata, place_of_secret, secrets
from sandhold.vault.upgrade import MIGRATIONS
from tests.stack import KEY_RING
from tests.vault.conftest import Behind

PROCESSES = 8
OPEN = f"""
import asyncio, os, traceback
import sandhold.vault.upgrade  # everything is loaded once, so that all come at the same moment
from pydantic import SecretStr
from sandhold.security import open_key_ring
from sandhold.settings import Settings
from sandhold.vault import open_vault

async def main(number):
    settings = Settings()
    vault = await open_vault(settings, open_key_ring(settings))
    await vault.put_connection(f"owner-{{number}}", "daytona", SecretStr("key"), replaces=0)
    await vault.close()

waiting, starting = os.pipe()
for number in range({PROCESSES}):
    if os.fork() == 0:
        os.close(starting)
        os.read(waiting, 1)
        try:
            asyncio.run(main(number))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
os.close(starting)
raise SystemExit(sum(os.wait()[1] != 0 for _ in range({PROCESSES})))
"""


def environment_of(settings: Settings) -> dict[str, str]:
    url = settings.database_url
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SANDHOLD_")},
        "PYTHONPATH": os.pathsep.join(sys.path),
        "SANDHOLD_DATA_DIR": str(settings.data_dir),
        "SANDHOLD_KEYRING": KEY_RING,
        **({} if url is None else {"SANDHOLD_DATABASE_URL": url.get_secret_value()}),
    }


async def test_eight_processes_open_the_same_empty_database_at_once(settings: Settings) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OPEN), stderr=asyncio.subprocess.PIPE, env=environment_of(settings)
    )
    _, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    vault = await open_vault(settings, open_key_ring(settings))
    rows = await vault.connection_rows()
    await vault.close()
    assert [row.owner for row in rows] == [f"owner-{number}" for number in range(PROCESSES)]


async def test_many_open_it_at_once_in_one_process(settings: Settings) -> None:
    ring = open_key_ring(settings)
    vaults = await asyncio.gather(*(open_vault(settings, ring) for _ in range(6)))
    await asyncio.gather(*(vault.close() for vault in vaults))


async def test_models_and_migrations_agree(vault: Vault, settings: Settings) -> None:
    def difference(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        return list(compare_metadata(context, metadata))

    database = open_database(settings)
    async with database.reading() as connection:
        assert await connection.run_sync(difference) == []
    await database.close()


def test_the_version_of_this_build_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [HEAD]
    assert [each.revision for each in script.walk_revisions()] == [HEAD, "0002", "0001"]


async def test_a_database_of_a_newer_version_is_left_alone(vault: Vault, settings: Settings, behind: Behind) -> None:
    await vault.put_connection("alice", "daytona", SecretStr("key"), replaces=0)
    await behind.rows(f"UPDATE {VERSION_TABLE} SET version_num = '0999'")
    with pytest.raises(VaultNewer, match="0999") as newer:
        await open_vault(settings, open_key_ring(settings))
    assert newer.value.version == "0999"
    assert not newer.value.retryable
    assert await behind.rows(f"SELECT version_num FROM {VERSION_TABLE}") == [("0999",)]


async def test_a_migration_that_fails_leaves_nothing_behind(settings: Settings, behind: Behind) -> None:
    if settings.database_url is None:
        (settings.data_dir / "vault.db").touch(mode=0o600)
    await behind.rows("CREATE TABLE secrets (mine text)")
    with pytest.raises(VaultDamaged):
        await open_vault(settings, open_key_ring(settings))
    tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
    if settings.database_url is not None:
        tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    assert await behind.rows(tables) == [("secrets",)]
    await behind.rows("DROP TABLE secrets")
    await (await open_vault(settings, open_key_ring(settings))).close()


async def test_a_vault_of_the_first_version_keeps_all_it_holds(
    settings: Settings, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("schema_version", "upgrade"):
        monkeypatch.setattr(importlib.import_module(f"sandhold.vault.{module}"), "HEAD", "0001")
    ring = open_key_ring(settings)
    first = await open_vault(settings, ring)
    await first.put_connection("alice", "daytona", SecretStr("key"), replaces=0)
    await first.close()
    place = {"session_id": "s-1", "run_id": "run-1", "name": "TOKEN"}
    sealed = await Envelope(ring).seal(b"set under the first version", place_of_secret(place))
    row = {**place, "id": "1" * 32, "sealed": sealed, "created_at": datetime.now(UTC), "updated_at": datetime.now(UTC)}
    database = open_database(settings)
    async with database.writing() as writing:
        await writing.execute(insert(secrets).values(**row))
    await database.close()
    assert await behind.rows(f"SELECT version_num FROM {VERSION_TABLE}") == [("0001",)]
    monkeypatch.undo()
    vault = await open_vault(settings, ring)
    record = await vault.connection("alice", "daytona")
    assert record is not None
    assert record.secret.get_secret_value() == "key"
    await vault.set_secret("s-1", "run-1", "TOKEN", SecretStr("set under this one"))
    values = await vault.secret_values("s-1", "run-1")
    assert values.usable == {"TOKEN": SecretStr("set under this one")}
    assert values.retired == [("TOKEN", SecretStr("set under the first version"))]
    await vault.close()
    assert await behind.rows(f"SELECT version_num FROM {VERSION_TABLE}") == [(HEAD,)]


async def test_nothing_is_lost_when_a_vault_is_opened_again(vault: Vault, settings: Settings) -> None:
    await vault.put_connection("alice", "daytona", SecretStr("key"), replaces=0)
    again = await open_vault(settings, open_key_ring(settings))
    assert len(await again.connection_rows()) == 1
    await again.close()


async def test_the_file_and_all_beside_it_are_for_its_owner_only(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "not" / "there yet #1?%", keyring=SecretStr(KEY_RING))
    before = os.umask(0)
    try:
        vault = await open_vault(settings, open_key_ring(settings))
        await vault.put_connection("alice", "daytona", SecretStr("key"), replaces=0)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in settings.data_dir.iterdir()}
        await vault.close()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("vault.db", "vault.db-wal", "vault.db-shm", "vault.db.lock"), 0o600)
