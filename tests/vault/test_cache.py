"""The cache of the vault: recent enough, one query for all who ask at once, no failure kept."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from pydantic import SecretStr

from sandhold.security import open_key_ring
from sandhold.settings import Settings
from sandhold.vault import Vault, VaultCache, VaultUnavailable, open_vault
from tests.workflows.waiting import eventually

LONG_S = 1000.0


class Counted:
    """Counts what the cache asks the vault for, and can hold it up or make it fail."""

    def __init__(self, vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queries = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False
        for name in ("connection", "secret_values"):
            monkeypatch.setattr(vault, name, self._counting(getattr(vault, name)))

    def _counting(self, query: Any) -> Any:
        async def counted(*arguments: str) -> Any:
            self.queries += 1
            found = await query(*arguments)
            await self.gate.wait()
            if self.fails:
                raise VaultUnavailable("as the test wants it")
            return found

        return counted


@pytest.fixture
def counted(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(vault, monkeypatch)


@pytest.fixture
async def elsewhere(settings: Settings, vault: Vault) -> AsyncIterator[Vault]:
    """The same vault, as another process has it open."""
    other = await open_vault(settings, open_key_ring(settings))
    yield other
    await other.close()


async def put(vault: Vault, key: str, replaces: int) -> None:
    await vault.put_connection("alice", "daytona", SecretStr(key), replaces=replaces)


async def key(cache: VaultCache, *, fresh: bool = False) -> str | None:
    record = await cache.connection("alice", "daytona", fresh=fresh)
    return None if record is None else record.secret.get_secret_value()


async def secrets(cache: VaultCache, run_id: str = "run-1", *, fresh: bool = False) -> Mapping[str, SecretStr]:
    return (await cache.secret_values("s-1", run_id, fresh=fresh)).usable


async def test_what_another_process_changes_is_seen_when_the_time_is_over(
    vault: Vault, elsewhere: Vault, counted: Counted
) -> None:
    cache = VaultCache(vault, 0.3)
    assert await key(cache) is None
    await put(elsewhere, "one", 0)
    assert (await key(cache), counted.queries) == (None, 1)
    await asyncio.sleep(0.4)
    assert (await key(cache), counted.queries) == ("one", 2)


async def test_a_fresh_read_sees_it_at_once_and_is_kept_for_the_others(
    vault: Vault, elsewhere: Vault, counted: Counted
) -> None:
    cache = VaultCache(vault, LONG_S)
    await put(elsewhere, "one", 0)
    assert await key(cache) == "one"
    await put(elsewhere, "two", 1)
    assert [await key(cache), await key(cache, fresh=True), await key(cache)] == ["one", "two", "two"]
    await elsewhere.set_secret("s-1", "run-1", "A", SecretStr("1"))
    assert await secrets(cache) == {"A": SecretStr("1")}
    await elsewhere.set_secret("s-1", "run-1", "B", SecretStr("2"))
    assert await secrets(cache) == {"A": SecretStr("1")}
    assert set(await secrets(cache, fresh=True)) == {"A", "B"}
    assert set(await secrets(cache)) == {"A", "B"}
    assert await secrets(cache, "run-2") == {}


async def test_our_own_changes_are_seen_at_once(vault: Vault, counted: Counted) -> None:
    cache = VaultCache(vault, LONG_S)
    assert await key(cache) is None
    await put(vault, "one", 0)
    assert await key(cache) == "one"
    [row] = await vault.connection_rows()
    await vault.note_failure("alice", row.id, 1, "refused")
    marked = await cache.connection("alice", "daytona")
    assert marked is not None
    assert marked.last_failure == "refused"
    await vault.delete_connection("alice", "daytona")
    assert await key(cache) is None
    await vault.set_secret("s-1", "run-1", "A", SecretStr("1"))
    assert set(await secrets(cache)) == {"A"}
    await vault.delete_secrets("s-1", "run-1")
    assert await secrets(cache) == {}


async def test_who_asks_at_once_shares_a_query(vault: Vault, counted: Counted) -> None:
    cache = VaultCache(vault, LONG_S)
    counted.gate.clear()
    asking = [asyncio.create_task(key(cache)) for _ in range(50)]
    await asyncio.sleep(0.05)
    asking[0].cancel()
    await asyncio.sleep(0)
    counted.gate.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert (outcomes[1:], counted.queries) == ([None] * 49, 1)


async def test_a_fresh_read_never_shares_a_query_that_had_begun_before(
    vault: Vault, elsewhere: Vault, counted: Counted
) -> None:
    cache = VaultCache(vault, LONG_S)
    await put(elsewhere, "one", 0)
    counted.gate.clear()
    before = asyncio.create_task(key(cache))
    while counted.queries == 0:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # the query has its answer, and waits at the gate
    await put(elsewhere, "two", 1)
    fresh = [asyncio.create_task(key(cache, fresh=True)) for _ in range(20)]
    await asyncio.sleep(0.05)
    counted.gate.set()
    assert await before == "one"
    assert await asyncio.gather(*fresh) == ["two"] * 20
    assert counted.queries == 2


async def test_a_query_that_was_overtaken_by_our_own_change_is_not_kept(vault: Vault, counted: Counted) -> None:
    cache = VaultCache(vault, LONG_S)
    counted.gate.clear()
    before = asyncio.create_task(key(cache))
    while counted.queries == 0:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    await put(vault, "one", 0)
    after = asyncio.create_task(key(cache))
    await asyncio.sleep(0.05)
    counted.gate.set()
    assert [await before, await after, await key(cache)] == [None, "one", "one"]


async def test_failures_are_told_to_all_and_not_kept(
    vault: Vault, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    cache = VaultCache(vault, LONG_S)
    counted.fails = True
    outcomes = await asyncio.gather(*(key(cache) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(outcome, VaultUnavailable) for outcome in outcomes)
    counted.fails = False
    assert (await key(cache), counted.queries) == (None, 2)
    counted.fails = True
    with pytest.raises(VaultUnavailable):
        await key(cache, fresh=True)
    assert await key(cache) is None
    assert counted.queries == 3


async def test_only_so_many_are_kept(vault: Vault, counted: Counted) -> None:
    cache = VaultCache(vault, LONG_S, most=2)
    for owner in ("a", "b", "a", "c"):
        await cache.connection(owner, "daytona")
    assert counted.queries == 3
    await cache.connection("a", "daytona")
    assert counted.queries == 3
    await cache.connection("b", "daytona")
    assert counted.queries == 4


async def test_values_are_let_go_when_their_time_is_over_though_nobody_asks_again(vault: Vault) -> None:
    await vault.set_secret("s-1", "run-1", "A", SecretStr("1"))
    cache = VaultCache(vault, 0.05)
    kept = weakref.ref(await cache.secret_values("s-1", "run-1"))

    async def is_kept() -> bool:
        return kept() is not None

    await eventually(is_kept, lambda is_there: not is_there, "values that are let go")
