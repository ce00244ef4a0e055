"""What `session show` says that a session can use: what is known of the workers, and nothing by guess."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from sandhold.client import Capability
from sandhold.connections.capabilities import capabilities_of
from sandhold.contracts.sandboxes import SandboxStatus, ShownSandbox
from sandhold.settings import Settings
from sandhold.vault import Vault, open_vault
from tests.cli.process import sandhold
from tests.stack import KEY_RING, RING, Stack, environment_of

ADDRESS = "127.0.0.1:7233"
ELSEWHERE = "https://daytona.example/api"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a machine that has a provider's key for itself, which tells nothing of the workers."""
    return Settings(
        data_dir=tmp_path,
        temporal_address=ADDRESS,
        keyring=SecretStr(KEY_RING),
        daytona_api_url=ELSEWHERE,
        daytona_api_key=SecretStr("a-key-of-the-caller"),
    )


@pytest.fixture
async def vault(settings: Settings) -> AsyncIterator[Vault]:
    vault = await open_vault(settings, RING)
    yield vault
    await vault.close()


def stack_runs(settings: Settings, **told: str | None) -> None:
    """As `sandhold dev` writes it."""
    (settings.data_dir / "stack.json").write_text(json.dumps({"temporal_address": ADDRESS, **told}))


def sandbox(connection: str | None) -> SandboxStatus:
    return SandboxStatus(
        sandbox_id="box",
        title=None,
        state="started",
        created_at=datetime.now(UTC),
        generation=1,
        workflow_id="sandbox/s/box",
        session_id="s",
        owner="ada",
        connection=connection,
        next="",
    )


async def told(settings: Settings, vault: Vault, *sandboxes: ShownSandbox) -> Capability:
    capability, git = await capabilities_of(settings, vault, "ada", sandboxes)
    assert (capability.name, git.name) == ("sandboxes", "git")
    return capability


async def told_of_git(settings: Settings, vault: Vault) -> Capability:
    _, capability = await capabilities_of(settings, vault, "ada")
    return capability


async def test_the_callers_own_settings_say_nothing_of_the_deployment(settings: Settings, vault: Vault) -> None:
    said = await told(settings, vault)
    assert (said.available, said.connection) == (None, None)
    assert said.reason.startswith("not known here")
    assert ELSEWHERE not in said.reason


async def test_a_stack_on_this_machine_tells_what_its_workers_have(settings: Settings, vault: Vault) -> None:
    stack_runs(settings, workers_vault=vault.shown, daytona_api_url="http://127.0.0.1:9/api")
    said = await told(settings, vault)
    assert (said.available, said.connection, "127.0.0.1:9" in said.reason) == (True, "deployment", True)
    stack_runs(settings, workers_vault=vault.shown, daytona_api_url=None)
    said = await told(settings, vault)
    assert (said.available, "sandhold connect daytona --owner ada" in said.reason) == (False, True)
    await vault.put_connection("ada", "daytona", SecretStr("key-of-ada"), replaces=0)
    assert (await told(settings, vault)).available is True


@pytest.mark.parametrize(
    "changed",
    [{"workers_vault": "/elsewhere/vault.db"}, {"workers_vault": None}, {"temporal_address": "127.0.0.1:1"}],
    ids=["another vault", "workers elsewhere", "another deployment"],
)
async def test_a_stack_of_other_workers_tells_nothing(
    settings: Settings, vault: Vault, changed: dict[str, str | None]
) -> None:
    stack_runs(settings, **{"workers_vault": vault.shown, "daytona_api_url": "http://127.0.0.1:9/api", **changed})
    assert (await told(settings, vault)).available is None


async def test_a_connection_is_the_workers_when_they_have_used_or_marked_it(settings: Settings, vault: Vault) -> None:
    row = await vault.put_connection("ada", "daytona", SecretStr("key-of-ada"), replaces=0)
    said = await told(settings, vault)
    assert (said.available, said.connection) == (None, "own")
    assert (await told(settings, vault, sandbox(row.id))).available is True
    await vault.note_use("ada", "daytona")
    assert (await told(settings, vault)).available is True
    await vault.note_failure("ada", "daytona", 1, "connection_required")
    assert (await told(settings, vault)).available is False


async def test_a_sandbox_tells_by_what_it_is_used(settings: Settings, vault: Vault) -> None:
    said = await told(settings, vault, sandbox("default"))
    assert (said.available, said.connection, "box" in said.reason) == (True, "deployment", True)
    said = await told(settings, vault, sandbox("of-another-vault"))
    assert (said.available, said.connection, "another one" in said.reason) == (None, None, True)


async def test_git_has_a_credential_when_the_workers_have_the_owners_connection(
    settings: Settings, vault: Vault
) -> None:
    said = await told_of_git(settings, vault)
    assert (said.available, "sandhold connect github --owner ada" in said.reason) == (None, True)
    stack_runs(settings, workers_vault=vault.shown)
    said = await told_of_git(settings, vault)
    assert (said.available, "public repositories" in said.reason) == (False, True)
    api = "https://api.github.com"
    details = {"kind": "token", "account": "octocat"}
    await vault.put_connection("ada", "github", SecretStr("ghp_1"), replaces=0, api_url=api, details=details)
    said = await told_of_git(settings, vault)
    assert (said.available, said.connection, said.reason) == (True, "own", f"the GitHub token of octocat, at {api}")
    await vault.note_failure("ada", "github", 1, "authentication_failed")
    said = await told_of_git(settings, vault)
    assert (said.available, "does not take it" in said.reason) == (False, True)


async def test_that_the_workers_have_the_app_is_known_once_they_have_used_it(settings: Settings, vault: Vault) -> None:
    stack_runs(settings, workers_vault=vault.shown)
    details = {"kind": "app", "account": "acme"}
    secret = SecretStr("installation/42")
    await vault.put_connection("ada", "github", secret, replaces=0, api_url="https://api.github.com", details=details)
    assert (await told_of_git(settings, vault)).available is None
    await vault.note_use("ada", "github")
    said = await told_of_git(settings, vault)
    assert (said.available, said.reason) == (True, "the GitHub App of acme, at https://api.github.com")


async def test_to_show_a_session_makes_no_vault(stack: Stack, tmp_path: Path) -> None:
    session = await stack.open()
    env = {**environment_of(stack, tmp_path), "SANDHOLD_DATABASE_URL": f"sqlite:///{tmp_path}/none.db"}
    shown = await sandhold("session", "show", session.session_id, "--json", env=env)
    for capability in shown.document["capabilities"]:
        assert (capability["available"], "there is no vault" in capability["reason"]) == (None, True)
    assert [each["name"] for each in shown.document["capabilities"]] == ["sandboxes", "git"]
    assert not (tmp_path / "none.db").exists()
