"""Tokens are minted for one repository and one purpose, go to one host, and are gone when they are revoked."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from pydantic import SecretStr

from activities.github_faults import GitHubFaults
from sandhold.contracts.errors import ErrorCode, ToolError
from sandhold.github import (
    READ,
    WRITE,
    Access,
    GitHub,
    GitHubFault,
    GitHubRefused,
    GitHubUnavailable,
    RateLimited,
    RepositoryNotGranted,
)
from sandhold.github.api import AT_ONCE
from sandhold.github.connection import secret_of_installation
from sandhold.security.process_secrets import redact_for_log
from sandhold.settings import Settings, SettingsError
from sandhold.vault import Vault
from tests.github.api_server import APP_ID, Canned, GitHubApi, Installation


async def install(vault: Vault, api: GitHubApi, owner: str = "ada", installation: int = 42, replaces: int = 0) -> None:
    await vault.put_connection(
        owner,
        "github",
        secret_of_installation(installation),
        replaces=replaces,
        api_url=api.url,
        details={"kind": "app", "account": api.installations[installation].account},
    )


async def access_to(github: GitHub, text: str, owner: str = "ada", permissions: object = READ) -> Access | None:
    assert isinstance(permissions, dict)
    return await github.access(owner, await github.address(owner, text), permissions)


async def minted(github: GitHub, text: str = "acme/private", owner: str = "ada") -> Access:
    access = await access_to(github, text, owner)
    assert access is not None
    return access


async def test_a_token_is_limited_to_its_repository_and_to_what_it_is_for(
    github: GitHub, vault: Vault, api: GitHubApi
) -> None:
    await install(vault, api)
    access = await minted(github)
    token = api.tokens.tokens[access.token.get_secret_value()]
    assert token.repositories == {"private"}
    assert token.permissions == {"contents": "read", "metadata": "read"}
    assert (access.username, access.hosts, access.minted) == ("x-access-token", ("github.test",), True)
    assert access.expires_at is not None
    assert abs(access.expires_at - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=1)
    assert token.value not in repr(access)
    assert token.value not in redact_for_log(f"pushed with {token.value}")
    [asked] = api.mints
    assert asked.body == {"permissions": {"contents": "read"}, "repositories": ["private"]}


async def test_the_credentials_of_a_sandbox_are_for_contents_alone(
    github: GitHub, vault: Vault, api: GitHubApi
) -> None:
    await install(vault, api)
    access = await github.access("ada", None, WRITE)
    assert access is not None
    token = api.tokens.tokens[access.token.get_secret_value()]
    assert token.repositories == {"private", "public"}
    assert token.permissions == {"contents": "write", "metadata": "read"}


async def test_the_app_proves_itself_for_less_than_ten_minutes(github: GitHub, vault: Vault, api: GitHubApi) -> None:
    await install(vault, api)
    await minted(github)
    [asked] = api.mints
    proof = asked.authorization.removeprefix("Bearer ")
    assert jwt.get_unverified_header(proof)["alg"] == "RS256"
    claims = jwt.decode(proof, api.key.public_key(), algorithms=["RS256"])
    assert set(claims) == {"iat", "exp", "iss"}
    assert claims["iss"] == APP_ID
    assert claims["iat"] < time.time() - 30
    assert claims["exp"] < time.time() + 570


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/acme/private",
        "https://github.test.evil.example/acme/private",
        "https://github.test:8443/acme/private",
        "http://github.test/acme/private",
        "https://gith\u0443b.test/acme/private",
        "other/private",
    ],
)
async def test_nothing_is_minted_for_another_host_or_another_account(
    github: GitHub, vault: Vault, api: GitHubApi, text: str
) -> None:
    await install(vault, api)
    assert await access_to(github, text) is None
    assert api.asked == []


async def test_an_address_that_was_read_with_other_hosts_in_mind_gets_nothing(
    github: GitHub, vault: Vault, api: GitHubApi
) -> None:
    from sandhold.github import repository_of

    await install(vault, api)
    stray = repository_of("https://evil.example/acme/private", ("evil.example",))
    assert stray.is_connected_host
    assert await github.access("ada", stray, READ) is None
    assert api.asked == []


async def test_an_owner_without_a_connection_gets_nothing_and_another_ones_is_not_used(
    github: GitHub, vault: Vault, api: GitHubApi
) -> None:
    await install(vault, api, "ada")
    assert await access_to(github, "acme/private", "bob") is None
    assert await github.access("bob", None, WRITE) is None
    assert github.hosts(await github.connection("bob")) == ()
    assert api.asked == []


async def test_a_connection_of_another_host_than_the_settings_name_is_none(
    github: GitHub, vault: Vault, api: GitHubApi
) -> None:
    secret = SecretStr("ghp_" + "a" * 36)
    await vault.put_connection("ada", "github", secret, replaces=0, api_url="https://evil.example/api/v3")
    assert await github.connection("ada") is None
    assert await access_to(github, "acme/private") is None
    assert await github.access("ada", None, WRITE) is None


async def test_a_stored_token_goes_to_the_host_alone_and_is_never_revoked(
    github: GitHub, vault: Vault, api: GitHubApi
) -> None:
    token = api.add_user("octocat")
    details = {"kind": "token", "account": "octocat", "name": "Mona", "email": "mona@example.com"}
    await vault.put_connection("ada", "github", token, replaces=0, api_url=api.url, details=details)
    access = await access_to(github, "anybody/anything")
    assert access is not None
    assert (access.token, access.username, access.minted) == (token, "octocat", False)
    assert (access.name, access.email) == ("Mona", "mona@example.com")
    assert await access_to(github, "https://evil.example/octocat/repo") is None
    await github.revoke(access)
    assert api.asked == []
    assert api.tokens.verdict(token.get_secret_value(), "octocat/repo", "write") == "ok"


async def test_what_the_host_says_of_a_stored_token_is_noted(github: GitHub, vault: Vault, api: GitHubApi) -> None:
    token = api.add_user("octocat")
    await vault.put_connection("ada", "github", token, replaces=0, api_url=api.url)
    access = await access_to(github, "octocat/repo")
    assert access is not None
    await github.note_answer("ada", access, refused=True)
    [row] = await vault.connection_rows("ada")
    assert row.last_failure == "authentication_failed"
    await github.note_answer("ada", access, refused=False)
    [row] = await vault.connection_rows("ada")
    assert row.last_failure is None
    assert row.last_used_at is not None


@pytest.mark.parametrize("field", ["account", "name", "email"])
@pytest.mark.parametrize("value", ["x\nhost=evil.example", "a\x00b", "", 7, None, "x" * 300])
async def test_details_that_cannot_be_what_they_are_said_to_be_are_left_out(
    github: GitHub, vault: Vault, api: GitHubApi, field: str, value: object
) -> None:
    """They are not sealed, and come to stand in git's configuration."""
    details = {"account": "octocat", "name": "Mona", "email": "mona@example.com", field: value}
    await vault.put_connection(
        "ada",
        "github",
        api.add_user("octocat"),
        replaces=0,
        api_url=api.url,
        details=details,  # type: ignore[arg-type]
    )
    connection = await github.connection("ada")
    assert connection is not None
    assert getattr(connection, field) is None


