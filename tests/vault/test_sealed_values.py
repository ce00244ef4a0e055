"""Rotation finds every encrypted value of the vault, in a stable order, and loses none of what changes meanwhile."""

from __future__ import annotations

import pytest
from pydantic import SecretStr
from sqlalchemy import Column, LargeBinary, MetaData, String, Table

from sandhold.security import Envelope, open_key_ring
from sandhold.security.envelope import key_id_of
from sandhold.security.holders import SealedHolder, SealedRow
from sandhold.security.key_document import KeyDocument, RingKey
from sandhold.security.key_rings import EnvironmentKeyRing
from sandhold.settings import Settings
from sandhold.vault import Vault, open_vault
from sandhold.vault.schema import SEALED_COLUMNS, metadata, sealed_columns


async def fill(vault: Vault) -> None:
    for owner in ("alice", "bob", "carol"):
        await vault.put_connection(owner, "daytona", SecretStr(f"key of {owner}"), replaces=0)
    for number in range(5):
        await vault.set_secret("s-1", f"run-{number % 2}", f"S{number}", SecretStr(f"value {number}"))


async def all_rows(vault: Vault, limit: int = 3) -> list[SealedRow]:
    rows: list[SealedRow] = []
    while batch := await vault.sealed_batch(rows[-1].cursor if rows else "", limit):
        assert len(batch) <= limit
        rows += batch
    return rows


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_every_value_comes_once_whatever_the_batches(vault: Vault, limit: int) -> None:
    assert await vault.sealed_batch("", limit) == []
    await fill(vault)
    rows = await all_rows(vault, limit)
    assert len({row.cursor for row in rows}) == len(rows) == 8
    assert [row.cursor for row in rows] == sorted(row.cursor for row in rows)
    assert rows == await all_rows(vault, 2)
    assert {row.place.kind for row in rows} == {"connection", "session secret"}
    assert "sealed" not in repr(rows[0]).partition("place")[2].replace("connections.sealed", "")


async def test_every_value_opens_at_the_place_that_is_told(vault: Vault, settings: Settings) -> None:
    await fill(vault)
    envelope = Envelope(open_key_ring(settings))
    opened = {await envelope.open(row.sealed, row.place) for row in await all_rows(vault)}
    assert opened == {b"key of alice", b"key of bob", b"key of carol"} | {b"value %d" % number for number in range(5)}


async def test_a_value_is_replaced_only_while_it_is_the_one_that_was_read(vault: Vault) -> None:
    await fill(vault)
    before = await vault.connection("alice", "daytona")
    assert before is not None
    [row] = [row for row in await all_rows(vault) if row.place.owner == "alice"]
    await vault.put_connection("alice", "daytona", SecretStr("another"), replaces=1)
    assert not await vault.replace_sealed(row, b"stale")
    after = await vault.connection("alice", "daytona")
    assert after is not None
    assert after.secret.get_secret_value() == "another"
    await vault.delete_connection("alice", "daytona")
    assert not await vault.replace_sealed(row, b"gone")
    assert len(await all_rows(vault)) == 7


async def test_rotation_brings_all_under_the_new_key_and_the_old_one_is_needed_no_more(settings: Settings) -> None:
    old = KeyDocument.new()
    retired = old.keys[0].model_copy(update={"state": "decrypt_only"})
    new = RingKey.new("primary")
    both = EnvironmentKeyRing(KeyDocument(keys=[retired, new]).dump())
    only_new = EnvironmentKeyRing(KeyDocument(keys=[new]).dump())
    vault = await open_vault(settings, EnvironmentKeyRing(old.dump()))
    await fill(vault)
    rows_before = await vault.connection_rows()
    holder = SealedHolder("vault", vault, Envelope(both))
    steps = [step async for step in holder.rewrap()]
    assert (sum(step.done for step in steps), sum(len(step.faults) for step in steps)) == (8, 0)
    assert sum([step.already async for step in holder.rewrap()]) == 8
    assert {key_id_of(row.sealed) for row in await all_rows(vault)} == {new.id}
    assert await vault.connection_rows() == rows_before
    await vault.close()
    vault = await open_vault(settings, only_new)
    record = await vault.connection("bob", "daytona")
    assert record is not None
    assert record.secret.get_secret_value() == "key of bob"
    assert set(await vault.secrets("s-1", "run-1")) == {"S1", "S3"}
    await vault.close()


def test_every_column_of_bytes_is_known_to_rotation() -> None:
    columns = {
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, LargeBinary)
    }
    known = {"connections.sealed", "git_tokens.sealed", "retired_secrets.sealed", "secrets.sealed"}
    assert columns == set(SEALED_COLUMNS) == known


def test_a_new_column_of_bytes_cannot_be_forgotten() -> None:
    another = MetaData()
    Table("tokens", another, Column("id", String(32), primary_key=True), Column("sealed", LargeBinary))
    with pytest.raises(TypeError, match=r"tokens\.sealed"):
        sealed_columns(another)
