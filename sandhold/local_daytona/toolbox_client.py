"""The server's side of the toolbox protocol: connections to the program inside a sandbox."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

from sandhold.local_daytona.toolbox import wire

#: How long the toolbox may take to notice a new connection before it counts as dead.
_CONNECT_TIMEOUT_S = 10.0
#: Many requests at once: the queue of the control socket, or of descriptors under way, is full for the moment.
_BUSY = (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS)


class ToolboxUnreachable(ConnectionError):
    """The sandbox ended, or its toolbox no longer takes part in the conversation."""


class ToolboxRefused(Exception):
    """The operation failed in the sandbox. `code` is the provider's daemon error code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class ToolboxClient:
    """Opens connections to the toolbox of one sandbox."""

    def __init__(self, control: socket.socket) -> None:
        control.setblocking(False)
        self._control = control

    async def connect(self) -> ToolboxConnection:
        """A new connection for one exchange. Raises ToolboxUnreachable when the sandbox has ended."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                await self._pass(theirs)
            reader, writer = await asyncio.open_connection(sock=ours, limit=wire.CHUNK_BYTES)
        except BaseException:
            ours.close()
            raise
        return ToolboxConnection(reader, writer)

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One operation that is answered by one message; its result. Raises ToolboxRefused."""
        async with await self.connect() as connection:
            await connection.request(operation, **arguments)
            return await connection.result()

    def close(self) -> None:
        """End the conversation; the toolbox takes its sandbox with it."""
        self._control.close()

    async def _pass(self, stream: socket.socket) -> None:
        deadline = asyncio.get_running_loop().time() + _CONNECT_TIMEOUT_S
        while True:
            try:
                socket.send_fds(self._control, [b"C"], [stream.fileno()])
            except OSError as error:
                if error.errno not in _BUSY:
                    raise ToolboxUnreachable("the sandbox has ended") from error
                if asyncio.get_running_loop().time() > deadline:
                    raise ToolboxUnreachable("the toolbox of the sandbox does not respond") from error
                await asyncio.sleep(0.005)
            else:
                return


class ToolboxConnection:
    """One exchange with the toolbox; closed when the context ends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nothing unsent is worth waiting for: a finished exchange has none, an abandoned one wants to end.
        self._writer.transport.abort()

    async def request(self, operation: str, **arguments: Any) -> None:
        await self._send(wire.MESSAGE, wire.encode({"operation": operation, **arguments}))

    async def send_data(self, payload: bytes) -> None:
        """Pass a piece of an upload on; returns when the toolbox keeps up."""
        for start in range(0, len(payload), wire.CHUNK_BYTES):
            await self._send(wire.DATA, payload[start : start + wire.CHUNK_BYTES])

    async def send_end(self) -> None:
        await self._send(wire.END)

    async def frames(self) -> AsyncIterator[tuple[bytes, bytes]]:
        """The frames of the answer as kind and payload, up to the end of the exchange."""
        while True:
            kind, payload = await self._receive()
            if kind == wire.END:
                return
            yield kind, payload

    async def result(self) -> dict[str, Any]:
        """The result in the next message. Raises ToolboxRefused when it is an error."""
        kind, payload = await self._receive()
        if kind != wire.MESSAGE:
            raise ToolboxUnreachable("the toolbox sent data where an answer was due")
        return result_of(payload)

    async def data(self) -> AsyncIterator[bytes]:
        """The data frames that follow a result. Raises ToolboxRefused when an error ends them."""
        async for kind, payload in self.frames():
            if kind == wire.DATA:
                yield payload
            else:
                result_of(payload)

    async def _send(self, kind: bytes, payload: bytes = b"") -> None:
        try:
            self._writer.write(wire.pack(kind, payload))
            await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:
            raise ToolboxUnreachable("the sandbox ended during the request") from error

    async def _receive(self) -> tuple[bytes, bytes]:
        try:
            kind, length = wire.HEADER.unpack(await self._reader.readexactly(wire.HEADER.size))
            if length > wire.FRAME_LIMIT_BYTES:
                raise ToolboxUnreachable("the toolbox broke the protocol: frame too long")
            return kind, await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ToolboxUnreachable("the sandbox ended during the request") from error


def result_of(payload: bytes) -> dict[str, Any]:
    """The answer in a message: its `result`, or the whole message where it has none. Raises ToolboxRefused."""
    message = json.loads(payload)
    error = message.get("error")
    if isinstance(error, Mapping):
        raise ToolboxRefused(int(error["status"]), str(error["code"]), str(error["message"]))
    result = message.get("result", message)
    return dict(result)
