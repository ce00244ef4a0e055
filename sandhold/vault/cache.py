"""Reads of the vault that are at most some seconds old, so that a call costs the database nothing."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sandhold.vault.records import ConnectionRecord, GitToken, Provider, SessionValues
from sandhold.vault.schema import connections, git_tokens, secrets
from sandhold.vault.vault import Vault

KEEP_S = 10.0
_MOST = 1000

_Key = tuple[str, str, str]
"""The table, the owner or session, and which of theirs."""


@dataclass(frozen=True)
class _Kept:
    value: Any
    until: float


class VaultCache:
    """Connections and secrets as they were at most `keep_s` ago; then they are let go. Failures are not kept.

    What is changed through the same vault is seen at once; what another process changes, once the time is over or a
    `fresh` read is asked for. Belongs to the vault's event loop.
    """

    def __init__(self, vault: Vault, keep_s: float = KEEP_S, *, most: int = _MOST) -> None:
        self._vault = vault
        self._keep_s = keep_s
        self._most = most
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._reading: dict[_Key, asyncio.Task[Any]] = {}
        vault.watch(self._forget)

    async def connection(self, owner: str, provider: Provider, *, fresh: bool = False) -> ConnectionRecord | None:
        """As `Vault.connection`. `fresh`: as it is now, for whom the provider has refused what was kept."""
        found: ConnectionRecord | None = await self._read(
            (connections.name, owner, provider), lambda: self._vault.connection(owner, provider), fresh
        )
        return found

    async def secret_values(self, session_id: str, run_id: str, *, fresh: bool = False) -> SessionValues:
        """As `Vault.secret_values`. `fresh`: as they are now, for whom one is missing."""
        found: SessionValues = await self._read(
            (secrets.name, session_id, run_id), lambda: self._vault.secret_values(session_id, run_id), fresh
        )
        return found

    async def git_tokens(self, session_id: str, run_id: str, *, fresh: bool = False) -> Sequence[GitToken]:
        """As `Vault.git_tokens` for all sandboxes of the session. `fresh`: as they are now."""
        found: Sequence[GitToken] = await self._read(
            (git_tokens.name, session_id, run_id), lambda: self._vault.git_tokens(session_id, run_id), fresh
        )
        return found

    async def _read(self, key: _Key, query: Callable[[], Awaitable[Any]], fresh: bool) -> Any:
        if not fresh:
            kept = self._kept.get(key)
            if kept is not None and time.monotonic() < kept.until:
                self._kept.move_to_end(key)
                return kept.value
        elif (running := self._reading.get(key)) is not None:
            # It may have begun before what the caller knows. The next one has not: all who wait here share it.
            await asyncio.wait([running])
        task = self._reading.get(key)
        if task is None:
            task = self._reading[key] = asyncio.create_task(self._queried(key, query))
            task.add_done_callback(_seen)
        # One who is cancelled leaves the query to the others.
        return await asyncio.shield(task)

    async def _queried(self, key: _Key, query: Callable[[], Awaitable[Any]]) -> Any:
        me = asyncio.current_task()
        begun = time.monotonic()
        try:
            value = await query()
        finally:
            # After a change of ours this is no longer the query that others may share.
            is_current = self._reading.get(key) is me
            if is_current:
                del self._reading[key]
        if is_current:
            self._kept[key] = _Kept(value, begun + self._keep_s)
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            # Whether or not anybody asks again. The value's time has begun earlier, so it is over by then.
            asyncio.get_running_loop().call_later(self._keep_s, self._forget_the_old)
        return value

    def _forget_the_old(self) -> None:
        """Values in clear stay here no longer than they may be used: a session's may weigh 320 KiB."""
        now = time.monotonic()
        for key in [each for each, kept in self._kept.items() if kept.until <= now]:
            del self._kept[key]

    def _forget(self, table: str, whose: str) -> None:
        for store in (self._kept, self._reading):
            for key in [each for each in store if each[:2] == (table, whose)]:
                del store[key]


def _seen(task: asyncio.Task[Any]) -> None:
    """Who asked may be gone: then a failure is nobody's, and no news for the event loop's log."""
    if not task.cancelled():
        task.exception()
