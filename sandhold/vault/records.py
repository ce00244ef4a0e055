"""What the vault holds, as its callers see it. A secret is masked wherever it is printed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, JsonValue, SecretStr

from sandhold.contracts.base import Message
from sandhold.contracts.names import is_id, is_owner
from sandhold.contracts.secrets import is_secret_name
from sandhold.vault.errors import ValueRefused

Provider = Literal["daytona", "github"]
PROVIDERS: tuple[Provider, ...] = ("daytona", "github")

GitTokenPurpose = Literal["clone", "helper"]
"""What a minted token is for: one clone, or the credential helper of a sandbox."""

SECRET_BYTES = 64 * 1024
"""The most that a secret may be long, in UTF-8."""
SECRETS_PER_SESSION = 100
SECRETS_BYTES_PER_SESSION = 256 * 1024
"""The most that a session's secrets may weigh together: to search for them takes ten to twenty times as many bytes."""
RETIRED_PER_SESSION = 100
RETIRED_BYTES_PER_SESSION = SECRETS_BYTES_PER_SESSION + SECRET_BYTES
"""Values that were replaced or removed are kept while a session's secrets and they weigh no more than this together:
the latest one always fits."""
_HINT_FROM = 16
_HINT_LENGTH = 4
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
_ORGANIZATION = re.compile(r"[^\s/]{1,200}")
_FAILURE = re.compile(r"[a-z0-9_]{1,64}")


class ConnectionRow(Message):
    """A connection as it may be shown."""

    model_config = ConfigDict(frozen=True)

    id: str
    """Of the record: a connection that was removed and made again has another one."""
    owner: str
    provider: Provider
    version: int
    """Counts from 1; every replacement of the secret or of what belongs to it is a new one."""
    api_url: str | None
    organization: str | None
    details: dict[str, JsonValue]
    """What the provider told of the secret, such as its name and permissions."""
    hint: str
    """The last four characters of a secret that is long enough to tell so much; else empty."""
    created_at: datetime
    updated_at: datetime
    """When this version was stored."""
    last_used_at: datetime | None
    """To the minute."""
    last_failure_at: datetime | None
    last_failure: str | None
    """Why the provider did not take this version, as a code; null once it has taken it again."""

    @property
    def masked(self) -> str:
        """The secret as people may see it."""
        return f"****{self.hint}"


class ConnectionRecord(ConnectionRow):
    """A connection with its secret."""

    secret: SecretStr


class SecretRow(Message):
    """A secret of a session, without its value."""

    model_config = ConfigDict(frozen=True)

    session_id: str
    run_id: str
    """The first run of the session's workflow: it tells a session from a later one of the same id."""
    name: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class SecretsOfSession:
    """That a session has secrets."""

    session_id: str
    run_id: str
    values: int
    """How many, those that were replaced or removed among them."""
    updated_at: datetime


@dataclass(frozen=True)
class SessionValues:
    """The values of a session's secrets."""

    usable: Mapping[str, SecretStr]
    """Those that are set, by name."""
    retired: Sequence[tuple[str, SecretStr]]
    """Name and value of those that were replaced or removed, the latest first: only for redaction."""


class GitToken(Message):
    """A token that was minted for git in a sandbox."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    session_id: str
    run_id: str
    """The first run of the session's workflow."""
    sandbox_id: str
    generation: int
    purpose: GitTokenPurpose
    call_id: str | None
    """The call that it was minted for, where it was for one."""
    api_url: str
    """Where it is revoked."""
    token: SecretStr
    expires_at: datetime
    created_at: datetime


def valid_connection(owner: str, provider: str, api_url: str | None, organization: str | None) -> None:
    """Raise ValueRefused when there can be no such connection."""
    if not is_owner(owner):
        raise ValueRefused(f"{owner[:140]!r} cannot be an owner")
    if provider not in PROVIDERS:
        raise ValueRefused(f"{provider[:40]!r} is no provider: {' or '.join(PROVIDERS)}")
    if api_url is not None and not _is_address(api_url):
        raise ValueRefused("the address has to be http://… or https://… without user, password and fragment")
    if organization is not None and not _ORGANIZATION.fullmatch(organization):
        raise ValueRefused("the organization's id has spaces or slashes, or is too long")


def valid_git_token(owner: str, session_id: str, sandbox_id: str, api_url: str) -> None:
    """Raise ValueRefused when there can be no such token."""
    if not is_owner(owner):
        raise ValueRefused(f"{owner[:140]!r} cannot be an owner")
    if not is_id(session_id) or not is_id(sandbox_id):
        raise ValueRefused("that cannot be the id of a session, or of a sandbox")
    if not api_url.startswith("https://") or not _is_address(api_url):
        raise ValueRefused("the address of the API has to be https://…")


def valid_failure(code: str) -> None:
    """Raise ValueRefused for what is no code: a provider's own words may quote a key."""
    if not _FAILURE.fullmatch(code):
        raise ValueRefused("the code of a failure is lower-case letters, digits and underscores")


def valid_name(session_id: str, name: str) -> None:
    """Raise ValueRefused when no secret of a session can be called so."""
    if not is_id(session_id):
        raise ValueRefused(f"{session_id[:100]!r} cannot be a session id")
    if not is_secret_name(name):
        raise ValueRefused(
            f"{name[:140]!r} cannot be the name of a secret: letters, digits and _, no digit first, at most 128"
        )


def valid_secret(value: SecretStr) -> bytes:
    """The value's bytes. Raises ValueRefused when it is empty, too long, or cannot stand in an environment."""
    text = value.get_secret_value()
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ValueRefused("the value is no text: it does not encode as UTF-8") from None
    if not data:
        raise ValueRefused("the value is empty")
    if len(data) > SECRET_BYTES:
        raise ValueRefused(f"the value is longer than {SECRET_BYTES} bytes")
    if "\0" in text:
        raise ValueRefused("the value holds a zero byte, which no environment variable can")
    return data


def hint_of(value: SecretStr) -> str:
    """The last characters of a long token; nothing of a password, a phrase or a key in several lines."""
    text = value.get_secret_value()
    return text[-_HINT_LENGTH:] if len(text) >= _HINT_FROM and _TOKEN.fullmatch(text) else ""


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    return (
        len(text) <= 2000
        and not re.search(r"\s", text)
        and parts.scheme in {"http", "https"}
        and bool(parts.hostname)
        and "@" not in parts.netloc
        and not parts.fragment
    )
