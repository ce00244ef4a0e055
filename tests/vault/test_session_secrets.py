"""Secrets of sessions: as many as allowed, exact, and never those of another session of the same id."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import SecretStr

from sandhold.security import Tampered
from sandhold.vault import SecretMissing, SecretsFull, SecretsTooLarge, ValueRefused, Vault
from sandhold.vault.records import SECRET_BYTES, SECRETS_BYTES_PER_SESSION, SECRETS_PER_SESSION
from tests.vault.conftest import Behind


async def put(vault: Vault, name: str, value: str, session_id: str = "s-1", run_id: str = "run-1") -> None:
    await vault.set_secret(session_id, run_id, name, SecretStr(value))


async def values(vault: Vault, session_id: str = "s-1", run_id: str = "run-1") -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in (await vault.secrets(session_id, run_id)).items()}


async def test_secrets_are_set_replaced_listed_and_removed(vault: Vault) -> None:
    assert await values(vault) == {}
    first = await vault.set_secret("s-1", "run-1", "TOKEN", SecretStr("one"))
    await put(vault, "a_b", "two\n")
    second = await vault.set_secret("s-1", "run-1", "TOKEN", SecretStr("three"))
    assert await values(vault) == {"TOKEN": "three", "a_b": "two\n"}
    assert (second.created_at, second.updated_at >= first.updated_at) == (first.created_at, True)
    rows = await vault.secret_rows("s-1", "run-1")
    assert {row.name for row in rows} == {"TOKEN", "a_b"}
    assert second in rows
    await vault.delete_secret("s-1", "run-1", "TOKEN")
    with pytest.raises(SecretMissing):
        await vault.delete_secret("s-1", "run-1", "TOKEN")
    assert await values(vault) == {"a_b": "two\n"}
    assert await vault.delete_secrets("s-1", "run-1") == 1
    assert await values(vault) == {}


async def test_a_later_session_of_the_same_id_has_none_of_the_secrets(vault: Vault) -> None:
    await put(vault, "TOKEN", "of the first", run_id="run-1")
    assert await values(vault, run_id="run-2") == {}
    assert await vault.secret_rows("s-1", "run-2") == []
    with pytest.raises(SecretMissing):
        await vault.delete_secret("s-1", "run-2", "TOKEN")
    await put(vault, "TOKEN", "of the second", run_id="run-2")
    assert (await values(vault, run_id="run-1"), await values(vault, run_id="run-2")) == (
        {"TOKEN": "of the first"},
        {"TOKEN": "of the second"},
    )
    assert await vault.delete_secrets("s-1", "run-1") == 1
    assert await values(vault, run_id="run-2") == {"TOKEN": "of the second"}


@pytest.mark.parametrize(
    "change", ["run_id = 'run-2'", "session_id = 's-2'", "name = 'OTHER'", "run_id = 'run-2', session_id = 's-2'"]
)
async def test_a_secret_that_was_moved_does_not_open(vault: Vault, behind: Behind, change: str) -> None:
    await put(vault, "TOKEN", "mine")
    await behind.rows(f"UPDATE secrets SET {change}")
    with pytest.raises(Tampered):
        await vault.secrets("s-2" if "s-2" in change else "s-1", "run-2" if "run-2" in change else "run-1")


async def test_secrets_that_were_swapped_do_not_open(vault: Vault, behind: Behind) -> None:
    await put(vault, "A", "1")
    await put(vault, "B", "2")
    sealed = dict(await behind.rows("SELECT id, sealed FROM secrets"))
    first, second = sealed
    await behind.put("secrets", first, sealed[second])
    await behind.put("secrets", second, sealed[first])
    with pytest.raises(Tampered):
        await vault.secrets("s-1", "run-1")


async def test_a_session_has_at_most_a_hundred_however_many_come_at_once(vault: Vault) -> None:
    for start in range(0, SECRETS_PER_SESSION - 2, 20):
        names = range(start, min(start + 20, SECRETS_PER_SESSION - 2))
        await asyncio.gather(*(put(vault, f"S{number}", "x") for number in names))
    outcomes = await asyncio.gather(*(put(vault, f"T{number}", "x") for number in range(6)), return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == 2
    assert sum(isinstance(outcome, SecretsFull) for outcome in outcomes) == 4
    assert len(await values(vault)) == SECRETS_PER_SESSION
    await put(vault, "S0", "replacing is no more")
    await put(vault, "T0", "another session's", session_id="s-2")


async def test_all_of_a_session_weigh_so_much_however_many_come_at_once(vault: Vault) -> None:
    for name in ("A", "B", "C"):
        await put(vault, name, "x" * SECRET_BYTES)
    await put(vault, "D", "\u00e4" * 30_000)
    outcomes = await asyncio.gather(*(put(vault, f"T{n}", "x" * 3000) for n in range(5)), return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, SecretsTooLarge)]
    assert (outcomes.count(None), len(refused)) == (1, 4)
    used, left = 3 * SECRET_BYTES + 63_000, SECRETS_BYTES_PER_SESSION - 3 * SECRET_BYTES - 63_000
    assert {(each.used, each.left) for each in refused} == {(used, left)}
    assert f"{used} of {SECRETS_BYTES_PER_SESSION}: {left} are left" in str(refused[0])
    assert sum(len(value.encode()) for value in (await values(vault)).values()) == used
    with pytest.raises(SecretsTooLarge):
        await put(vault, "D", "x" * 63_000)
    await put(vault, "D", "x" * (60_000 + left))
    await put(vault, "A", "small")
    await put(vault, "E", "x" * (SECRET_BYTES - 5))
    await put(vault, "A", "x" * SECRET_BYTES, session_id="s-2")


async def test_a_session_that_has_more_from_before_may_change_it_but_not_let_it_grow(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandhold.vault.session_secrets.SECRETS_BYTES_PER_SESSION", 10 * SECRET_BYTES)
    for number in range(6):
        await put(vault, f"S{number}", f"{number}" * SECRET_BYTES)
    monkeypatch.undo()
    await put(vault, "S1", "x" * SECRET_BYTES)
    assert await vault.retired_count("s-1", "run-1") == 1, "also then the latest has room"
    await put(vault, "S1", "x" * 40)
    for name, size in (("S1", 41), ("NEW", 1)):
        with pytest.raises(SecretsTooLarge) as refused:
            await put(vault, name, "x" * size)
        assert refused.value.left == 0


async def test_the_same_name_set_at_once_is_one_secret(vault: Vault) -> None:
    await asyncio.gather(*(put(vault, "TOKEN", str(number)) for number in range(8)))
    assert len(await vault.secret_rows("s-1", "run-1")) == 1
    assert (await values(vault))["TOKEN"] in {str(number) for number in range(8)}


async def test_what_can_be_no_name_is_refused(vault: Vault) -> None:
    for name in ("", "1A", "A-B", "A B", "A\n", "Ä", "A" * 129):
        with pytest.raises(ValueRefused):
            await put(vault, name, "value")
    assert await vault.sessions_with_secrets() == []


async def test_values_are_exact_up_to_64_kib(vault: Vault) -> None:
    largest = "\U0001f511" * (16 * 1024)
    await put(vault, "A" * 128, largest)
    assert await values(vault) == {"A" * 128: largest}
    for wrong in ("", largest + "x", "a\0"):
        with pytest.raises(ValueRefused) as refused:
            await put(vault, "B", wrong)
        assert not wrong or wrong not in str(refused.value)


async def test_the_sessions_that_have_secrets_are_told_in_order(vault: Vault) -> None:
    for session_id, run_id in (("s-b", "run-1"), ("s-a", "run-2"), ("s-a", "run-1")):
        await put(vault, "A", "1", session_id, run_id)
    await put(vault, "B", "1", "s-a", "run-1")
    found = []
    after = ("", "")
    while batch := await vault.sessions_with_secrets(after, 1):
        assert len(batch) == 1
        found.append((batch[0].session_id, batch[0].run_id, batch[0].values))
        after = (batch[0].session_id, batch[0].run_id)
    assert found == [("s-a", "run-1", 2), ("s-a", "run-2", 1), ("s-b", "run-1", 1)]
    [of_b] = await vault.sessions_with_secrets(("s-a", "run-2"))
    assert of_b.updated_at == (await vault.secret_rows("s-b", "run-1"))[0].updated_at


async def test_the_first_deployment_that_claims_a_vault_has_it(vault: Vault) -> None:
    assert await vault.claimed_by() is None
    told = await asyncio.gather(*(vault.claim(f"deployment-{number}") for number in range(5)))
    assert len(set(told)) == 1
    assert await vault.claimed_by() == told[0]
