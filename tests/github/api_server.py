"""A stand-in for GitHub's API, on loopback over TLS: apps, installations, their tokens, and who a token belongs to.

https://docs.github.com/en/rest/apps says what it does; what it does not do, no test may rely on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr

from tests.github.certificates import Authority
from tests.github.tokens import TokenBook

APP_ID = "4711"
APP_SLUG = "sandhold-tests"


@functools.cache
def app_key() -> rsa.RSAPrivateKey:
    """The app's, the same in all tests of a process: one takes half a second to make."""
    return rsa.generate_private_key(65537, 2048)


@dataclass
class Installation:
    """The app's at one account."""

    account: str
    type: str = "Organization"
    account_id: int = 1001
    repositories: set[str] = field(default_factory=lambda: {"private", "public"})
    permissions: dict[str, str] = field(default_factory=lambda: {"contents": "write", "metadata": "read"})
    suspended: bool = False


@dataclass
class Canned:
    """An answer that is given instead of the right one."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = '{"message": "canned"}'
    method: str | None = None
    """Only to a request of this one; others are answered rightly."""


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    authorization: str
    body: Any


@dataclass
class GitHubApi:
    """The stand-in and what it has seen."""

    authority: Authority
    key: rsa.RSAPrivateKey = field(default_factory=app_key)
    tokens: TokenBook = field(default_factory=TokenBook)
    installations: dict[int, Installation] = field(default_factory=lambda: {42: Installation("acme")})
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What GET /user answers, by token."""
    token_life_s: float = 3600.0
    answers: deque[Canned] = field(default_factory=deque)
    """The next ones."""
    slow_s: float = 0.0
    """How long each mint takes."""
    limit: int | None = None
    """How many mints are left until the rate is limited, by a 403 with `limit_headers`."""
    limit_headers: Mapping[str, str] = field(default_factory=lambda: {"Retry-After": "1"})
    asked: list[Asked] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def private_key(self) -> SecretStr:
        """Of the app, in PEM."""
        kind = serialization.PrivateFormat.TraditionalOpenSSL
        pem = self.key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
        return SecretStr(pem.decode())

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of a deployment whose GitHub this is."""
        return {
            "github_url": "https://github.test",
            "github_api_url": self.url,
            "github_app_id": APP_ID,
            "github_app_private_key": self.private_key,
            "github_ca_file": self.authority.file,
        }

    @property
    def mints(self) -> list[Asked]:
        return [each for each in self.asked if each.path.endswith("/access_tokens")]

    def add_user(self, login: str, *, name: str | None = None, email: str | None = None, number: int = 7) -> SecretStr:
        """A user, and a token that it has made."""
        token = self.tokens.store(login)
        self.users[token.value] = {"login": login, "id": number, "name": name, "email": email, "type": "User"}
        return SecretStr(token.value)

    async def installation(self, request: web.Request) -> web.Response:
        number = int(request.match_info["id"])
        if (refused := self._not_the_app(request)) is not None:
            return refused
        if (found := self.installations.get(number)) is None:
            return _refused(404, "Not Found")
        account = {"login": found.account, "id": found.account_id, "type": found.type}
        suspended = "2026-01-01T00:00:00Z" if found.suspended else None
        return web.json_response(
            {
                "id": number,
                "app_id": int(APP_ID),
                "app_slug": APP_SLUG,
                "account": account,
                "permissions": found.permissions,
                "repository_selection": "selected",
                "suspended_at": suspended,
            }
        )

    async def mint(self, request: web.Request) -> web.Response:
        if self.limit is not None:
            if self.limit <= 0:
                return _refused(403, "API rate limit exceeded for installation", self.limit_headers)
            self.limit -= 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.slow_s)
            return self._minted(request, await request.json())
        finally:
            self.at_once -= 1

    def _minted(self, request: web.Request, wanted: dict[str, Any]) -> web.Response:
        if (refused := self._not_the_app(request)) is not None:
            return refused
        found = self.installations.get(int(request.match_info["id"]))
        if found is None:
            return _refused(404, "Not Found")
        if found.suspended:
            return _refused(403, "This installation has been suspended")
        permissions = wanted.get("permissions") or found.permissions
        rank = {None: 0, "read": 1, "write": 2}
        if any(rank[level] > rank[found.permissions.get(name)] for name, level in permissions.items()):
            return _refused(422, "The permissions requested are not granted to this installation.")
        names = wanted.get("repositories")
        if names is not None and not {each.lower() for each in names} <= {each.lower() for each in found.repositories}:
            return _refused(
                422,
                "There is at least one repository that does not exist or is not accessible to the parent installation.",
            )
        expires_at = time.time() + self.token_life_s
        token = self.tokens.mint(
            found.account,
            found.repositories if names is None else names,
            {"metadata": "read", **permissions},
            expires_at,
        )
        shown = datetime.fromtimestamp(expires_at, UTC).isoformat().replace("+00:00", "Z")
        body = {"token": token.value, "expires_at": shown, "permissions": dict(token.permissions)}
        return web.json_response(body, status=201)

    async def revoke(self, request: web.Request) -> web.Response:
        token = self.tokens.tokens.get(_bearer(request))
        if token is None or not token.minted or token.revoked or token.has_expired:
            return _refused(401, "Bad credentials")
        token.revoked = True
        return web.Response(status=204)

    async def user(self, request: web.Request) -> web.Response:
        token = self.tokens.tokens.get(_bearer(request))
        if token is None or token.revoked or token.value not in self.users:
            return _refused(401, "Bad credentials")
        return web.json_response(self.users[token.value], headers={"X-OAuth-Scopes": "repo"})

    def _not_the_app(self, request: web.Request) -> web.Response | None:
        """As GitHub: the app's signature, its id, and a life of ten minutes at most."""
        try:
            claims = jwt.decode(
                _bearer(request),
                self.key.public_key(),
                algorithms=["RS256"],
                options={"require": ["iat", "exp", "iss"], "verify_aud": False},
            )
        except jwt.PyJWTError as error:
            return _refused(401, f"A JSON web token could not be decoded: {type(error).__name__}")
        if claims["iss"] != APP_ID:
            return _refused(401, "'Issuer' claim ('iss') must be an Integer")
        if claims["exp"] > time.time() + 600 or claims["iat"] > time.time():
            return _refused(401, "'Expiration time' claim ('exp') is too far in the future")
        return None

    @web.middleware
    async def _seen(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        self.asked.append(Asked(request.method, request.path, request.headers.get("Authorization", ""), body))
        if self.answers and self.answers[0].method in {None, request.method}:
            canned = self.answers.popleft()
            return web.Response(
                status=canned.status, headers=canned.headers, text=canned.body, content_type="application/json"
            )
        response: web.StreamResponse = await handler(request)
        return response

    def application(self) -> web.Application:
        """To be served alone, or below another one."""
        app = web.Application(middlewares=[self._seen])
        app.router.add_get("/app/installations/{id:[0-9]+}", self.installation)
        app.router.add_post("/app/installations/{id:[0-9]+}/access_tokens", self.mint)
        app.router.add_delete("/installation/token", self.revoke)
        app.router.add_get("/user", self.user)
        return app


@contextlib.asynccontextmanager
async def running_github_api(authority: Authority) -> AsyncIterator[GitHubApi]:
    """The stand-in, with an installation 42 of the app at the organization `acme`."""
    api = GitHubApi(authority)
    runner = web.AppRunner(api.application())
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.server("127.0.0.1", "localhost"))
        await site.start()
        api.port = runner.addresses[0][1]
        yield api
    finally:
        await runner.cleanup()


def _bearer(request: web.Request) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


def _refused(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"message": message, "status": str(status)}, status=status, headers=headers)
