"""`sandhold connect github`: a token or an installation is stored once GitHub has taken it, and nothing else is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import SecretStr

from sandhold.connections.github_credential import CredentialRefused, connect_github
from sandhold.contracts.errors import ErrorCode
from sandhold.github import WRITE, GitHub, GitHubUnavailable
from sandhold.settings import Settings, SettingsError
from sandhold.vault import Vault
from tests.cli.process import sandhold
from tests.github.api_server import Canned, GitHubApi, Installation
from tests.stack import KEY_RING


@pytest.fixture
def env(settings: Settings, api: GitHubApi) -> Mapping[str, str]:
    """Of a command line of that deployment."""
    key = settings.data_dir / "app.pem"
    key.write_text(api.private_key.get_secret_value())
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SANDHOLD_", "DAYTONA_"))},
        "SANDHOLD_DATA_DIR": str(settings.data_dir),
        "SANDHOLD_KEYRING": KEY_RING,
        "SANDHOLD_GITHUB_URL": settings.github_url,
        "SANDHOLD_GITHUB_API_URL": api.url,
        "SANDHOLD_GITHUB_CA_FILE": str(api.authority.file),
        "SANDHOLD_GITHUB_APP_ID": settings.github_app_id or "",
        "SANDHOLD_GITHUB_APP_PRIVATE_KEY": str(key),
    }


async def test_a_token_from_its_input_to_its_removal(env: Mapping[str, str], vault: Vault, api: GitHubApi) -> None:
    token = api.add_user("octocat", name="Mona", email="mona@example.com").get_secret_value()
    made = await sandhold("connect", "github", "--owner", "ada", "--json", env=env, stdin=f"{token}\n")
    assert made.code == 0, made.err
    assert (made.document["provider"], made.document["owner"], made.document["replaced"]) == ("github", "ada", False)
    assert made.document["details"] == {
        "kind": "token",
        "account": "octocat",
        "name": "Mona",
        "email": "mona@example.com",
        "permissions": ["repo"],
    }
    again = await sandhold("connect", "github", "--owner", "ada", "-", env=env, stdin=token)
    assert again.code == 0
    assert "github is connected anew for ada: token ****" in again.out
    record = await vault.connection("ada", "github")
    assert record is not None
    assert (record.secret.get_secret_value(), record.api_url, record.version) == (token, api.url, 2)
    listed = await sandhold("connections", env=env)
    assert "octocat at" in listed.out
    gone = await sandhold("disconnect", "github", "--owner", "ada", env=env)
    assert gone.code == 0, gone.err
    assert await vault.connection("ada", "github") is None
    for each in (made, again, listed, gone):
        assert token not in each.out + each.err


async def test_an_installation_by_its_number(env: Mapping[str, str], vault: Vault, api: GitHubApi) -> None:
    made = await sandhold("connect", "github", "--installation", "42", "--owner", "ada", "--json", env=env)
    assert made.code == 0, made.err
    assert made.document["key"] is None
    assert made.document["details"]["account"] == "acme"
    both = await sandhold("connect", "github", "-", "--installation", "42", env=env, stdin="ghp_x")
    by_argument = await sandhold("connect", "github", "ghp_of-the-command-line", env=env)
    assert (both.code, by_argument.code) == (2, 2)
    assert "ghp_of-the-command-line" not in by_argument.out + by_argument.err
    assert [row.owner for row in await vault.connection_rows()] == ["ada"]
    assert all("ghp_" not in each.authorization for each in api.asked)


async def test_what_is_connected_gives_access(settings: Settings, vault: Vault, api: GitHubApi, github: GitHub) -> None:
    await connect_github(settings, vault, "ada", 42)
    access = await github.access("ada", None, WRITE)
    assert access is not None
    assert (access.name, access.email) == (
        "sandhold-tests[bot]",
        "sandhold-tests[bot]@users.noreply.github.test",
    )
    await connect_github(settings, vault, "ada", api.add_user("octocat"))
    access = await github.access("ada", None, WRITE)
    assert access is not None
    assert (access.minted, access.name, access.email) == (False, "octocat", "7+octocat@users.noreply.github.test")


async def test_an_installation_at_a_user_makes_the_users_commits(
    settings: Settings, vault: Vault, api: GitHubApi
) -> None:
    api.installations[43] = Installation("mona", type="User", account_id=9)
    connected = await connect_github(settings, vault, "ada", 43)
    assert (connected.credential.name, connected.credential.email) == ("mona", "9+mona@users.noreply.github.test")


@pytest.mark.parametrize(
    ("installation", "why"),
    [
        (Installation("acme", suspended=True), "suspended"),
        (Installation("acme", permissions={"metadata": "read"}), "may not read contents"),
        (None, "no installation 43"),
    ],
)
async def test_an_installation_that_is_of_no_use_is_not_stored(
    settings: Settings, vault: Vault, api: GitHubApi, installation: Installation | None, why: str
) -> None:
    if installation is not None:
        api.installations[43] = installation
    with pytest.raises(CredentialRefused, match=why) as refused:
        await connect_github(settings, vault, "ada", 43)
    assert refused.value.error.code is ErrorCode.PROVIDER_REJECTED
    assert await vault.connection_rows() == []


@pytest.mark.parametrize(
    "canned",
    [Canned(500), Canned(200, {}, "<html>"), Canned(200, {}, '{"login": "a b"}'), Canned(301, {"Location": "/"})],
)
async def test_what_does_not_answer_as_github_stores_nothing(
    settings: Settings, vault: Vault, api: GitHubApi, canned: Canned
) -> None:
    api.answers.append(canned)
    with pytest.raises(GitHubUnavailable):
        await connect_github(settings, vault, "ada", api.add_user("octocat"))
    assert await vault.connection_rows() == []


async def test_a_token_that_is_not_taken_is_not_stored_and_leaves_what_was_there(
    settings: Settings, vault: Vault, api: GitHubApi
) -> None:
    good = api.add_user("octocat")
    await connect_github(settings, vault, "ada", good)
    with pytest.raises(CredentialRefused) as refused:
        await connect_github(settings, vault, "ada", SecretStr("ghp_wrong"))
    assert "ghp_wrong" not in str(refused.value) + str(refused.value.error)
    record = await vault.connection("ada", "github")
    assert record is not None
    assert record.secret == good


async def test_without_an_app_an_installation_cannot_be_connected(
    settings: Settings, vault: Vault, api: GitHubApi
) -> None:
    none: dict[str, Any] = {"github_app_id": None, "github_app_private_key": None}
    with pytest.raises(SettingsError, match="SANDHOLD_GITHUB_APP_ID"):
        await connect_github(settings.model_copy(update=none), vault, "ada", 42)
    assert api.asked == []


@pytest.mark.parametrize(
    ("url", "api_url"),
    [
        ("https://github.com", "https://api.github.com"),
        ("https://GitHub.com/", "https://api.github.com"),
        ("https://acme.ghe.com", "https://api.acme.ghe.com"),
        ("https://ghe.acme.example", "https://ghe.acme.example/api/v3"),
        ("https://ghe.acme.example:8443", "https://ghe.acme.example:8443/api/v3"),
    ],
)
def test_the_api_belongs_to_the_host(url: str, api_url: str) -> None:
    assert GitHub(Settings(github_url=url), None).api_url == api_url


@pytest.mark.parametrize("url", ["http://github.com", "github.com", "https://user:pw@github.com", "https://a.b/path"])
def test_a_host_without_https_is_a_wrong_setting(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDHOLD_GITHUB_URL", url)
    with pytest.raises(SettingsError, match="SANDHOLD_GITHUB_URL"):
        Settings.load(running_stack=False)