async def test_revoking_is_safe_to_repeat(github: GitHub, vault: Vault, api: GitHubApi) -> None:
    await install(vault, api)
    access = await minted(github)
    assert access.expires_at is not None
    stored = await vault.put_git_token(
        access.token,
        owner="ada",
        session_id="s-1",
        run_id="run-1",
        sandbox_id="sandbox-1",
        generation=1,
        purpose="clone",
        api_url=access.api_url,
        expires_at=access.expires_at,
    )
    assert len(api.tokens.live) == 1
    for given in (access, stored, access):
        await github.revoke(given)
    assert api.tokens.live == []
    assert [each.method for each in api.asked].count("DELETE") == 3


async def test_a_revocation_that_cannot_be_made_is_told_to_be_tried_again(
    github: GitHub, vault: Vault, api: GitHubApi
) -> None:
    await install(vault, api)
    access = await minted(github)
    api.answers.append(Canned(502))
    with pytest.raises(GitHubUnavailable) as failed:
        await github.revoke(access)
    assert failed.value.error.retryable
    await github.revoke(access)
    assert api.tokens.live == []


@pytest.mark.parametrize(
    ("change", "code", "marked"),
    [
        ({"suspended": True}, ErrorCode.AUTHENTICATION_FAILED, "authentication_failed"),
        ({"permissions": {"metadata": "read"}}, ErrorCode.AUTHENTICATION_FAILED, "authentication_failed"),
        ({"repositories": {"public"}}, ErrorCode.REPOSITORY_NOT_FOUND, None),
    ],
)
async def test_a_refused_mint_says_what_to_do(
    github: GitHub, vault: Vault, api: GitHubApi, change: dict[str, object], code: ErrorCode, marked: str | None
) -> None:
    await install(vault, api)
    api.installations[42] = Installation("acme", **change)  # type: ignore[arg-type]
    with pytest.raises(GitHubRefused) as refused:
        await minted(github)
    error = refused.value.error
    assert (error.code, error.retryable, error.provider) == (code, False, "github")
    assert error.hint
    assert isinstance(refused.value, RepositoryNotGranted) == (code is ErrorCode.REPOSITORY_NOT_FOUND)
    [row] = await vault.connection_rows("ada")
    assert row.last_failure == marked
    api.installations[42] = Installation("acme")
    await minted(github)
    # The mark is read with the connection, ten seconds late at most.
    await github.connection("ada", fresh=True)
    await minted(github)
    [row] = await vault.connection_rows("ada")
    assert row.last_failure is None


