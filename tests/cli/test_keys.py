"""`sandhold keys` without a deployment: rings that are made, listed, changed, missing, and not ours to change."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from sandhold.security.key_document import KeyDocument
from sandhold.security.key_rings import FileKeyRing
from sandhold.settings import Settings
from sandhold.storage import SessionStorage
from sandhold.vault import open_vault
from tests.cli.process import Finished, plain_environment
from tests.cli.process import sandhold as run


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return plain_environment(SANDHOLD_DATA_DIR=str(tmp_path), SANDHOLD_KEYRING=str(tmp_path / "ring.json"))


async def keys(environment: dict[str, str], *arguments: str) -> Finished:
    return await run("--json", "keys", *arguments, env=environment)


def code_of(finished: Finished) -> tuple[int, str]:
    return finished.code, finished.document["error"]["code"]


async def test_a_ring_is_made_once_and_its_keys_are_listed_without_their_material(
    environment: dict[str, str], tmp_path: Path
) -> None:
    made = (await keys(environment, "create")).document
    again = (await keys(environment, "create")).document
    assert (made["created"], again["created"], made["primary"]) == (True, False, again["primary"])
    path = tmp_path / "ring.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    added = (await keys(environment, "add")).document["id"]
    assert (await keys(environment, "promote", added)).document == {"primary": added}
    listed = await keys(environment, "list")
    assert [(row["id"], row["state"], row["retired_at"] is None) for row in listed.document["keys"]] == [
        (made["primary"], "decrypt_only", False),
        (added, "primary", True),
    ]
    shown = await run("keys", "list", env=environment)
    for key in FileKeyRing(path).document().keys:
        assert key.material is not None
        for finished in (listed, shown):
            assert key.id in finished.out
            assert key.material.get_secret_value() not in finished.out + finished.err


async def test_without_a_ring_every_command_says_so_and_makes_none(environment: dict[str, str], tmp_path: Path) -> None:
    for command in (["list"], ["verify"], ["add"], ["promote", "key-1"], ["rotate"], ["remove", "key-1"]):
        refused = await keys(environment, *command)
        assert code_of(refused) == (2, "key_ring_missing"), command
        assert "sandhold keys create" in refused.err
    assert not (tmp_path / "ring.json").exists()


async def test_a_ring_in_the_environment_is_listed_and_how_to_change_it_is_told(
    environment: dict[str, str], tmp_path: Path
) -> None:
    document = KeyDocument.new()
    environment["SANDHOLD_KEYRING"] = document.dump()
    assert [row["id"] for row in (await keys(environment, "list")).document["keys"]] == [document.primary.id]
    for command in (["create"], ["add"], ["promote", document.primary.id], ["rotate"], ["remove", "key-1"]):
        refused = await keys(environment, *command)
        assert code_of(refused) == (1, "key_ring_fixed"), command
        assert "SANDHOLD_KEYRING=FILE" in refused.err
        assert document.primary.material is not None
        assert document.primary.material.get_secret_value() not in refused.err + refused.out
    steps = (await keys(environment, "rotate")).err
    order = [steps.index(step) for step in ("keys add", "keys promote KEY", "rotate --rewrap-only", "keys remove OLD")]
    assert order == sorted(order)
    # The document in a file is the way: it is the same one.
    path = tmp_path / "ring.json"
    path.write_text(environment["SANDHOLD_KEYRING"])
    path.chmod(0o600)
    environment["SANDHOLD_KEYRING"] = str(path)
    added = (await keys(environment, "add")).document["id"]
    assert [key["id"] for key in json.loads(path.read_text())["keys"]] == [document.primary.id, added]


async def test_a_key_that_is_not_there_is_told(environment: dict[str, str]) -> None:
    await keys(environment, "create")
    assert code_of(await keys(environment, "promote", "key-1")) == (1, "key_unknown")
    assert code_of(await keys(environment, "remove", "key-1")) == (1, "key_unknown")
    assert (await keys(environment, "rotate", "--rewrap-only", "--new-key")).code == 2
    assert (await keys(environment, "remove", "key-1", "--used-until", "yesterday")).code == 2


async def test_values_that_do_not_open_are_named_by_their_place(environment: dict[str, str], tmp_path: Path) -> None:
    await keys(environment, "create")
    ring = FileKeyRing(tmp_path / "ring.json")
    settings = Settings(data_dir=tmp_path, keyring=SecretStr(str(ring.path)))
    vault = await open_vault(settings, ring)
    await vault.set_secret("s-1", "run-1", "TOKEN", SecretStr("the token"))
    await vault.set_secret("s-1", "run-1", "OTHER", SecretStr("the other"))
    good = await keys(environment, "verify")
    assert (good.code, good.document["ok"]) == (0, True)
    assert [(each["name"], each["opened"], each["failed"]) for each in good.document["holders"]] == [
        ("vault", 2, 0),
        ("storage", 0, 0),
        ("objects", 0, 0),
    ]
    first, second = await vault.sealed_batch("", 10)
    assert await vault.replace_sealed(first, second.sealed)
    await vault.close()
    bad = await keys(environment, "verify")
    assert (bad.code, bad.document["ok"]) == (1, False)
    [of_vault, _, _] = bad.document["holders"]
    assert (of_vault["opened"], of_vault["failed"]) == (1, 1)
    [fault] = of_vault["faults"]
    assert (fault["place"]["owner"], fault["place"]["record"]) == ("s-1", "run-1")
    assert fault["place"]["name"] == first.place.name
    told = await run("keys", "verify", env=environment)
    assert (told.code, first.place.name in told.out, "the " not in told.out) == (1, True, True)


async def test_objects_that_do_not_open_are_named_and_deep_reads_them_to_their_end(
    environment: dict[str, str], tmp_path: Path
) -> None:
    await keys(environment, "create")
    ring = FileKeyRing(tmp_path / "ring.json")
    settings = Settings(data_dir=tmp_path, keyring=SecretStr(str(ring.path)))
    storage = SessionStorage.open(settings.storage_location, ring)
    for session_id in ("flipped", "good", "lost", "swapped"):
        await storage.put_bytes(session_id, "files/a", b"hello")
    assert (await keys(environment, "verify", "--deep")).document["ok"]
    root = Path(settings.storage_location.removeprefix("file://")) / "sessions"
    flipped = bytearray((root / "flipped/files/a").read_bytes())
    flipped[-1] ^= 1
    (root / "flipped/files/a").write_bytes(flipped)

    def told(finished: Finished) -> list[tuple[str, int, set[tuple[str, str]]]]:
        return [
            (
                each["name"],
                each["opened"],
                {(fault["place"]["record"], fault["place"]["name"]) for fault in each["faults"]},
            )
            for each in finished.document["holders"]
        ]

    shallow = await keys(environment, "verify")
    assert (shallow.code, told(shallow)[2]) == (0, ("objects", 4, set()))
    deep = await keys(environment, "verify", "--deep")
    assert (deep.code, told(deep)[2]) == (1, ("objects", 3, {("flipped", "files/a")}))

    (root / "lost/session.key").unlink()
    (root / "good/files/clear").write_bytes(b"in the clear")
    (root / "swapped/files/a").write_bytes((root / "good/files/a").read_bytes())
    bad = await keys(environment, "verify")
    assert (bad.code, told(bad)[1:]) == (
        1,
        [
            ("storage", 3, {("lost", "key")}),
            ("objects", 2, {("good", "files/clear"), ("lost", "files/a"), ("swapped", "files/a")}),
        ],
    )


async def test_a_rotation_changes_nothing_while_temporal_cannot_be_reached(
    environment: dict[str, str], tmp_path: Path
) -> None:
    await keys(environment, "create")
    before = (tmp_path / "ring.json").read_bytes()
    environment["SANDHOLD_TEMPORAL_ADDRESS"] = "127.0.0.1:1"
    for command in (["rotate"], ["remove", FileKeyRing(tmp_path / "ring.json").document().primary.id]):
        assert (await keys(environment, *command)).code == 4
    assert (tmp_path / "ring.json").read_bytes() == before
