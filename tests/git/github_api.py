"""The part of GitHub's API that mints and revokes installation tokens, and the book of the tokens that are good."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from aiohttp import web

from tests.git.authority import Authority

INSTALLATION = 4711


@dataclass(frozen=True)
class Minted:
    repositories: frozenset[str]
    """Names without owner; empty for all of the account's."""
    permissions: dict[str, str]
    expires_at: datetime


@dataclass
class TokenBook:
    """Which tokens are good, and for what."""

    account: str = "acme"
    life_s: float = 3600.0
    minted: dict[str, Minted] = field(default_factory=dict)
    """Every token that was ever minted."""
    stored: dict[str, frozenset[str]] = field(default_factory=dict)
    """Tokens that users have made, with the repositories that they reach."""
    revoked: set[str] = field(default_factory=set)
    limits: list[dict[str, str]] = field(default_factory=list)
    """Headers of refusals by a rate limit, for the next requests for a token."""
    mints_refused: int = 0
    at_once: int = 0
    most_at_once: int = 0
    down: bool = False

    def reset(self) -> None:
        self.minted.clear()
        self.stored.clear()
        self.revoked.clear()
        self.limits.clear()
        self.life_s = 3600.0
        self.mints_refused = self.most_at_once = 0
        self.down = False

    @property
    def live(self) -> set[str]:
        """Minted tokens that are good now."""
        now = datetime.now(UTC)
        return {token for token, each in self.minted.items() if token not in self.revoked and each.expires_at > now}

    def allows(self, token: str, repository: str, writes: bool) -> bool:
        """As the git server asks: with no repository, whether the token is known at all."""
        if token in self.stored and token not in self.revoked:
            return not repository or repository in self.stored[token]
        if token not in self.live:
            return False
        minted = self.minted[token]
        owner, _, name = repository.partition("/")
        reaches = owner == self.account and (not minted.repositories or name in minted.repositories)
        return not repository or (reaches and (not writes or minted.permissions.get("contents") == "write"))

    async def mint(self, request: web.Request) -> web.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.down:
                return web.Response(status=503)
            if self.limits:
                self.mints_refused += 1
                return web.json_response({"message": "rate limit"}, status=403, headers=self.limits.pop(0))
            asked = await request.json()
            token = f"ghs_{secrets.token_hex(18)}"
            expires_at = datetime.now(UTC) + timedelta(seconds=self.life_s)
            self.minted[token] = Minted(frozenset(asked.get("repositories", [])), asked["permissions"], expires_at)
            return web.json_response({"token": token, "expires_at": expires_at.isoformat()}, status=201)
        finally:
            self.at_once -= 1

    async def revoke(self, request: web.Request) -> web.Response:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        if self.down:
            return web.Response(status=503)
        if token not in self.live:
            return web.json_response({"message": "Bad credentials"}, status=401)
        self.revoked.add(token)
        return web.Response(status=204)


@contextlib.asynccontextmanager
async def running_github_api(book: TokenBook, authority: Authority) -> AsyncIterator[str]:
    """The API's address."""
    app = web.Application()
    app.add_routes(
        [
            web.post(f"/app/installations/{INSTALLATION}/access_tokens", book.mint),
            web.delete("/installation/token", book.revoke),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.context).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
