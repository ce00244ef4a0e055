"""A connection that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field


@dataclass
class Cable:
    """A TCP relay. While it is cut, connections are refused and those that were open are reset."""

    target: str
    address: str = ""
    _server: asyncio.Server | None = None
    _pairs: set[asyncio.Task[None]] = field(default_factory=set)

    async def plug(self) -> None:
        """Listen, on the same port as before."""
        host, _, port = self.address.partition(":")
        self._server = await asyncio.start_server(self._accept, host or "127.0.0.1", int(port or 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def cut(self) -> None:
        """Refuse new connections and break those that are open."""
        if self._server is not None:
            self._server.close()
        for pair in list(self._pairs):
            pair.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = asyncio.current_task()
        assert pair is not None
        self._pairs.add(pair)
        host, _, port = self.target.partition(":")
        onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(_pump(reader, onward_writer), _pump(onward_reader, writer))
        except asyncio.CancelledError:
            pass  # cut: the ends are broken below, and nobody waits for this task but `cut`
        finally:
            self._pairs.discard(pair)
            for end in (writer, onward_writer):
                end.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()
