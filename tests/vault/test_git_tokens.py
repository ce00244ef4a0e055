"""A token that was minted lies in the vault until it is revoked, and opens nowhere but in its own place."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from sandhold.security import Tampered, open_key_ring
from sandhold.settings import Settings
from sandhold.vault import GitToken, ValueRefused, Vault, VaultCache, open_vault
from tests.vault.conftest import Behind

TOKEN = SecretStr("ghs_" + "a" * 36)
OF = {
    "owner": "ada",
    "session_id": "s-1",
    "run_id": "run-1",
    "sandbox_id": "sandbox-1",
    "generation": 1,
    "purpose": "clone",
    "api_url": "https://api.github.com",
    "call_id": "call-1",
}


async def put(vault: Vault, token: SecretStr = TOKEN, lives: timedelta = timedelta(hours=1), **other: Any) -> GitToken:
    return await vault.put_git_token(token, expires_at=datetime.now(UTC) + lives, **{**OF, **other})


async def test_a_token_is_found_by_its_session_and_its_sandbox_until_it_is_deleted(vault: Vault) -> None:
    first = await put(vault)
    second = await put(vault, SecretStr("ghs_b"), sandbox_id="build", purpose="helper", call_id=None, generation=3)
    await put(vault, run_id="run-2")
    await put(vault, session_id="s-2")
    assert await vault.git_tokens("s-1", "run-1") == [first, second]
    assert await vault.git_tokens("s-1", "run-1", "build") == [second]
    assert first.token == TOKEN
    assert TOKEN.get_secret_value() not in repr(first)
    assert await vault.delete_git_token(first.id)
    assert not await vault.delete_git_token(first.id)
    assert await vault.git_tokens("s-1", "run-1") == [second]
    assert await vault.git_tokens("s-1", "run-3") == []


async def test_whoever_opens_the_vault_next_can_revoke_it(vault: Vault, settings: Settings) -> None:
    stored = await put(vault)
    again = await open_vault(settings, open_key_ring(settings))
    assert await again.git_tokens("s-1", "run-1") == [stored]
    await again.close()


async def test_those_that_have_expired_are_told_apart(vault: Vault) -> None:
    old = await put(vault, lives=timedelta(seconds=-30))
    older = await put(vault, lives=timedelta(seconds=-60))
    await put(vault)
    now = datetime.now(UTC)
    assert await vault.git_tokens_to_end(now) == [older.id, old.id]
    assert await vault.git_tokens_to_end(now, limit=1) == [older.id]
    assert await vault.git_tokens_to_end(now - timedelta(hours=1)) == []


async def test_sessions_that_have_tokens_are_listed_in_order(vault: Vault) -> None:
    for session, run in (("s-2", "run-1"), ("s-1", "run-2"), ("s-1", "run-1"), ("s-1", "run-1")):
        await put(vault, session_id=session, run_id=run)
    found = await vault.sessions_with_git_tokens()
    assert [(each.session_id, each.run_id, each.values) for each in found] == [
        ("s-1", "run-1", 2),
        ("s-1", "run-2", 1),
        ("s-2", "run-1", 1),
    ]
    assert await vault.sessions_with_git_tokens(("s-1", "run-2")) == found[2:]
    assert await vault.sessions_with_git_tokens(limit=1) == found[:1]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("api_url", "https://evil.example"),
        ("session_id", "s-2"),
        ("run_id", "run-2"),
        ("sandbox_id", "sandbox-2"),
    ],
)
async def test_a_token_that_was_moved_does_not_open(vault: Vault, behind: Behind, column: str, value: str) -> None:
    """So that it is revoked at the API that minted it, and sent nowhere else."""
    await put(vault)
    await behind.rows(f"UPDATE git_tokens SET {column} = '{value}'")
    session = value if column == "session_id" else "s-1"
    run = value if column == "run_id" else "run-1"
    with pytest.raises(Tampered):
        await vault.git_tokens(session, run)


async def test_a_token_does_not_open_as_another_one_of_the_same_sandbox(vault: Vault, behind: Behind) -> None:
    one, other = await put(vault), await put(vault, SecretStr("ghs_b"))
    [(sealed,)] = await behind.rows(f"SELECT sealed FROM git_tokens WHERE id = '{one.id}'")
    await behind.put("git_tokens", other.id, bytes(sealed))
    with pytest.raises(Tampered):
        await vault.git_tokens("s-1", "run-1")


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_url": "http://api.github.com"},
        {"api_url": "https://user:pw@api.github.com"},
        {"session_id": "S 1"},
        {"sandbox_id": "../x"},
        {"owner": "a b"},
        {"token": SecretStr("")},
    ],
)
async def test_what_cannot_be_a_token_is_refused(vault: Vault, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueRefused):
        await put(vault, **wrong)
    with pytest.raises(ValueRefused):
        await vault.put_git_token(TOKEN, expires_at=datetime(2026, 1, 1), **OF)  # type: ignore[arg-type]  # noqa: DTZ001
    assert await vault.git_tokens("s-1", "run-1") == []


async def test_the_cache_knows_a_new_token_of_the_same_process_at_once(vault: Vault) -> None:
    cache = VaultCache(vault)
    assert await cache.git_tokens("s-1", "run-1") == []
    stored = await put(vault)
    assert await cache.git_tokens("s-1", "run-1") == [stored]
    await vault.delete_git_token(stored.id)
    assert await cache.git_tokens("s-1", "run-1") == []
