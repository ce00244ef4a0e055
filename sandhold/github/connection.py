"""A connection to GitHub as the vault holds it.

What decides where a secret goes and what it is used as is sealed with it: the API's address is part of its place, and
an installation's id says by its own form that it is one. The rest is taken only where it looks like what it is said to
be: it goes into git's configuration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue, SecretStr

from sandhold.vault import ConnectionRecord

LOGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\[bot\])?")
"""Of a user, an organization or an app at GitHub."""
_NAME = re.compile(r"[^<>]{1,200}")
_EMAIL = re.compile(r"[^\s<>@]{1,200}@[A-Za-z0-9.-]{1,200}")
_INSTALLATION = "installation/"
Kind = Literal["app", "token"]


@dataclass(frozen=True)
class GitHubConnection:
    """What an owner reaches GitHub by: an installation of the deployment's app, or a token."""

    id: str
    owner: str
    version: int
    api_url: str
    installation: int | None
    """Of the deployment's app; None for a token."""
    token: SecretStr | None
    """The token that is stored; None for an installation."""
    account: str | None
    """Whose repositories an installation reaches; for a token, whose it is."""
    name: str | None
    """Of the author of commits, where it is known."""
    email: str | None
    has_failed: bool = False
    """Whether the last use that is on record was refused."""

    @property
    def kind(self) -> Kind:
        return "token" if self.installation is None else "app"


def secret_of_installation(installation: int) -> SecretStr:
    """What is sealed for an installation: no secret, but what nobody else may put there."""
    return SecretStr(f"{_INSTALLATION}{installation}")


def is_installation(secret: SecretStr) -> bool:
    """Whether a connection's secret is none, but names an installation."""
    return secret.get_secret_value().startswith(_INSTALLATION)


def connection_of(record: ConnectionRecord) -> GitHubConnection:
    """The connection of a record of the provider `github`."""
    secret = record.secret.get_secret_value()
    installed = is_installation(record.secret)
    return GitHubConnection(
        id=record.id,
        owner=record.owner,
        version=record.version,
        api_url=record.api_url or "",
        installation=int(secret.removeprefix(_INSTALLATION)) if installed else None,
        token=None if installed else record.secret,
        account=_text(record.details.get("account"), LOGIN),
        name=_text(record.details.get("name"), _NAME),
        email=_text(record.details.get("email"), _EMAIL),
        has_failed=record.last_failure is not None,
    )


def _text(value: JsonValue, form: re.Pattern[str]) -> str | None:
    return value if isinstance(value, str) and value.isprintable() and form.fullmatch(value) else None
