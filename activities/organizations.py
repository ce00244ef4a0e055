"""Which of the provider's organizations a key belongs to: its "not found" says nothing of another one's sandboxes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from daytona import AsyncDaytona

from activities.clients import Key
from activities.connections import Connection
from activities.faults import ProviderError, request
from sandhold.connections.daytona_key import KeyInformationMissing, look_at_key

_KEPT = 1000


class Organizations:
    """Asks once for each version of a connection."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, str | None] = OrderedDict()
        self._asking = asyncio.Lock()

    async def of(self, connection: Connection, client: AsyncDaytona, within_s: float) -> str | None:
        """The organization; None when the provider does not tell. Raises ProviderError when it cannot be asked."""
        if connection.organization is not None:
            return connection.organization
        async with self._asking:
            if connection.key not in self._known:
                self._known[connection.key] = await _asked(client, within_s)
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            return self._known[connection.key]


async def _asked(client: AsyncDaytona, within_s: float) -> str | None:
    try:
        return (await request(look_at_key(client), within_s)).organization
    except KeyInformationMissing:
        return None
    except ProviderError as error:
        if error.fault.status in {404, 501}:
            return None  # a provider without this route
        raise
