"""The way out of a sandbox: an HTTP proxy on a listening socket in the sandbox's own network namespace.

The sandbox has no network but its loopback. Its toolbox listens there and has passed that socket to us; we
accept on it and connect in the machine's network. Which targets may be reached is decided here, on the
address that is then connected to, so a name that resolves differently the second time gains nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

_CONNECTIONS_AT_ONCE = 256
_HEAD_LIMIT_BYTES = 64 * 1024
_HEAD_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 30.0
#: A tunnel through which nothing passed for this long is closed.
_IDLE_TIMEOUT_S = 900.0
_COPY_BYTES = 256 * 1024
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
#: Headers between client and proxy that are not the target's business.
_HOP_HEADERS = (b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """A request that the proxy does not serve, with the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class _Request:
    """The first request of a connection; `head` is what goes to the target, empty for a tunnel."""

    host: str
    port: int
    head: bytes


class EgressProxy:
    """Serves the proxy of one sandbox.

    `allowed` are `host:port` targets that need not be public; `routes` leads others elsewhere, wherever that is.
    """

    def __init__(
        self,
        listener: socket.socket,
        allowed: frozenset[str] = frozenset(),
        routes: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        self._listener = listener
        self._allowed = allowed
        self._routes = routes or {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._listener.setblocking(False)
        self._server = await asyncio.start_server(self._accept, sock=self._listener, limit=_HEAD_LIMIT_BYTES)

    def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _CONNECTIONS_AT_ONCE:
            writer.write(_answer(503, "too many connections from this sandbox"))
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._connect_through(reader, writer)
        except Refused as refused:
            writer.write(_answer(refused.status, refused.message))
        except (OSError, EOFError, TimeoutError) as error:
            # Either side may go away at any time; that is how connections end.
            log.debug("egress connection ended: %s", error)
        finally:
            writer.close()

    async def _connect_through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_TIMEOUT_S):
            request = await _read_request(reader)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                target_reader, target_writer = await self._connect(request)
        except TimeoutError as error:
            raise Refused(504, f"{request.host}:{request.port} did not answer in time") from error
        try:
            if request.head:
                target_writer.write(request.head)
            else:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await _join((reader, writer), (target_reader, target_writer))
        finally:
            target_writer.close()

    async def _connect(self, request: _Request) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        target = f"{request.host}:{request.port}"
        if (elsewhere := self._routes.get(target)) is not None:
            try:
                return await asyncio.open_connection(*elsewhere, limit=_COPY_BYTES)
            except OSError as error:
                raise Refused(502, f"{target} cannot be reached: {error}") from error
        try:
            found = await loop.getaddrinfo(request.host, request.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Refused(502, f"{request.host} cannot be resolved: {error}") from error
        failure: OSError | None = None
        for family, _, _, _, address in found:
            host = str(address[0])
            if target not in self._allowed and (not is_public(host) or is_of_this_machine(host, family)):
                raise Refused(403, f"{target} is {host}, which is not a public address; sandboxes may not reach it")
            try:
                # The numeric address that was checked: nothing is resolved a second time.
                return await asyncio.open_connection(host, request.port, family=family, limit=_COPY_BYTES)
            except OSError as error:
                failure = error
        raise Refused(502, f"{target} cannot be reached: {failure or 'no address'}") from failure


def is_public(text: str) -> bool:
    """Whether an address lies on the public internet, also when it is wrapped in an IPv6 transition form."""
    try:
        address: _Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return all(_is_public(inner) for inner in _unwrapped(address))


def _is_public(address: _Address) -> bool:
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not address.is_multicast and not site_local


def is_of_this_machine(host: str, family: int) -> bool:
    """Whether this machine itself has the address: its services see such a caller as a local one."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))  # the kernel lets one bind to one's own addresses only
        except OSError:
            return False
        return True


def _unwrapped(address: _Address) -> Iterable[_Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address, address.sixtofour)
    if address.teredo is not None:
        return (address, *address.teredo)
    if any(address in network for network in _NAT64):
        return (ipaddress.IPv4Address(address.packed[-4:]),)
    return (address,)


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise Refused(431, "the request's header is too large") from error
    line, *headers = head[:-4].split(b"\r\n")
    try:
        method, target, version = line.decode("ascii").split(" ")
    except (UnicodeDecodeError, ValueError) as error:
        raise Refused(400, "not an HTTP request") from error
    if not version.startswith("HTTP/1."):
        raise Refused(505, f"{version} is not spoken here")
    try:
        if method == "CONNECT":
            parts = urlsplit(f"//{target}")
            if parts.hostname is None or parts.port is None or parts.path:
                raise ValueError("host and port are expected")
            return _Request(parts.hostname, parts.port, b"")
        parts = urlsplit(target)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("an http:// address is expected; https goes through CONNECT")
        return _Request(parts.hostname, parts.port or 80, _forwarded_head(method, target, headers))
    except ValueError as error:
        raise Refused(400, f"{target!r} is no target for a proxy: {error}") from error


def _forwarded_head(method: str, target: str, headers: list[bytes]) -> bytes:
    """The request as the target expects it: with a path, and for this one exchange."""
    _, _, rest = target.partition("://")
    _, slash, path = rest.partition("/")
    kept = [line for line in headers if line.partition(b":")[0].strip().lower() not in _HOP_HEADERS]
    first = f"{method} {slash or '/'}{path} HTTP/1.1".encode("ascii")
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""])


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _join(one: _Stream, other: _Stream) -> None:
    """Copy in both directions until both have ended, or nothing has passed for a long time."""
    loop = asyncio.get_running_loop()
    last = loop.time()

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        nonlocal last
        while piece := await source.read(_COPY_BYTES):
            last = loop.time()
            sink.write(piece)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()

    copies = [asyncio.create_task(copy(one[0], other[1])), asyncio.create_task(copy(other[0], one[1]))]
    try:
        while any(not task.done() for task in copies):
            await asyncio.wait(copies, timeout=_IDLE_TIMEOUT_S, return_when=asyncio.FIRST_EXCEPTION)
            if any(task.done() and task.exception() for task in copies):
                return
            if loop.time() - last >= _IDLE_TIMEOUT_S:
                return
    finally:
        for task in copies:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*copies, return_exceptions=True)


def _answer(status: int, message: str) -> bytes:
    body = f"{message}\n".encode()
    lines = [f"HTTP/1.1 {status} Refused by the sandbox's proxy", "Content-Type: text/plain; charset=utf-8"]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body
