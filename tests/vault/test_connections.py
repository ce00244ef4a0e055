"""Connections: one for each owner and provider, replaced in versions, opened only where they belong."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr, ValidationError

from sandhold.security import KeyUnknown, NotEncrypted, SecurityError, Tampered, open_key_ring
from sandhold.security.envelope import key_id_of
from sandhold.security.key_document import KeyDocument, RingKey
from sandhold.security.key_ring import WrappedKey
from sandhold.security.key_rings import EnvironmentKeyRing
from sandhold.settings import Settings
from sandhold.vault import ConnectionChanged, ConnectionMissing, ConnectionRow, ValueRefused, Vault, open_vault
from sandhold.vault import connections as stored
from tests.vault.conftest import Behind

KEY = "dtn_0123456789abcdefghij"
OTHER_KEY = "dtn_zyxwvutsrqponmlkjihg"


async def connect(vault: Vault, owner: str = "alice", key: str = KEY, replaces: int = 0, **fields: str) -> None:
    await vault.put_connection(owner, "daytona", SecretStr(key), replaces=replaces, **fields)  # type: ignore[arg-type]


async def key_of(vault: Vault, owner: str = "alice") -> str | None:
    record = await vault.connection(owner, "daytona")
    return None if record is None else record.secret.get_secret_value()


async def id_of(vault: Vault, owner: str = "alice") -> str:
    [row] = await vault.connection_rows(owner)
    return row.id


async def test_what_was_stored_is_read_again(vault: Vault) -> None:
    assert await vault.connection("alice", "daytona") is None
    put = await vault.put_connection(
        "alice",
        "daytona",
        SecretStr(KEY),
        replaces=0,
        api_url="https://daytona.example/api",
        organization="org-1",
        details={"name": "ci", "permissions": ["write:sandboxes"]},
    )
    got = await vault.connection("alice", "daytona")
    assert got is not None
    assert got == put
    assert (got.secret.get_secret_value(), got.version, got.hint) == (KEY, 1, "ghij")
    assert (got.api_url, got.organization) == ("https://daytona.example/api", "org-1")
    assert got.details == {"name": "ci", "permissions": ["write:sandboxes"]}
    assert abs(got.updated_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert (got.last_used_at, got.last_failure_at, got.last_failure) == (None, None, None)
    assert await vault.connection("alice", "github") is None
    assert await vault.connection("bob", "daytona") is None


async def test_a_secret_of_any_text_up_to_64_kib_is_kept_exactly(vault: Vault) -> None:
    for version, text in enumerate(["x", "a\r\n\tb \n", "пароль\U0001f511", "\x01\x7f", "é" * 32 * 1024]):
        await connect(vault, key=text, replaces=version)
        assert await key_of(vault) == text


async def test_a_replaced_key_is_a_new_version_without_the_old_ones_marks(vault: Vault) -> None:
    await connect(vault, api_url="https://one.example")
    of = await id_of(vault)
    await vault.note_use("alice", of, 1)
    await vault.note_failure("alice", of, 1, "refused")
    first = await vault.connection("alice", "daytona")
    await connect(vault, key=OTHER_KEY, replaces=1)
    second = await vault.connection("alice", "daytona")
    assert first is not None
    assert second is not None
    assert (first.id, first.created_at) == (second.id, second.created_at)
    assert second.updated_at >= first.updated_at
    assert (second.version, second.secret.get_secret_value(), second.api_url) == (2, OTHER_KEY, None)
    assert (second.last_used_at, second.last_failure) == (None, None)


async def test_of_two_who_replace_the_same_version_one_is_told(vault: Vault) -> None:
    for version in range(3):
        keys = [f"{KEY}-{version}-{number}" for number in range(6)]
        outcomes = await asyncio.gather(
            *(connect(vault, key=key, replaces=version) for key in keys), return_exceptions=True
        )
        [winner] = [key for key, outcome in zip(keys, outcomes, strict=True) if outcome is None]
        assert sum(isinstance(outcome, ConnectionChanged) for outcome in outcomes) == 5
        assert await key_of(vault) == winner
    for wrong in (0, 2, 4):
        with pytest.raises(ConnectionChanged):
            await connect(vault, replaces=wrong)


async def test_rows_are_listed_without_opening_a_secret(vault: Vault, settings: Settings) -> None:
    await connect(vault, "bob", "short")
    await connect(vault, "alice")
    await vault.put_connection("alice", "github", SecretStr("-----BEGIN KEY-----\nabcdefgh\n"), replaces=0)
    blind = await open_vault(settings, EnvironmentKeyRing(KeyDocument.new().dump()))
    try:
        rows = await blind.connection_rows()
    finally:
        await blind.close()
    assert [(row.owner, row.provider, row.masked) for row in rows] == [
        ("alice", "daytona", "****ghij"),
        ("alice", "github", "****"),
        ("bob", "daytona", "****"),
    ]
    assert [row.owner for row in await vault.connection_rows("bob")] == ["bob"]
    assert set(rows[0].model_dump()) == set(ConnectionRow.model_fields)


async def test_a_removed_connection_is_gone(vault: Vault) -> None:
    await connect(vault)
    first = await vault.connection("alice", "daytona")
    with pytest.raises(ConnectionChanged):
        await vault.delete_connection("alice", "daytona", version=2)
    await vault.delete_connection("alice", "daytona")
    assert await vault.connection("alice", "daytona") is None
    with pytest.raises(ConnectionMissing):
        await vault.delete_connection("alice", "daytona")
    await connect(vault)
    second = await vault.connection("alice", "daytona")
    assert first is not None
    assert second is not None
    assert first.id != second.id


async def test_use_is_noted_with_one_write_a_minute(vault: Vault, settings: Settings, behind: Behind) -> None:
    await connect(vault)
    of = await id_of(vault)
    await asyncio.gather(*(vault.note_use("alice", of, 1) for _ in range(20)))
    [first] = await vault.connection_rows()
    assert first.last_used_at is not None
    assert abs(first.last_used_at - datetime.now(UTC)) < timedelta(minutes=1)
    # Another process, whose memory is another.
    other = await open_vault(settings, EnvironmentKeyRing(KeyDocument.new().dump()))
    try:
        await other.note_use("alice", of, 1)
    finally:
        await other.close()
    assert (await vault.connection_rows())[0].last_used_at == first.last_used_at
    await behind.rows("UPDATE connections SET last_used_at = '2020-01-01 00:00:00+00'".replace("+00", _zone(vault)))
    await vault.note_use("alice", of, 1)
    [unnoted] = await vault.connection_rows()
    assert unnoted.last_used_at == datetime(2020, 1, 1, tzinfo=UTC)


def _zone(vault: Vault) -> str:
    return "+00" if vault.kind == "postgresql" else ""


async def test_a_failure_marks_its_version_alone(vault: Vault) -> None:
    await connect(vault)
    of = await id_of(vault)
    assert await vault.note_failure("alice", of, 1, "connection_required")
    [row] = await vault.connection_rows()
    assert row.last_failure == "connection_required"
    assert row.last_failure_at is not None
    assert not await vault.clear_failure("alice", of, 2)
    assert await vault.clear_failure("alice", of, 1)
    assert not await vault.clear_failure("alice", of, 1)
    assert (await vault.connection_rows())[0].last_failure is None
    await connect(vault, replaces=1)
    assert not await vault.note_failure("alice", of, 1, "late")
    assert not await vault.note_failure("bob", of, 1, "nobody")
    assert (await vault.connection_rows())[0].last_failure is None
    with pytest.raises(ValueRefused):
        await vault.note_failure("alice", of, 2, f"the key {KEY} is wrong")


async def test_a_late_word_of_a_removed_or_replaced_connection_marks_no_other(vault: Vault, settings: Settings) -> None:
    elsewhere = await open_vault(settings, open_key_ring(settings))
    await connect(elsewhere)
    removed = await id_of(vault)
    assert await vault.note_failure("alice", removed, 1, "connection_required")
    await vault.note_use("alice", removed, 1)
    await elsewhere.delete_connection("alice", "daytona")
    await connect(elsewhere)
    made = await id_of(vault)
    assert not await vault.note_failure("alice", removed, 1, "connection_required")
    assert not await vault.note_failure("alice", removed, 1, "provider_rejected")
    await vault.note_use("alice", removed, 1)
    [row] = await vault.connection_rows()
    assert (row.version, row.last_failure, row.last_used_at) == (1, None, None)
    await vault.note_use("alice", made, 1)
    assert await vault.note_failure("alice", made, 1, "connection_required"), "at once, as it is another one"
    [row] = await vault.connection_rows()
    assert row.last_failure == "connection_required"
    assert row.last_used_at is not None
    await connect(elsewhere, key=OTHER_KEY, replaces=1)
    await elsewhere.close()
    assert not await vault.note_failure("alice", made, 1, "connection_required"), "although it was a moment ago"
    assert not await vault.clear_failure("alice", removed, 2)


async def test_a_key_that_waited_for_a_rotation_to_pass_is_sealed_under_its_key(
    settings: Settings, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = KeyDocument.new(), RingKey.new("primary")
    both = KeyDocument(keys=[old.keys[0].model_copy(update={"state": "decrypt_only"}), new])
    ring = EnvironmentKeyRing(old.dump())
    vault = await open_vault(settings, ring)
    wrap = ring.wrap

    async def wrapped(data_key: bytes, context: bytes) -> WrappedKey:
        under = await wrap(data_key, context)
        ring._document = both
        return under

    monkeypatch.setattr(ring, "wrap", wrapped)
    await connect(vault)
    [(sealed,)] = await behind.rows("SELECT sealed FROM connections")
    assert (key_id_of(bytes(sealed)), await key_of(vault)) == (new.id, KEY)
    await vault.close()


async def test_the_same_failure_again_and_again_costs_one_write(
    vault: Vault, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    await connect(vault)
    of = await id_of(vault)
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)

    async def failed(code: str, *, times: int = 1) -> tuple[str | None, bool]:
        """The mark when it has failed so, and whether it was written."""
        zone = _zone(vault)
        await behind.rows(f"UPDATE connections SET last_failure_at = '2020-01-01 00:00:00{zone}'")
        assert all(await asyncio.gather(*(vault.note_failure("alice", of, 1, code) for _ in range(times))))
        [row] = await vault.connection_rows()
        return row.last_failure, row.last_failure_at != long_ago

    assert await failed("connection_required", times=20) == ("connection_required", True)
    assert await failed("connection_required", times=20) == ("connection_required", False)
    assert await failed("provider_rejected") == ("provider_rejected", True)
    assert await vault.clear_failure("alice", of, 1)
    assert await failed("provider_rejected") == ("provider_rejected", True), "after a success it is marked at once"
    monkeypatch.setattr(stored, "FAILURE_NOTED_EVERY", timedelta(0))
    assert await failed("provider_rejected") == ("provider_rejected", True), "when the time is over"


async def test_what_can_be_no_connection_is_refused(vault: Vault) -> None:
    for owner, provider, fields in (
        ("", "daytona", {}),
        ("a b", "daytona", {}),
        ("alice", "e2b", {}),
        ("alice", "daytona", {"api_url": "ftp://x"}),
        ("alice", "daytona", {"api_url": "https://user:secret@x/"}),
        ("alice", "daytona", {"api_url": "https://x/#part"}),
        ("alice", "daytona", {"api_url": "https://x y/"}),
        ("alice", "daytona", {"api_url": "https:///path"}),
        ("alice", "daytona", {"organization": "a/b"}),
        ("alice", "daytona", {"organization": ""}),
    ):
        with pytest.raises(ValueRefused) as refused:
            await vault.put_connection(owner, provider, SecretStr(KEY), replaces=0, **fields)  # type: ignore[arg-type]
        assert KEY not in str(refused.value)
    assert await vault.connection_rows() == []


async def test_what_can_be_no_secret_is_refused(vault: Vault) -> None:
    for value in ("", "a\0b", "\ud800", "é" * (32 * 1024 + 1)):
        with pytest.raises(ValueRefused):
            await connect(vault, key=value)
    assert await vault.connection_rows() == []


async def test_no_text_shows_the_secret(vault: Vault, behind: Behind) -> None:
    await connect(vault)
    record = await vault.connection("alice", "daytona")
    assert record is not None
    for shown in (repr(record), str(record), str(record.model_dump()), record.model_dump_json()):
        assert KEY not in shown
    with pytest.raises(ValidationError):
        record.secret = SecretStr("another")
    [(sealed,)] = await behind.rows("SELECT sealed FROM connections")
    assert KEY.encode() not in sealed


async def test_every_byte_that_is_flipped_keeps_a_connection_from_opening(vault: Vault, behind: Behind) -> None:
    await connect(vault, key="k")
    [row] = await vault.connection_rows()
    [(sealed,)] = await behind.rows("SELECT sealed FROM connections")
    for at in range(0, len(sealed), 3):
        await behind.flip("connections", row.id, at)
        with pytest.raises(SecurityError):
            await vault.connection("alice", "daytona")
        await behind.put("connections", row.id, sealed)
    assert await key_of(vault) == "k"


@pytest.fixture
async def two(vault: Vault) -> tuple[ConnectionRow, ConnectionRow]:
    await connect(vault, "alice", KEY, api_url="https://daytona.example/api")
    await connect(vault, "mallory", OTHER_KEY, api_url="https://daytona.example/api")
    alice, mallory = await vault.connection_rows()
    return alice, mallory


async def test_values_that_were_swapped_between_owners_do_not_open(
    vault: Vault, behind: Behind, two: tuple[ConnectionRow, ConnectionRow]
) -> None:
    sealed = dict(await behind.rows("SELECT id, sealed FROM connections"))
    alice, mallory = two
    await behind.put("connections", alice.id, sealed[mallory.id])
    await behind.put("connections", mallory.id, sealed[alice.id])
    for owner in ("alice", "mallory"):
        with pytest.raises(Tampered):
            await vault.connection(owner, "daytona")


@pytest.mark.parametrize(
    "change",
    [
        "owner = 'bob' WHERE owner = 'alice'",
        "version = 2 WHERE owner = 'alice'",
        "id = 'ffffffffffffffffffffffffffffffff' WHERE owner = 'alice'",
        "api_url = 'https://evil.example/api' WHERE owner = 'alice'",
        "api_url = NULL WHERE owner = 'alice'",
        "organization = 'another' WHERE owner = 'alice'",
        "provider = 'github' WHERE owner = 'alice'",
    ],
)
async def test_a_record_that_was_changed_behind_our_back_does_not_open(
    vault: Vault, behind: Behind, two: tuple[ConnectionRow, ConnectionRow], change: str
) -> None:
    await behind.rows(f"UPDATE connections SET {change}")
    owner = "bob" if "'bob'" in change else "alice"
    with pytest.raises(Tampered):
        await vault.connection(owner, "github" if "'github'" in change else "daytona")
    assert await key_of(vault, "mallory") == OTHER_KEY


async def test_text_in_the_clear_is_not_taken_for_a_secret(
    vault: Vault, behind: Behind, two: tuple[ConnectionRow, ConnectionRow]
) -> None:
    await behind.put("connections", two[0].id, b"dtn_of_somebody_else")
    with pytest.raises(NotEncrypted):
        await vault.connection("alice", "daytona")


async def test_another_key_ring_opens_nothing(vault: Vault, settings: Settings) -> None:
    await connect(vault)
    stranger = await open_vault(settings, EnvironmentKeyRing(KeyDocument.new().dump()))
    try:
        with pytest.raises(KeyUnknown):
            await stranger.connection("alice", "daytona")
    finally:
        await stranger.close()
