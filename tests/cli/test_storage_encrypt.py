"""`sandhold storage encrypt`: what a version before encryption has stored is brought over, without Temporal."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandhold.storage import SessionStorage
from tests.cli.process import plain_environment
from tests.cli.process import sandhold as run
from tests.stack import KEY_RING, RING


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return plain_environment(SANDHOLD_DATA_DIR=str(tmp_path), SANDHOLD_KEYRING=KEY_RING)


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    """The folder of a storage in which two sessions have left something as it was given."""
    folder = tmp_path / "storage" / "sessions"
    for path, data in {"s-1/files/a": b"12345", "s-1/ended.json": b"{}", "s-2/files/b": b"1"}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


async def test_what_was_stored_as_it_was_given_is_encrypted_once(
    env: dict[str, str], sessions: Path, tmp_path: Path
) -> None:
    told = await run("storage", "encrypt", "--dry-run", "--json", env=env)
    assert (told.code, told.document["dry_run"]) == (0, True)
    assert (sessions / "s-1/files/a").read_bytes() == b"12345"
    done = await run("storage", "encrypt", "--json", env=env)
    assert done.code == 0
    assert done.document == {**told.document, "dry_run": False}
    assert done.document == {
        "dry_run": False,
        "sessions": 2,
        "objects_encrypted": 3,
        "bytes_encrypted": 8,
        "objects_already": 0,
        "objects_failed": 0,
        "failed": [],
    }
    assert b"12345" not in (sessions / "s-1/files/a").read_bytes()
    storage = SessionStorage.open((tmp_path / "storage").as_uri(), RING)
    assert await storage.get_bytes("s-1", "files/a") == b"12345"
    again = await run("storage", "encrypt", env=env)
    assert (again.code, "encrypted before: 3 objects" in again.out) == (0, True)


async def test_what_stays_as_it_is_is_named(env: dict[str, str], sessions: Path) -> None:
    await run("storage", "encrypt", env=env)
    (sessions / "s-2/session.key").unlink()
    plain = await run("storage", "encrypt", env=env)
    assert (plain.code, "s-2 files/b" in plain.out, "its key is missing" in plain.out) == (1, True, True)
    as_json = await run("storage", "encrypt", "--json", env=env)
    assert as_json.code == 1
    assert [each["path"] for each in as_json.document["failed"]] == ["files/b"]
    assert (as_json.document["objects_already"], as_json.document["objects_failed"]) == (2, 1)


async def test_a_storage_that_cannot_be_reached_is_an_error(env: dict[str, str]) -> None:
    elsewhere = {**env, "SANDHOLD_STORAGE_URL": "file:///proc/nowhere"}
    ended = await run("storage", "encrypt", "--json", env=elsewhere)
    assert (ended.code, ended.document["error"]["code"]) == (1, "internal")
