"""Socket.IO events: how the official client learns of a change in the moment it happens.

Without them the client looks again every second. It subscribes to `sandbox.state.updated` and
`sandbox.created` and picks out its own sandboxes (`daytona` 0.226.1, `internal/event_dispatcher.py`), so
every event goes to every authenticated connection of the one organisation.
"""

from __future__ import annotations

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
        self._server.on("connect", self._connect)

    def attach(self, app: web.Application) -> None:
        self._server.attach(app, socketio_path=SOCKET_PATH)

    async def close(self) -> None:
        """Disconnect every client, so that no open socket delays the end of the server."""
        for session_id in list(self._server.manager.get_participants("/", _ROOM)):
            await self._server.disconnect(session_id[0])
        await self._server.shutdown()

    async def created(self, record: SandboxRecord) -> None:
        await self._server.emit("sandbox.created", self._details(record), room=_ROOM)

    async def state_updated(self, record: SandboxRecord, old: State) -> None:
        event = {"sandbox": self._details(record), "oldState": old.value, "newState": record.state.value}
        await self._server.emit("sandbox.state.updated", event, room=_ROOM)

    async def _connect(self, session_id: str, environ: Mapping[str, Any], auth: object = None) -> None:
        token = auth.get("token") if isinstance(auth, dict) else None
        if not isinstance(token, str) or not hmac.compare_digest(token.encode(), self._api_key):
            raise _refused("Unauthorized")
        await self._server.enter_room(session_id, _ROOM)


# The library has no type annotations; these two are its only mentions that need to be excused.


def _socket_server() -> Any:
    return socketio.AsyncServer(async_mode="aiohttp", transports=["websocket"])  # type: ignore[no-untyped-call]


def _refused(reason: str) -> Exception:
    refusal: Exception = socketio.exceptions.ConnectionRefusedError(reason)  # type: ignore[no-untyped-call]
    return refusal
