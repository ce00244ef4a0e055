"""Git by smart HTTP: git's own http-backend behind Basic authentication, over TLS on loopback.

One server stands in for several hosts, told apart by the name that a client asks for. It notes every request with the
credential that came with it, so that a test sees who was sent what.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from tests.github.certificates import Authority
from tests.github.tokens import TokenBook

_PIECE_BYTES = 64 * 1024
_PAUSES_AFTER_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Asked:
    """One request."""

    host: str
    path: str
    token: str | None
    """The password that came along."""


@dataclass
class GitServer:
    """Repositories below `root`, as `owner/name.git`. Everything else can be changed while it runs."""

    root: Path
    tokens: TokenBook
    port: int = 0
    public: set[str] = field(default_factory=set)
    """Repositories, as `owner/name`, that anybody may read."""
    redirects: dict[str, str] = field(default_factory=dict)
    """Where requests for a repository `host/owner/name` are sent, by what the rest of their path is put behind."""
    redirects_after: dict[str, str] = field(default_factory=dict)
    """As `redirects`, for requests with a credential that is good."""
    hanging: set[str] = field(default_factory=set)
    """Repositories whose packs never come."""
    broken: dict[str, int] = field(default_factory=dict)
    """Repositories that are answered with a status alone."""
    pause_s: float = 0.0
    """Before each piece of a pack, in either direction."""
    pausing: asyncio.Event | None = None
    """Until it is set, packs stop in their middle."""
    holding_pushes: asyncio.Event | None = None
    """Until it is set, packs that are pushed are taken, and nothing is done with them."""
    asked: list[Asked] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a request hangs."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Requests that hang are answered with a 503 once it is set."""

    def reset(self) -> None:
        """As it was at first, but for the repositories."""
        self.redirects.clear()
        self.redirects_after.clear()
        self.hanging.clear()
        self.broken.clear()
        self.asked.clear()
        self.pause_s = 0.0
        self.pausing = None
        self.holding_pushes = None
        self.reached.clear()
        self.released.clear()

    def tokens_at(self, host: str) -> set[str]:
        """The credentials that were sent to a host."""
        return {each.token for each in self.asked if each.host == host and each.token is not None}

    async def serve(self, request: web.Request) -> web.StreamResponse:
        token = _token(request)
        host = request.host.partition(":")[0]
        self.asked.append(Asked(host, request.path, token))
        owner, _, rest = request.path.removeprefix("/").partition("/")
        folder, _, what = rest.partition("/")
        name = f"{owner}/{folder.removesuffix('.git')}"
        if (base := self.redirects.get(f"{host}/{name}")) is not None:
            raise _redirect(request, base, what)
        if name in self.broken:
            return web.Response(status=self.broken[name])
        writes = "git-receive-pack" in (what, request.query.get("service"))
        if writes or name not in self.public:
            if token is None:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="GitHub"'})
            verdict = self.tokens.verdict(token, name, "write" if writes else "read")
            if verdict == "forbidden":
                return web.Response(status=404)
            if verdict != "ok":
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="GitHub"'})
        if (base := self.redirects_after.get(f"{host}/{name}")) is not None:
            raise _redirect(request, base, what)
        if not (self.root / owner / folder.removesuffix(".git")).with_suffix(".git").is_dir():
            return web.Response(status=404)
        if name in self.hanging and what == "git-upload-pack":
            self.reached.set()
            await self.released.wait()
            return web.Response(status=503)
        return await self._by_backend(request, f"/{name}.git/{what}")

    async def _by_backend(self, request: web.Request, path: str) -> web.StreamResponse:
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "tests",
            "REQUEST_METHOD": request.method,
            "PATH_INFO": path,
            "QUERY_STRING": request.query_string,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        }
        backend = await asyncio.create_subprocess_exec(
            "git", "http-backend", env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        feeding = asyncio.create_task(self._feed(request, backend))
        try:
            return await self._answer(request, backend)
        finally:
            feeding.cancel()
            with contextlib.suppress(ProcessLookupError):
                backend.kill()
            await backend.wait()

    async def _feed(self, request: web.Request, backend: asyncio.subprocess.Process) -> None:
        assert backend.stdin is not None
        with contextlib.suppress(ConnectionError):
            while piece := await request.content.read(_PIECE_BYTES):
                if self.pause_s:
                    await asyncio.sleep(self.pause_s)
                if self.holding_pushes is not None and b"PACK" in piece:
                    self.reached.set()
                    await self.holding_pushes.wait()
                backend.stdin.write(piece)
                await backend.stdin.drain()
            backend.stdin.close()

    async def _answer(self, request: web.Request, backend: asyncio.subprocess.Process) -> web.StreamResponse:
        assert backend.stdout is not None
        head = await backend.stdout.readuntil(b"\r\n\r\n")
        response = web.StreamResponse()
        for line in head.decode().strip().split("\r\n"):
            name, _, value = line.partition(": ")
            if name == "Status":
                response.set_status(int(value.split()[0]))
            else:
                response.headers[name] = value
        await response.prepare(request)
        sent = 0
        while piece := await backend.stdout.read(_PIECE_BYTES):
            sent += len(piece)
            if self.pausing is not None and sent > _PAUSES_AFTER_BYTES:
                await self.pausing.wait()
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
            await response.write(piece)
        await response.write_eof()
        return response


@contextlib.asynccontextmanager
async def running_git_server(
    root: Path, authority: Authority, tokens: TokenBook, hosts: Sequence[str]
) -> AsyncIterator[GitServer]:
    """A server of these hosts that serves until the end; requests that hang then are let go."""
    server = GitServer(root, tokens)
    # Bodies are git's own: compressed ones are passed on as they are.
    app = web.Application(client_max_size=2**40, handler_args={"auto_decompress": False})
    app.add_routes([web.route("*", "/{path:.*}", server.serve)])
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.server(*hosts)).start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        server.released.set()
        await runner.cleanup()


def _redirect(request: web.Request, base: str, what: str) -> web.HTTPFound:
    return web.HTTPFound(f"{base}/{what}?{request.query_string}")


def _token(request: web.Request) -> str | None:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None