async def test_an_installation_that_was_removed_asks_for_another_connection(
    github: GitHub, vault: Vault, api: GitHubApi
) -> None:
    await install(vault, api)
    del api.installations[42]
    with pytest.raises(GitHubRefused) as refused:
        await minted(github)
    assert refused.value.error.code is ErrorCode.CONNECTION_REQUIRED
    assert "sandhold connect github --owner ada" in (refused.value.error.hint or "")


async def test_an_installation_that_another_process_has_connected_is_used_at_once(
    settings: Settings, github: GitHub, vault: Vault, api: GitHubApi
) -> None:
    from sandhold.vault import open_vault
    from tests.stack import RING

    await install(vault, api)
    await minted(github)
    api.installations = {43: Installation("acme")}
    elsewhere = await open_vault(settings, RING)
    await install(elsewhere, api, installation=43, replaces=1)
    await elsewhere.close()
    await minted(github)
    assert [each.path.split("/")[3] for each in api.mints] == ["42", "42", "43"]


async def test_a_key_of_another_app_is_the_operators_business(settings: Settings, vault: Vault, api: GitHubApi) -> None:
    await install(vault, api)
    wrong = settings.model_copy(update={"github_app_id": "999"})
    github = GitHub(wrong, vault)
    with pytest.raises(GitHubRefused) as refused:
        await minted(github)
    await github.close()
    assert refused.value.error.code is ErrorCode.AUTHENTICATION_FAILED
    assert "operator" in (refused.value.error.hint or "")
    [row] = await vault.connection_rows("ada")
    assert row.last_failure is None


async def test_an_installation_without_an_app_is_told(settings: Settings, vault: Vault, api: GitHubApi) -> None:
    await install(vault, api)
    github = GitHub(settings.model_copy(update={"github_app_id": None, "github_app_private_key": None}), vault)
    with pytest.raises(GitHubRefused, match="this deployment has none"):
        await minted(github)
    assert api.asked == []


@pytest.mark.parametrize(
    "canned",
    [
        Canned(500),
        Canned(503, {}, "<html>"),
        Canned(302, {"Location": "/elsewhere"}),
        Canned(201, {}, "{}"),
        Canned(201, {}, "not json"),
        Canned(201, {}, '{"token": ""}'),
    ],
)
async def test_a_failed_mint_may_be_tried_again(github: GitHub, vault: Vault, api: GitHubApi, canned: Canned) -> None:
    await install(vault, api)
    api.answers.append(canned)
    with pytest.raises(GitHubUnavailable) as failed:
        await minted(github)
    assert failed.value.error.retryable
    assert len(api.asked) == 1
    await minted(github)


async def test_a_token_whose_end_nobody_knows_is_ended_at_once(github: GitHub, vault: Vault, api: GitHubApi) -> None:
    await install(vault, api)
    token = api.tokens.mint("acme", ["private"], {"contents": "read"}, time.time() + 60)
    api.answers.append(Canned(201, {}, f'{{"token": "{token.value}", "expires_at": "soon"}}'))
    with pytest.raises(GitHubUnavailable):
        await minted(github)
    assert token.revoked


async def test_an_api_that_is_not_there_or_not_itself_fails_without_showing_what_was_sent(
    settings: Settings, vault: Vault, api: GitHubApi
) -> None:
    await install(vault, api)
    github = GitHub(settings.model_copy(update={"github_ca_file": None}), vault)
    with pytest.raises(GitHubUnavailable) as failed:
        await minted(github)
    await github.close()
    assert "Certificate" in str(failed.value)
    assert failed.value.__cause__ is None
    assert api.asked == []


async def test_the_api_is_reached_by_the_proxy_of_the_environment_which_sees_its_host_alone(
    settings: Settings, vault: Vault, api: GitHubApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = bytearray()
    netrc = settings.data_dir / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password of-the-machine\n")
    netrc.chmod(0o600)
    async with tunnelling(seen) as proxy:
        for name in ("NO_PROXY", "no_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:word@{proxy}")
        monkeypatch.setenv("NETRC", str(netrc))
        await install(vault, api)
        github = GitHub(settings, vault)
        access = await minted(github)
        await github.close()
    assert seen.startswith(f"CONNECT 127.0.0.1:{api.port} ".encode())
    assert b"Proxy-Authorization: Basic " in seen
    assert access.token.get_secret_value().encode() not in seen
    assert b"Bearer" not in seen
    assert all(each.authorization.startswith("Bearer ") for each in api.asked)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    github = GitHub(settings, vault)
    await minted(github)
    await github.close()


@contextlib.asynccontextmanager
async def tunnelling(seen: bytearray) -> AsyncIterator[str]:
    """A proxy that makes tunnels; all that it can read of what is sent through them is in `seen`."""

    async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter, note: bool) -> None:
        while data := await source.read(65536):
            if note:
                seen.extend(data)
            to.write(data)
            await to.drain()
        to.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.extend(head)
        host, _, port = head.split()[1].decode().partition(":")
        there, onward = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pump(reader, onward, True), pump(there, writer, False))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


