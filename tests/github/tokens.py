"""The tokens that the stand-in for GitHub has given out, and what each is good for at this moment.

The API makes and revokes them; the git server asks here whether one that it is shown holds.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["ok", "unknown", "expired", "revoked", "forbidden"]


@dataclass
class Token:
    """One token."""

    value: str
    account: str
    """Whose repositories it reaches."""
    repositories: frozenset[str] | None
    """By name, in lower case; None for all of the account."""
    permissions: Mapping[str, str]
    expires_at: float | None
    """Seconds since 1970; None for never."""
    minted: bool
    revoked: bool = False

    @property
    def has_expired(self) -> bool:
        return self.expires_at is not None and time.time() >= self.expires_at


@dataclass
class TokenBook:
    """All of them, by value."""

    tokens: dict[str, Token] = field(default_factory=dict)

    def mint(
        self, account: str, repositories: Iterable[str] | None, permissions: Mapping[str, str], expires_at: float
    ) -> Token:
        """A new installation token."""
        names = None if repositories is None else frozenset(each.lower() for each in repositories)
        return self._add(Token(f"ghs_{secrets.token_hex(18)}", account, names, permissions, expires_at, True))

    def store(self, account: str, permissions: Mapping[str, str] | None = None) -> Token:
        """A token that a user has made, good for all repositories of the account."""
        return self._add(
            Token(f"ghp_{secrets.token_hex(18)}", account, None, permissions or {"contents": "write"}, None, False)
        )

    def verdict(self, value: str, full_name: str, permission: Literal["read", "write"]) -> Verdict:
        """Whether a token may read, or write, the contents of `owner/name`."""
        token = self.tokens.get(value)
        if token is None:
            return "unknown"
        if token.revoked or token.has_expired:
            return "revoked" if token.revoked else "expired"
        owner, _, name = full_name.lower().partition("/")
        reaches = owner == token.account.lower() and (token.repositories is None or name in token.repositories)
        granted = token.permissions.get("contents")
        return "ok" if reaches and (granted == "write" or granted == permission) else "forbidden"

    @property
    def minted(self) -> list[Token]:
        """Those that were minted, in order."""
        return [each for each in self.tokens.values() if each.minted]

    @property
    def live(self) -> list[Token]:
        """Those that were minted and would be taken now."""
        return [each for each in self.minted if not each.revoked and not each.has_expired]

    def _add(self, token: Token) -> Token:
        self.tokens[token.value] = token
        return token
