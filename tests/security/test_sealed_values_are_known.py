"""Whatever is sealed is known to rotation: no column of the vault and no prefix of the storage is forgotten."""

from __future__ import annotations

import ast
import sqlite3
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Column, LargeBinary, MetaData, String, Table, inspect
from sqlalchemy.ext.asyncio import create_async_engine

from sandhold.cli.key_holders import open_holders
from sandhold.security import envelope
from sandhold.settings import Settings
from sandhold.storage import sealing
from sandhold.storage.session_keys import SESSION_KEY
from sandhold.vault import open_vault
from sandhold.vault.schema import SEALED_COLUMNS, metadata, sealed_columns
from tests.stack import KEY_RING, RING, Stack
from tests.workflows.calls import creates, exec_ok

ROOT = Path(__file__).parents[2]
SEALED = envelope.MAGIC
OBJECT = sealing._HEAD
SEALERS = {
    "sandhold/vault/vault.py": "vault",
    "sandhold/vault/parts.py": "vault",
    "sandhold/storage/session_keys.py": "storage",
    "sandhold/security/holders.py": None,
    "sandhold/cli/key_holders.py": None,
}
"""Every module that seals, and the holder by which rotation reaches what it has sealed."""
MACHINERY = {
    # What the holders' values are sealed with.
    "sandhold/security/__init__.py",
    "sandhold/security/envelope.py",
    "sandhold/security/key_document.py",
    "sandhold/security/key_rings.py",
    # A session's objects, under a key that is itself a sealed value of the holder `storage`.
    "sandhold/storage/sealing.py",
    # Payloads of Temporal: never wrapped anew, and asked about before a key is removed.
    "sandhold/security/codec.py",
    "sandhold/security/data_keys.py",
    # Signs with the key of the deployment's GitHub App.
    "sandhold/github/app.py",
}
"""Modules that encrypt, and lay down nothing by themselves that a holder would have to reach."""
WAYS_TO_SEAL = {"Envelope", "pack_key", "DataKeys", "AESGCM"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, keyring=SecretStr(KEY_RING))


def columns_of_bytes() -> set[str]:
    return {
        f"{table.name}.{column.name}"
        for table in metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, LargeBinary)
    }


def test_every_column_of_bytes_is_wrapped_anew_by_rotation() -> None:
    assert columns_of_bytes() == set(SEALED_COLUMNS) != set()


def test_a_column_of_bytes_that_nobody_registered_is_refused() -> None:
    table = Table("tokens", MetaData(), Column("id", String(32), primary_key=True), Column("sealed", LargeBinary))
    with pytest.raises(TypeError, match=r"tokens\.sealed"):
        sealed_columns(table.metadata)


async def test_the_database_itself_has_no_other_column_of_bytes(settings: Settings) -> None:
    """As the migrations have made it, whatever the models say."""
    vault = await open_vault(settings, RING)
    await vault.close()
    engine = create_async_engine(f"sqlite+aiosqlite:///{settings.data_dir}/vault.db")
    async with engine.connect() as connection:
        found = await connection.run_sync(
            lambda sync: {
                f"{table}.{column['name']}"
                for table in inspect(sync).get_table_names()
                for column in inspect(sync).get_columns(table)
                if isinstance(column["type"], LargeBinary)
            }
        )
    await engine.dispose()
    assert found == columns_of_bytes()


async def test_every_sealed_value_in_the_database_comes_up_in_a_batch(settings: Settings) -> None:
    """Found by what it begins with, in whatever column it lies, and in text as well."""
    vault = await open_vault(settings, RING)
    await vault.put_connection("alice", "daytona", SecretStr("dtn_" + "a" * 40), replaces=0)
    await vault.put_connection("bob", "github", SecretStr("ghp_" + "b" * 40), replaces=0)
    await vault.set_secret("s-1", "run-1", "TOKEN", SecretStr("the token before"))
    await vault.set_secret("s-1", "run-1", "TOKEN", SecretStr("the token"))
    handed_out = {row.sealed for row in await vault.sealed_batch("", 100)}
    await vault.close()
    lies: set[bytes] = set()
    with sqlite3.connect(settings.data_dir / "vault.db") as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in database.execute(f'SELECT * FROM "{table}"'):
                for value in row:
                    if isinstance(value, str):
                        assert not {"U0hF", SEALED.hex(), SEALED.decode()} & {value[:4], value[:6], value[:3]}, table
                    elif isinstance(value, bytes):
                        assert value.startswith(SEALED), table
                        lies.add(value)
    assert lies == handed_out
    assert len(lies) == 4
    async with open_holders(settings, RING) as holders:
        surveys = {holder.name: await holder.survey() for holder in holders}
    assert (surveys["vault"].values, surveys["vault"].faults) == (4, ())


