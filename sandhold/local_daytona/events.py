"""Socket.IO events: how the official client learns of a change in the moment it happens.

Without them the client looks again every second. It subscribes to `sandbox.state.updated` and
`sandbox.created` and picks out its own sandboxes (`daytona` 0.226.1, `internal/event_dispatcher.py`), so
every event goes to every authenticated connection of the one organisation.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping
from typing import Any

import socketio
from aiohttp import web

from sandhold.local_daytona.records import SandboxRecord, State

#: Where the client looks for the endpoint: below the path of the API's address.
SOCKET_PATH = "api/socket.io"

_ROOM = "organization"


class Events:
    """Tells connected clients about sandboxes. Delivery is best effort, as with the provider."""

    def __init__(self, api_key: str, details: Callable[[SandboxRecord], Mapping[str, object]]) -> None:
        self._api_key = api_key.encode()
        self._details = details
        self._server = _socket_server()
        self._connections: set[asyncio.Transport] = set()
        self._server.on("connect", self._connect)

    def attach(self, app: web.Application) -> None:
        app.router.add_get(f"/{SOCKET_PATH}/", self._converse)

    async def close(self) -> None:
        """Cut every connection, so that none delays the end of the server.

        A client that loses its connection tries again by itself; one that is told goodbye does not.
        """
        await self._server.shutdown()
        for transport in list(self._connections):
            transport.close()

    async def created(self, record: SandboxRecord) -> None:
        await self._server.emit("sandbox.created", self._details(record), room=_ROOM)

    async def state_updated(self, record: SandboxRecord, old: State) -> None:
        event = {"sandbox": self._details(record), "oldState": old.value, "newState": record.state.value}
        await self._server.emit("sandbox.state.updated", event, room=_ROOM)

    async def _converse(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            return web.Response()  # to nobody: the client left before its turn came
        self._connections.add(transport)
        try:
            answer: web.StreamResponse = await self._server.handle_request(request)
            return answer
        finally:
            self._connections.discard(transport)

    async def _connect(self, session_id: str, environ: Mapping[str, Any], auth: object = None) -> None:
        token = auth.get("token") if isinstance(auth, dict) else None
        given = token.encode("utf-8", "surrogatepass") if isinstance(token, str) else b""
        if not hmac.compare_digest(given, self._api_key):
            raise _refused("Unauthorized")
        await self._server.enter_room(session_id, _ROOM)


# The library has no type annotations; these two are its only mentions that need to be excused.


def _socket_server() -> Any:
    return socketio.AsyncServer(async_mode="aiohttp", transports=["websocket"])  # type: ignore[no-untyped-call]


def _refused(reason: str) -> Exception:
    refusal: Exception = socketio.exceptions.ConnectionRefusedError(reason)  # type: ignore[no-untyped-call]
    return refusal
