"""Data keys for many small values: one encrypts a bounded number of them, for a bounded time.

A vault's value has a data key of its own. Payloads are too many for that where a key management service wraps the keys:
each costs a request there. So a process goes on with a data key for a while, and remembers the keys that it has met.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sandhold.security.key_ring import KeyRing, WrappedKey, new_data_key

USES = 100_000
"""How many values one data key encrypts. Nonces are random: far below the 2^32 where two might meet."""
LIFE_S = 600.0
"""For how long a data key encrypts."""
LOOK_AGAIN_S = 2.0
"""How long a data key may go on after the ring has named another primary key."""
KEPT = 4096
"""How many unwrapped data keys a process remembers, about 1 KB each."""


@dataclass
class _Writing:
    wrapped: WrappedKey
    cipher: AESGCM
    born_at: float
    looked_at: float
    uses: int = 0


class DataKeys:
    """The data keys of one process under one ring, all for one purpose."""

    def __init__(
        self,
        ring: KeyRing,
        purpose: bytes,
        *,
        uses: int = USES,
        life_s: float = LIFE_S,
        kept: int = KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`purpose` binds the wrapped keys: for another purpose they do not open."""
        self._ring = ring
        self._purpose = purpose
        self._uses = uses
        self._life_s = life_s
        self._kept = kept
        self._clock = clock
        self._writing: _Writing | None = None
        self._known: OrderedDict[WrappedKey, AESGCM] = OrderedDict()
        self._asking = asyncio.Lock()

    async def for_writing(self) -> tuple[WrappedKey, AESGCM]:
        """A data key for one more value. Raises KeyRingMissing and KeyRingUnusable."""
        while True:
            key = self._writing
            if key is not None and self._may_go_on(key) and self._clock() - key.looked_at < LOOK_AGAIN_S:
                key.uses += 1
                return key.wrapped, key.cipher
            await self._look_again(key)

    async def for_reading(self, wrapped: WrappedKey) -> AESGCM:
        """The data key that was wrapped so. Raises KeyUnknown, Tampered, KeyRingMissing and KeyRingUnusable."""
        cipher = self._known.get(wrapped)
        if cipher is None:
            # One at a time: a history brings the same key a thousand times at once, and the ring is asked for it once.
            async with self._asking:
                cipher = self._known.get(wrapped)
                if cipher is None:
                    cipher = AESGCM(await self._ring.unwrap(wrapped, self._purpose))
                    self._remember(wrapped, cipher)
        self._known.move_to_end(wrapped)
        return cipher

    def _may_go_on(self, key: _Writing) -> bool:
        return key.uses < self._uses and self._clock() - key.born_at < self._life_s

    async def _look_again(self, seen: _Writing | None) -> None:
        """Go on with the present key when it is the ring's primary that wraps it, else with a fresh one."""
        async with self._asking:
            key = self._writing
            if key is not seen:
                return
            now = self._clock()
            if key is not None and self._may_go_on(key) and key.wrapped.key_id == await self._ring.primary():
                key.looked_at = now
                return
            plain = new_data_key()
            wrapped = await self._ring.wrap(plain, self._purpose)
            cipher = AESGCM(plain)
            self._remember(wrapped, cipher)
            self._writing = _Writing(wrapped, cipher, born_at=now, looked_at=now)

    def _remember(self, wrapped: WrappedKey, cipher: AESGCM) -> None:
        self._known[wrapped] = cipher
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
