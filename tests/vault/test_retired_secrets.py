"""What a secret was before: known for redaction until the clean-up, never given to anybody, bounded."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import SecretStr

from sandhold.security import Envelope, Tampered, open_key_ring
from sandhold.security.holders import SealedHolder
from sandhold.security.key_document import KeyDocument, RingKey
from sandhold.security.key_rings import EnvironmentKeyRing
from sandhold.settings import Settings
from sandhold.vault import Vault, open_vault
from sandhold.vault.records import RETIRED_BYTES_PER_SESSION, RETIRED_PER_SESSION, SECRET_BYTES
from tests.vault.conftest import Behind


async def put(vault: Vault, value: str, name: str = "TOKEN", run_id: str = "run-1") -> None:
    await vault.set_secret("s-1", run_id, name, SecretStr(value))


async def usable(vault: Vault, run_id: str = "run-1") -> dict[str, str]:
    found = await vault.secret_values("s-1", run_id)
    assert found.usable == await vault.secrets("s-1", run_id)
    return {name: value.get_secret_value() for name, value in found.usable.items()}


async def retired(vault: Vault, run_id: str = "run-1") -> list[tuple[str, str]]:
    found = [(name, v.get_secret_value()) for name, v in (await vault.secret_values("s-1", run_id)).retired]
    assert await vault.retired_count("s-1", run_id) == len(found)
    return found


async def test_what_was_replaced_or_removed_is_known_and_no_longer_usable(vault: Vault, settings: Settings) -> None:
    for value in ("the first", "the second", "the second", "the third"):
        await put(vault, value)
    await put(vault, "another", "OTHER")
    assert await retired(vault) == [("TOKEN", "the second"), ("TOKEN", "the first")]
    await vault.delete_secret("s-1", "run-1", "OTHER")
    await vault.delete_secret("s-1", "run-1", "TOKEN")
    assert await usable(vault) == {}
    assert await vault.secret_rows("s-1", "run-1") == []
    elsewhere = await open_vault(settings, open_key_ring(settings))
    assert [value for _, value in await retired(elsewhere)] == ["the third", "another", "the second", "the first"]
    await elsewhere.close()
    assert await retired(vault, "run-2") == []


async def test_a_value_is_kept_once_however_often_it_comes_and_goes(vault: Vault) -> None:
    for number in range(7):
        await put(vault, f"value number {number % 2}")
    assert await retired(vault) == [("TOKEN", "value number 1"), ("TOKEN", "value number 0")]
    assert await usable(vault) == {"TOKEN": "value number 0"}


async def test_a_value_that_is_never_searched_for_is_not_kept(vault: Vault) -> None:
    for value in ("short", "x", "long enough"):
        await put(vault, value)
    assert await retired(vault) == []


async def test_none_is_lost_when_many_replace_one_at_once(vault: Vault) -> None:
    wanted = {f"value number {number}" for number in range(8)}
    await asyncio.gather(*(put(vault, value) for value in wanted))
    [(_, left)] = (await usable(vault)).items()
    assert {left, *(value for _, value in await retired(vault))} == wanted


async def test_they_go_with_the_sessions_secrets_and_alone_as_well(vault: Vault) -> None:
    await put(vault, "the first")
    await put(vault, "the second")
    await put(vault, "of another run", run_id="run-2")
    [one, other] = await vault.sessions_with_secrets()
    assert (one.run_id, one.values, other.values) == ("run-1", 2, 1)
    await vault.delete_secret("s-1", "run-1", "TOKEN")
    assert [each.values for each in await vault.sessions_with_secrets()] == [2, 1]
    assert await vault.delete_secrets("s-1", "run-1") == 2
    assert await retired(vault) == []
    assert [each.run_id for each in await vault.sessions_with_secrets()] == ["run-2"]


async def test_the_oldest_make_room_and_the_latest_always_has_it(vault: Vault) -> None:
    for name in ("A", "B", "C"):
        await put(vault, name * SECRET_BYTES, name)
    room = RETIRED_BYTES_PER_SESSION - 3 * SECRET_BYTES - 100
    for mark in "123":
        await put(vault, mark * 60_000)
    assert [value[0] for _, value in await retired(vault)] == ["2"], room
    await put(vault, "a small one")
    assert [value[0] for _, value in await retired(vault)] == ["3", "2"], "while secrets leave room"
    await put(vault, "D" * (SECRET_BYTES - 100), "D")
    assert [value[0] for _, value in await retired(vault)] == ["3"]
    await put(vault, "d" * (SECRET_BYTES - 100), "D")
    assert [value[0] for _, value in await retired(vault)] == ["D"]
    weights = [len(value) for _, value in [*(await usable(vault)).items(), *await retired(vault)]]
    assert sum(weights) <= RETIRED_BYTES_PER_SESSION


async def test_so_many_are_kept_and_no_more(vault: Vault) -> None:
    for number in range(RETIRED_PER_SESSION + 3):
        await put(vault, f"value number {number}")
    kept = [value for _, value in await retired(vault)]
    assert kept == [f"value number {number}" for number in reversed(range(2, RETIRED_PER_SESSION + 2))]


async def test_one_cannot_be_put_back_in_use_behind_the_vaults_back(vault: Vault, behind: Behind) -> None:
    await put(vault, "the first")
    await put(vault, "the second")
    [(sealed,)] = await behind.rows("SELECT sealed FROM retired_secrets")
    [(record,)] = await behind.rows("SELECT id FROM secrets")
    await behind.put("secrets", record, bytes(sealed))
    with pytest.raises(Tampered):
        await vault.secrets("s-1", "run-1")


@pytest.mark.parametrize("table", ["secrets", "retired_secrets"])
async def test_what_does_not_open_is_told_and_goes_when_the_secret_is_set_anew(
    vault: Vault, behind: Behind, table: str
) -> None:
    await put(vault, "the first")
    await put(vault, "the second")
    [(record,)] = await behind.rows(f"SELECT id FROM {table}")
    await behind.flip(table, record, -1)
    with pytest.raises(Tampered):
        await vault.secret_values("s-1", "run-1")
    await put(vault, "the third")
    assert await usable(vault) == {"TOKEN": "the third"}
    assert await retired(vault) == [("TOKEN", "the first" if table == "secrets" else "the second")]


async def test_rotation_wraps_them_anew(settings: Settings) -> None:
    old = KeyDocument.new()
    new = RingKey.new("primary")
    both = EnvironmentKeyRing(KeyDocument(keys=[old.keys[0].model_copy(update={"state": "decrypt_only"}), new]).dump())
    vault = await open_vault(settings, EnvironmentKeyRing(old.dump()))
    await put(vault, "the first")
    await put(vault, "the second")
    steps = [step async for step in SealedHolder("vault", vault, Envelope(both)).rewrap()]
    assert (sum(step.done for step in steps), sum(len(step.faults) for step in steps)) == (2, 0)
    await vault.close()
    vault = await open_vault(settings, EnvironmentKeyRing(KeyDocument(keys=[new]).dump()))
    assert await retired(vault) == [("TOKEN", "the first")]
    await vault.close()
