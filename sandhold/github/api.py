"""Requests to GitHub's API: few at once, never redirected, and with one wait for all once it limits their rate."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import getproxies_environment, proxy_bypass

import aiohttp
from pydantic import SecretStr
from yarl import URL

from sandhold.github.errors import GitHubUnavailable
from sandhold.github.rate_limits import RateLimits, told_wait
from sandhold.settings import SettingsError

AT_ONCE = 10
"""GitHub limits who asks for more than some at a time."""
API_VERSION = "2022-11-28"
_MOST_BYTES = 1024 * 1024
_SAID = 200
"""Characters of GitHub's own words that are repeated."""


@dataclass(frozen=True)
class Answer:
    """What GitHub answered, below 500 and not about a rate limit."""

    status: int
    body: Any
    """Of its JSON; None where it is none."""
    headers: Mapping[str, str]
    """Whatever their case."""

    @property
    def said(self) -> str:
        """Its own words about a refusal."""
        message = self.body.get("message") if isinstance(self.body, dict) else None
        return message[:_SAID] if isinstance(message, str) else ""


class Api:
    """One API. Its connections are made when they are needed; `close` closes them."""

    def __init__(self, url: str, *, ca_file: Path | None = None, timeout_s: float = 30.0) -> None:
        """Raises SettingsError when the certificates cannot be read."""
        self.url = url
        self._tls = _tls(ca_file)
        self._proxy, self._proxy_headers = _proxy_for(url)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._limits = RateLimits()
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, method: str, path: str, token: str | SecretStr, *, body: object = None) -> Answer:
        """Ask, and give what was answered. Raises RateLimited and GitHubUnavailable.

        While a rate limit lasts nothing is asked, whoever met it.
        """
        secret = token.get_secret_value() if isinstance(token, SecretStr) else token
        headers = {
            "Authorization": f"Bearer {secret}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": API_VERSION,
            "User-Agent": "sandhold",
        }
        async with self._at_once:
            self._limits.check()
            answer = await self._asked(method, path, headers, body)
        wait = told_wait(answer.status, answer.headers, answer.said)
        if wait is not None:
            raise self._limits.learn(wait)
        if answer.status >= 500 or 300 <= answer.status < 400:
            raise GitHubUnavailable(f"GitHub at {self.url} answered {answer.status}")
        return answer

    async def _asked(self, method: str, path: str, headers: dict[str, str], body: object) -> Answer:
        if self._session is None:
            # Without `trust_env`: it would look for credentials in the machine's .netrc as well.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
            )
        try:
            # A redirect would take the credential elsewhere.
            async with self._session.request(
                method,
                self.url + path,
                headers=headers,
                json=body,
                allow_redirects=False,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
            ) as response:
                return Answer(response.status, _json(await _bounded(response)), response.headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # Without a cause: it may hold the request, and so the credential.
            raise GitHubUnavailable(f"GitHub at {self.url} cannot be asked: {type(error).__name__}") from None

    async def close(self) -> None:
        """Close the connections. Safe to repeat."""
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > _MOST_BYTES:
            raise aiohttp.ClientPayloadError("the answer is too long")
    return bytes(data)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _proxy_for(url: str) -> tuple[URL | None, dict[str, str]]:
    """The proxy that the environment names for this API, and headers for it alone: it sees no more than the host."""
    proxies = getproxies_environment()
    named = proxies.get("https") or proxies.get("all")
    if not named or proxy_bypass(URL(url).host or ""):
        return None, {}
    try:
        proxy = URL(named)
        if proxy.user is None:
            return proxy, {}
        known = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
        return proxy.with_user(None), {"Proxy-Authorization": known}
    except ValueError:
        raise SettingsError("HTTPS_PROXY is no address of a proxy") from None


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file.expanduser())
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "it holds no certificates"
            raise SettingsError(f"SANDHOLD_GITHUB_CA_FILE: {ca_file} cannot be used: {reason}") from error
    return context
