"""What a token, or an installation of the deployment's app, is, as GitHub tells it before it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import JsonValue, SecretStr

from sandhold.contracts.base import Message
from sandhold.contracts.errors import ErrorCode
from sandhold.github.api import Answer, Api
from sandhold.github.app import app_of
from sandhold.github.connection import LOGIN, secret_of_installation
from sandhold.github.errors import GitHubRefused, GitHubUnavailable
from sandhold.github.places import api_url_of, host_of, noreply_host
from sandhold.settings import Settings, SettingsError
from sandhold.vault import ConnectionRow, Vault

_EXPIRATION = "%Y-%m-%d %H:%M:%S %Z"


class CredentialRefused(GitHubRefused):
    """GitHub does not take it, or it cannot do what it is needed for."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(ErrorCode.PROVIDER_REJECTED, message, hint)


class GitHubCredential(Message):
    """What is stored beside the secret."""

    kind: Literal["app", "token"]
    account: str
    """Whose the token is, or at whose account the app is installed."""
    name: str
    """Of the author of commits."""
    email: str
    permissions: list[str] | None = None
    """`contents:write` and the like, or a token's scopes; None when GitHub does not tell."""
    expires_at: datetime | None = None

    @property
    def details(self) -> dict[str, JsonValue]:
        details: dict[str, JsonValue] = self.model_dump(mode="json", exclude_none=True)
        return details


@dataclass(frozen=True)
class GitHubConnected:
    """A connection that was made or replaced."""

    row: ConnectionRow
    credential: GitHubCredential
    replaced: bool


async def connect_github(settings: Settings, vault: Vault, owner: str, given: SecretStr | int) -> GitHubConnected:
    """Store a token, or the number of an installation of the deployment's app, once it has proved itself.

    Raises CredentialRefused, RateLimited, GitHubUnavailable, SettingsError and VaultError; nothing is stored then.
    """
    api = Api(api_url_of(settings), ca_file=settings.github_ca_file, timeout_s=settings.request_timeout_s)
    try:
        if isinstance(given, int):
            credential = await look_at_installation(settings, api, given)
            secret = secret_of_installation(given)
        else:
            credential = await look_at_token(settings, api, given)
            secret = given
    finally:
        await api.close()
    before = next((row for row in await vault.connection_rows(owner) if row.provider == "github"), None)
    row = await vault.put_connection(
        owner,
        "github",
        secret,
        replaces=0 if before is None else before.version,
        api_url=api.url,
        details=credential.details,
    )
    return GitHubConnected(row, credential, before is not None)


async def look_at_token(settings: Settings, api: Api, token: SecretStr) -> GitHubCredential:
    """Whose a token is. Raises CredentialRefused, RateLimited and GitHubUnavailable."""
    answer = await api.ask("GET", "/user", token)
    if answer.status in {401, 403}:
        raise CredentialRefused(
            f"GitHub at {api.url} does not take this token ({answer.status})",
            "Look whether it was copied whole, has expired, or belongs to another host (SANDHOLD_GITHUB_URL).",
        )
    body = _body(api, answer)
    login = _login(api, body)
    scopes = answer.headers.get("X-OAuth-Scopes")
    return GitHubCredential(
        kind="token",
        account=login,
        name=_text(body, "name") or login,
        email=_text(body, "email") or _noreply(settings, login, body.get("id")),
        permissions=None if not scopes else [each.strip() for each in scopes.split(",")],
        expires_at=_expiration(answer.headers.get("GitHub-Authentication-Token-Expiration")),
    )


async def look_at_installation(settings: Settings, api: Api, installation: int) -> GitHubCredential:
    """At whose account an installation of the deployment's app is, and that it may read contents.

    Raises CredentialRefused, RateLimited, GitHubUnavailable, and SettingsError when there is no app.
    """
    app = app_of(settings)
    if app is None:
        raise SettingsError(
            "an installation is one of the deployment's GitHub App, and there is none: set SANDHOLD_GITHUB_APP_ID and "
            "SANDHOLD_GITHUB_APP_PRIVATE_KEY here and for the workers, or connect a token"
        )
    answer = await api.ask("GET", f"/app/installations/{installation}", app.proof())
    if answer.status == 401:
        raise CredentialRefused(
            f"GitHub at {api.url} does not take the proof of the app {app.id} (401): {answer.said}",
            "Look whether app and private key belong together, and whether this machine's clock is right.",
        )
    if answer.status == 404:
        raise CredentialRefused(
            f"the app {app.id} has no installation {installation} at {api.url}",
            "Its number is the last part of the address of its settings, …/installations/NUMBER.",
        )
    body = _body(api, answer)
    account: dict[str, Any] = body["account"] if isinstance(body.get("account"), dict) else {}
    login = _login(api, account)
    granted = body.get("permissions")
    permissions: Mapping[str, object] = granted if isinstance(granted, dict) else {}
    if body.get("suspended_at"):
        raise CredentialRefused(f"the installation {installation} at {login} is suspended")
    if permissions.get("contents") not in {"read", "write"}:
        raise CredentialRefused(
            f"the installation {installation} at {login} may not read contents",
            "Give the app the permission to read and write contents, and have it accepted for the account.",
        )
    if account.get("type") == "User":
        name, email = login, _noreply(settings, login, account.get("id"))
    else:
        # An organization is nobody's name: commits are the app's.
        name = f"{_text(body, 'app_slug') or login}[bot]"
        email = _noreply(settings, name, None)
    listed = sorted(f"{what}:{level}" for what, level in permissions.items())
    return GitHubCredential(kind="app", account=login, name=name, email=email, permissions=listed)


def _body(api: Api, answer: Answer) -> dict[str, Any]:
    if answer.status != 200 or not isinstance(answer.body, dict):
        raise GitHubUnavailable(f"what is at {api.url} does not answer as GitHub's API ({answer.status})")
    return answer.body


def _login(api: Api, body: Mapping[str, Any]) -> str:
    login = _text(body, "login")
    if login is None or LOGIN.fullmatch(login) is None:
        raise GitHubUnavailable(f"what is at {api.url} does not answer as GitHub's API")
    return login


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) and value.strip() and value.isprintable() else None


def _noreply(settings: Settings, login: str, number: object) -> str:
    """Where GitHub knows an author by who shows no address.

    https://docs.github.com/en/account-and-profile/reference/email-addresses-reference
    """
    before = f"{number}+" if isinstance(number, int) else ""
    return f"{before}{login}@{noreply_host(host_of(settings))}"


def _expiration(told: str | None) -> datetime | None:
    if told is None:
        return None
    try:
        return datetime.strptime(told, _EXPIRATION).replace(tzinfo=UTC)
    except ValueError:
        return None