async def test_a_rate_limit_is_waited_for_as_told_by_everybody(github: GitHub, vault: Vault, api: GitHubApi) -> None:
    await install(vault, api)
    api.limit, api.limit_headers = 1, {"Retry-After": "90"}
    await minted(github)
    with pytest.raises(RateLimited) as limited:
        await minted(github)
    assert limited.value.retry_after == timedelta(seconds=90)
    assert limited.value.error.retryable
    asked = len(api.asked)
    with pytest.raises(RateLimited) as others:
        await minted(github, "acme/public")
    assert others.value.retry_after is not None
    assert timedelta(seconds=30) < others.value.retry_after <= timedelta(seconds=90)
    assert len(api.asked) == asked, "who knows of a limit does not ask"
    [row] = await vault.connection_rows("ada")
    assert row.last_failure is None


async def test_after_the_wait_it_goes_on(github: GitHub, vault: Vault, api: GitHubApi) -> None:
    await install(vault, api)
    api.answers.append(Canned(429, {"Retry-After": "1"}))
    with pytest.raises(RateLimited) as limited:
        await minted(github)
    assert limited.value.retry_after is not None
    await asyncio.sleep(limited.value.retry_after.total_seconds())
    await minted(github)


async def test_at_most_ten_are_minted_at_once(github: GitHub, vault: Vault, api: GitHubApi) -> None:
    await install(vault, api)
    api.slow_s = 0.05
    given = await asyncio.gather(*(minted(github) for _ in range(25)))
    assert len({each.token.get_secret_value() for each in given}) == 25
    assert 1 < api.most_at_once <= AT_ONCE


async def test_an_activity_tells_a_rate_limit_as_the_wait_until_its_next_attempt() -> None:
    """What is refused is not tried again, what may pass is, and a rate limit says when."""
    from temporalio.exceptions import ApplicationError

    async def failing_with(fault: GitHubFault) -> ApplicationError:
        class Fails:
            async def execute_activity(self, given: object) -> None:
                raise fault

        with pytest.raises(ApplicationError) as failed:
            await GitHubFaults().intercept_activity(Fails()).execute_activity(None)  # type: ignore[arg-type]
        return failed.value

    limited = await failing_with(RateLimited("limited", timedelta(seconds=17)))
    assert (limited.non_retryable, limited.next_retry_delay) == (False, timedelta(seconds=17))
    beyond = await failing_with(RateLimited("limited", timedelta(hours=2), retryable=False))
    assert (beyond.non_retryable, beyond.next_retry_delay) == (True, None)
    refused = await failing_with(GitHubRefused(ErrorCode.REPOSITORY_NOT_FOUND, "no", "look"))
    assert (refused.type, refused.non_retryable) == ("repository_not_found", True)
    assert isinstance(refused.details[0], ToolError)
    assert refused.details[0].hint == "look"
    away = await failing_with(GitHubUnavailable("away"))
    assert (away.type, away.non_retryable, away.next_retry_delay) == ("provider_unavailable", False, None)


@pytest.mark.parametrize(
    ("update", "why"),
    [
        ({"github_app_id": None}, "set both, or none"),
        ({"github_app_private_key": None}, "set both, or none"),
        ({"github_app_private_key": SecretStr("/no/such/file")}, "cannot be read"),
        ({"github_app_private_key": SecretStr("-----BEGIN RSA PRIVATE KEY-----\nhunter2\n")}, "no private key in PEM"),
    ],
)
def test_an_app_that_cannot_be_used_is_a_wrong_setting(settings: Settings, update: dict[str, object], why: str) -> None:
    with pytest.raises(SettingsError, match=why) as wrong:
        GitHub(settings.model_copy(update=update), None)
    assert "hunter2" not in str(wrong.value)


def test_the_key_may_lie_in_a_file_or_come_in_one_line(settings: Settings, api: GitHubApi) -> None:
    assert settings.github_app_private_key is not None
    pem = settings.github_app_private_key.get_secret_value()
    file = settings.data_dir / "app.pem"
    file.write_text(pem)
    for given in (str(file), pem.replace("\n", "\\n")):
        GitHub(settings.model_copy(update={"github_app_private_key": SecretStr(given)}), None)
