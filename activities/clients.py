"""The provider's clients: one for each connection and version, and what each attempt of an activity does with them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import structlog
from daytona import AsyncDaytona, DaytonaConfig

from activities.connections import Connection, Connections
from sandhold.connections.daytona_key import QuietDaytona
from sandhold.settings import Settings
from sandhold.vault import Vault

log = structlog.get_logger("activities.clients")

CLIENTS_KEPT = 200
"""How many clients stay open that nobody uses at the moment."""
Key = tuple[str, int]


@dataclass
class ConnectionUse:
    """What one attempt of an activity has had of connections."""

    keys: set[Key] = field(default_factory=set)
    latest: Connection | None = None
    refused: int | None = None
    """HTTP status by which the provider refused the key in the latest request that told; None when it took it."""
    served: bool = False
    """Whether the provider took the key in any request."""

    def note(self, refused: int | None) -> None:
        self.refused = refused
        self.served = self.served or refused is None


_use: ContextVar[ConnectionUse | None] = ContextVar("connection_use", default=None)


def note_answer(refused: int | None) -> None:
    """Note for the running attempt whether the provider took its key; nothing where no attempt is watched."""
    use = _use.get()
    if use is not None:
        use.note(refused)


def new_client(connection: Connection) -> AsyncDaytona:
    """A client of this connection; the caller closes it."""
    return QuietDaytona(
        DaytonaConfig(
            api_key=connection.api_key.get_secret_value(),
            api_url=connection.api_url,
            # Requests that wait for a command hold a connection for seconds each; the worker's own limit on
            # activities bounds them.
            connection_pool_maxsize=None,
        )
    )


@dataclass
class _Pooled:
    client: AsyncDaytona
    version: int
    users: int = 0
    """Attempts under way that have had it."""


class ProviderPool:
    """One client per connection and version, made when it is first needed.

    A client per call would leak descriptors and cost a connection each time. One of a version that has been replaced
    is closed once no attempt uses it, and so are those that have not been used for the longest time.
    """

    def __init__(self, settings: Settings, vault: Vault | None = None) -> None:
        self.connections = Connections(settings, vault)
        self._pooled: dict[Key, _Pooled] = {}
        self._newest: dict[str, int] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def client(self, owner: str) -> AsyncDaytona:
        """The client for a new sandbox of this owner. Raises ApplicationError `connection_required`."""
        return self.client_of(await self.connections.for_new(owner))

    def client_of(self, connection: Connection) -> AsyncDaytona:
        """The client of this connection, open for as long as the attempt goes on that asks for it."""
        pooled = self._pooled.pop(connection.key, None)
        if pooled is None:
            pooled = _Pooled(new_client(connection), connection.version)
        self._pooled[connection.key] = pooled  # the latest used comes last
        self._newest[connection.id] = max(connection.version, self._newest.get(connection.id, 0))
        use = _use.get()
        if use is not None:
            use.latest = connection
            if connection.key not in use.keys:
                use.keys.add(connection.key)
                pooled.users += 1
        self._close_surplus()
        return pooled.client

    @contextmanager
    def watched(self) -> Iterator[ConnectionUse]:
        """What the block does with connections; the clients that it had stay open until it is left."""
        use = ConnectionUse()
        token = _use.set(use)
        try:
            yield use
        finally:
            _use.reset(token)
            for key in use.keys:
                if key in self._pooled:
                    self._pooled[key].users -= 1
            self._close_surplus()

    def _close_surplus(self) -> None:
        """Close clients that no attempt uses: those that were replaced, and the oldest beyond CLIENTS_KEPT."""
        for key, pooled in list(self._pooled.items()):
            is_newest_use = key == next(reversed(self._pooled))
            replaced = pooled.version < self._newest[key[0]]
            if pooled.users == 0 and not is_newest_use and (replaced or len(self._pooled) > CLIENTS_KEPT):
                del self._pooled[key]
                closing = asyncio.create_task(_close(pooled.client), name="close a client")
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every client. Safe to repeat."""
        pooled, self._pooled = list(self._pooled.values()), {}
        for each in pooled:
            await each.client.close()  # type: ignore[no-untyped-call]
        await asyncio.gather(*self._closing)


async def _close(client: AsyncDaytona) -> None:
    try:
        await client.close()  # type: ignore[no-untyped-call]
    except Exception:
        log.exception("a client that is no longer used did not close well")
