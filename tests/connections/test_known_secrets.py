"""What must not be seen in a session's output."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from temporalio.exceptions import ApplicationError

from activities.connections import Connections
from activities.session_secrets import SessionSecrets
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.policy import Policy
from sandhold.contracts.sessions import SessionRecord, SessionStart
from sandhold.contracts.steps import SandboxRef
from sandhold.github.connection import secret_of_installation
from sandhold.security import open_key_ring
from sandhold.security.process_secrets import redact_for_log
from sandhold.settings import Settings
from sandhold.vault import Vault, open_vault
from tests.stack import KEY_RING

REF = SandboxRef(session_id="mine", sandbox_id="box", owner="ada", generation=1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, keyring=SecretStr(KEY_RING), daytona_api_key=SecretStr("deployments-key"))


@pytest.fixture
async def vault(settings: Settings) -> AsyncIterator[Vault]:
    vault = await open_vault(settings, open_key_ring(settings))
    yield vault
    await vault.close()


@pytest.fixture
def secrets(settings: Settings, vault: Vault) -> SessionSecrets:
    return SessionSecrets(settings, Connections(settings, vault), session_known)


async def session_known(session_id: str) -> SessionRecord | None:
    if session_id == "unknown":
        return None
    start = SessionStart(session_id=session_id, owner="ada", policy=Policy())
    return SessionRecord(start=start, run_id=f"run-of-{session_id}", created_at=datetime.now(UTC))


async def test_every_secret_of_a_session_is_known_and_none_of_others(
    secrets: SessionSecrets, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    await vault.put_connection("ada", "daytona", SecretStr("adas-key"), replaces=0)
    await vault.put_connection("bob", "daytona", SecretStr("bobs-key"), replaces=0)
    await vault.set_secret("mine", "run-of-mine", "TOKEN", SecretStr("first"))
    await vault.set_secret("mine", "an-earlier-run", "OLD", SecretStr("of an earlier session"))
    await vault.set_secret("other", "run-of-other", "OTHER", SecretStr("others"))
    known = {"SANDHOLD_DAYTONA_API_KEY": "deployments-key", "daytona-connection": "adas-key"}
    assert await secrets.of("mine", "ada") == {**known, "TOKEN": "first"}
    assert await secrets.of("unknown", "ada") == known
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of the store")
    assert (await secrets.of("mine", "ada"))["AWS_SESSION_TOKEN"] == "of the store"


async def test_a_value_that_was_replaced_or_removed_is_known_for_what_still_runs_with_it(
    secrets: SessionSecrets, vault: Vault, settings: Settings
) -> None:
    for value in ("of-yesterday", "second", "a-third", "second"):
        await vault.set_secret("mine", "run-of-mine", "TOKEN", SecretStr(value))
        assert await secrets.environment(REF, ["TOKEN"]) == {"TOKEN": value}
    known = await secrets.of("mine", "ada")
    assert [known[name] for name in ("TOKEN", "TOKEN-before-1", "TOKEN-before-2")] == [
        "second",
        "a-third",
        "of-yesterday",
    ]
    await vault.delete_secret("mine", "run-of-mine", "TOKEN")
    assert "second" in (await secrets.of("mine", "ada")).values()
    with pytest.raises(ApplicationError):
        await secrets.environment(REF, ["TOKEN"])
    # A process that has never seen them.
    another = SessionSecrets(settings, Connections(settings, vault), session_known)
    assert {"second", "a-third", "of-yesterday"} <= set((await another.of("mine", "ada")).values())


async def test_what_another_process_set_a_moment_ago_is_known_to_who_asks_anew(
    secrets: SessionSecrets, settings: Settings
) -> None:
    assert "TOKEN" not in await secrets.of("mine", "ada")
    elsewhere = await open_vault(settings, open_key_ring(settings))
    try:
        await elsewhere.set_secret("mine", "run-of-mine", "TOKEN", SecretStr("set elsewhere"))
    finally:
        await elsewhere.close()
    assert "TOKEN" not in await secrets.of("mine", "ada")
    assert (await secrets.of("mine", "ada", fresh=True))["TOKEN"] == "set elsewhere"


async def test_logs_show_no_secret_that_a_command_gets_or_may_print(secrets: SessionSecrets, vault: Vault) -> None:
    for value in ("logged-first-a71", "logged-second-b82"):
        await vault.set_secret("mine", "run-of-mine", "LOGGED", SecretStr(value))
    await secrets.environment(REF, ["LOGGED"])
    line = redact_for_log("failed with logged-second-b82, before with logged-first-a71")
    assert "logged-first" not in line
    assert "logged-second" not in line
    assert line.count("[redacted:LOGGED") == 2


async def test_secrets_that_no_environment_holds_are_refused(
    secrets: SessionSecrets, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A vault of today takes only half as much; those of sessions from before may weigh more.
    monkeypatch.setattr("activities.session_secrets.ENVIRONMENT_BYTES", 150_000)
    names = ["PART_1", "PART_2", "PART_3"]
    for name in names:
        await vault.set_secret("mine", "run-of-mine", name, SecretStr("x" * 60_000))
    for wanted, code in (
        (names, ErrorCode.TOO_LARGE),
        (["PATH"], ErrorCode.INVALID_ARGUMENTS),
        ([names[0], "MISSING"], ErrorCode.INVALID_ARGUMENTS),
    ):
        with pytest.raises(ApplicationError) as refused:
            await secrets.environment(REF, wanted)
        assert (refused.value.type, refused.value.non_retryable) == (code, True)
        assert "xxx" not in str(refused.value)


def git_token_of(session_id: str, run_id: str, **other: object) -> dict[str, object]:
    return {
        "owner": "ada",
        "session_id": session_id,
        "run_id": run_id,
        "sandbox_id": "box",
        "generation": 1,
        "purpose": "helper",
        "api_url": "https://api.github.com",
        "expires_at": datetime.now(UTC) + timedelta(hours=1),
        **other,
    }


async def test_tokens_that_git_has_in_the_session_are_known_as_they_are_and_as_git_sends_them(
    secrets: SessionSecrets, vault: Vault, settings: Settings
) -> None:
    first, second, others = (f"ghs_{letter * 36}" for letter in "abc")
    await vault.set_secret("mine", "run-of-mine", "GIT_TOKEN", SecretStr("of the user's own"))
    stored = await vault.put_git_token(SecretStr(first), **git_token_of("mine", "run-of-mine"))  # type: ignore[arg-type]
    await vault.put_git_token(SecretStr(second), **git_token_of("mine", "run-of-mine"))  # type: ignore[arg-type]
    await vault.put_git_token(SecretStr(others), **git_token_of("other", "run-of-other"))  # type: ignore[arg-type]
    known = await secrets.of("mine", "ada")
    assert known["GIT_TOKEN"] == "of the user's own"
    assert {first, second} < set(known.values())
    assert others not in known.values()
    assert base64.b64encode(f"x-access-token:{first}".encode()).decode() in known.values()
    line = redact_for_log(f"git said {first}")
    assert first not in line
    await vault.delete_git_token(stored.id)
    assert first not in (await secrets.of("mine", "ada")).values()


async def test_the_number_of_an_installation_is_no_secret_and_a_stored_token_is_one(
    secrets: SessionSecrets, vault: Vault
) -> None:
    await vault.put_connection("ada", "github", secret_of_installation(12345678), replaces=0)
    assert "github-connection" not in await secrets.of("mine", "ada")
    await vault.put_connection("ada", "github", SecretStr("ghp_of-ada"), replaces=1)
    assert (await secrets.of("mine", "ada"))["github-connection"] == "ghp_of-ada"