def unknown_objects(folder: Path) -> list[str]:
    """What lies in a storage and is neither encrypted under its session's key, nor known to rotation, nor meant so."""
    found = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        parts, data = path.relative_to(folder).parts, path.read_bytes()
        is_object = parts[0] == "sessions" and data.startswith(OBJECT) and SEALED not in data[:4]
        is_session_key = len(parts) == 3 and parts[2] == SESSION_KEY and data.startswith(SEALED)
        is_claim = parts == ("deployment",) and len(data) == 36
        if not (is_object or is_session_key or is_claim):
            found.append("/".join(parts))
    return found


async def test_every_object_of_a_session_is_encrypted_or_known_to_rotation(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await session.files.write("note.txt", b"kept")
    await session.files.write("empty", b"")
    await exec_ok(session, box, "seq 400000; seq 1000 >&2")
    await session.write_file(box, "long.txt", "x" * 40_000)
    await session.read_file(box, "long.txt")
    begun = await exec_ok(session, box, "sleep 9; echo late", background=True)
    assert begun["call_id"]
    await session.end()
    await stack.sandhold.clean_storage()
    folder = Path(stack.settings.storage_location.removeprefix("file://"))
    own = sorted((folder / "sessions" / session.session_id).rglob("*"))
    assert len([each for each in own if each.is_file()]) > 5
    assert unknown_objects(folder) == []
    async with open_holders(stack.settings, RING) as holders:
        [storage] = [holder for holder in holders if holder.name == "storage"]
        survey = await storage.survey()
    keys = list(folder.glob(f"sessions/*/{SESSION_KEY}"))
    assert (survey.values, survey.faults) == (len(keys), ())
    (own[0].parent / "stray").write_bytes(SEALED + b"\x01...")
    assert unknown_objects(folder) == [f"sessions/{session.session_id}/stray"]
    (own[0].parent / "stray").unlink()


def test_every_module_that_seals_is_reached_by_rotation() -> None:
    """Whoever seals values somewhere else has to make them reachable by a holder, and say so here."""
    sources = [ROOT / "worker.py"]
    for folder in ("sandhold", "activities", "workflows"):
        sources += sorted((ROOT / folder).rglob("*.py"))
    found = {str(path.relative_to(ROOT)) for path in sources if seals(path.read_text())}
    assert found == {*SEALERS, *MACHINERY}


@pytest.mark.parametrize(
    "text",
    [
        "from sandhold.security import Envelope",
        "from sandhold.security.envelope import Envelope as Sealing",
        "from sandhold.security import envelope\nenvelope.Envelope(ring)",
        "from sandhold.security.envelope import pack_key",
        "from sandhold.security.data_keys import DataKeys",
        "await ring.wrap(key, b'')",
        "wrap = self._ring.wrap",
        "from cryptography.hazmat.primitives.ciphers.aead import AESGCM",
        "from cryptography.hazmat.primitives.ciphers import aead\naead.AESGCM(key)",
        "from cryptography.hazmat.primitives.ciphers import Cipher",
        "import cryptography.fernet",
    ],
)
def test_no_way_to_seal_is_missed(text: str) -> None:
    assert seals(text)
    assert not seals("from textwrap import wrap\nwrap('x')\nfrom cryptography.exceptions import InvalidTag")


def seals(text: str) -> bool:
    """Whether a module names anything by which a value could be encrypted under a key of the ring, or beside it."""
    for node in ast.walk(ast.parse(text)):
        modules: list[str] = []
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            modules, names = [node.module or ""], [each.name for each in node.names]
        elif isinstance(node, ast.Import):
            modules = [each.name for each in node.names]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
            if node.attr == "wrap":
                return True
        ciphers = [each for each in modules if each.startswith("cryptography.") and each != "cryptography.exceptions"]
        if ciphers or WAYS_TO_SEAL & set(names):
            return True
    return False
