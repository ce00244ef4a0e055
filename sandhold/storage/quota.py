"""How much a session holds, and whether more fits. Nobody keeps books: storage itself is counted.

Small writes go by a count that is a few seconds old at most, plus what this process has written since. A large write
says so first: it lays a *reservation* into the session's storage, then counts, its own and all others' reservations
included. So of two large writes at once at least one sees the other. A reservation is an empty object whose name holds
the bytes; it is removed with the end of the write, and one that nobody has renewed for RESERVED_FOR_S does not count.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.storage.claims import CLAIM
from sandhold.storage.errors import StorageError
from sandhold.storage.objects import SessionObjects, StoredObject

RESERVATIONS = "reservations"
RESERVED_FOR_S = 600.0
RENEW_AFTER_S = 120.0
COUNTED_FOR_S = 10.0
"""How old a count may be when it admits a write. None refuses one before it is made anew."""
COUNTING_SHARE = 20
"""A count that took long is good for so many times as long: of many objects each thousand costs a bucket a request."""
UNCOUNTED_BYTES = 16 * 1024 * 1024
UNCOUNTED_SHARE = 64
"""The most that one process admits on one count: UNCOUNTED_BYTES, or this share of a large quota. By so much can each
other process that writes at the same time take a session beyond its quota, however old its count is."""
STEP_BYTES = 64 * 1024 * 1024
"""By how much the reservation of a write of unknown length grows."""


class QuotaExceeded(ToolFailure):
    """More than the policy allows would be stored. Nothing was."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(ErrorCode.QUOTA_EXCEEDED, message, hint=hint)


@dataclass
class _Count:
    """What a session held when it was last counted, and what this process has admitted beside."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    held: int = 0
    counted_at: float | None = None
    good_for_s: float = COUNTED_FOR_S
    since: int = 0
    """Written since, or while it was counted."""
    under_way: int = 0
    """Admitted and not yet written."""

    @property
    def uncounted(self) -> int:
        return self.since + self.under_way


class Usage:
    """Counts what sessions hold, and admits what fits. One per process and storage, as it knows what that writes."""

    def __init__(self, objects: SessionObjects) -> None:
        self._objects = objects
        self._counts: dict[str, _Count] = {}

    async def held(self, session_id: str) -> int:
        """Bytes that the session holds now, those included that large writes have reserved."""
        total = 0
        now = datetime.now(UTC)
        async for each in self._objects.list(session_id):
            if each.path != CLAIM:  # It is ours, and there before the first byte of the session.
                total += _reserved(each, now) if _is_reservation(each) else each.size
        return total

    @asynccontextmanager
    async def admitted(self, session_id: str, size: int, quota: int, replaced: int = 0) -> AsyncIterator[None]:
        """A small write of `size` bytes in place of `replaced` ones, which happens inside of the context.

        Raises QuotaExceeded, before anything is written, when it does not fit.
        """
        # Counts are small, but sessions come and go in a worker that runs for months.
        count = self._counts.pop(session_id, None) or _Count()
        self._counts[session_id] = count
        for oldest in list(self._counts)[:-1000]:
            if not self._counts[oldest].under_way:
                del self._counts[oldest]
        async with count.lock:
            if not _is_good_enough(count, size, quota):
                count.since = 0
                began_at = time.monotonic()
                count.held = await self.held(session_id)
                count.counted_at = time.monotonic()
                count.good_for_s = max(COUNTED_FOR_S, COUNTING_SHARE * (count.counted_at - began_at))
            after = count.held + count.uncounted + size - replaced
            if size > replaced and after > quota:
                raise exceeded(count.held + count.uncounted, size - replaced, quota)
            count.under_way += size
        try:
            yield
            count.since += size
        finally:
            count.under_way -= size

    @asynccontextmanager
    async def reserved(
        self, session_id: str, least: int, wished: int, quota: int, replaced: int = 0
    ) -> AsyncIterator[Reservation]:
        """A large write, which happens inside of the context: of `least` bytes at least, perhaps of `wished`.

        Raises QuotaExceeded, before anything is written, when it does not fit.
        """
        reservation = Reservation(self, self._objects, session_id, quota, replaced)
        try:
            await reservation.grow(least, wished)
            yield reservation
        finally:
            await asyncio.shield(asyncio.ensure_future(reservation.release()))


class Reservation:
    """Room for one large write, told to all other processes."""

    def __init__(self, usage: Usage, objects: SessionObjects, session_id: str, quota: int, replaced: int) -> None:
        self._usage = usage
        self._objects = objects
        self._session_id = session_id
        self._quota = quota
        self._replaced = replaced
        self._token = secrets.token_hex(8)
        self._path: str | None = None
        self._laid_at = 0.0
        self.size = 0

    async def grow(self, least: int, wished: int | None = None) -> None:
        """Reserve `wished` bytes in all; what room there is when that is at least `least`. By default just that.

        Raises QuotaExceeded when not even that fits: the write must be given up.
        """
        before, wished = self.size, max(least, wished or least)
        await self._lay(wished)
        over = await self._usage.held(self._session_id) - self._replaced - self._quota
        self.size = wished if over <= 0 else wished - over
        if over > 0 and self.size < least and least > self._replaced:
            more = least - max(before, self._replaced)
            raise exceeded(self._quota + over - wished + before + self._replaced, more, self._quota)
        if self.size < wished:
            self.size = max(self.size, least)
            await self._lay(self.size)

    async def keep(self) -> None:
        """Renew it when it is getting old: to be called while the write goes on.

        Raises QuotaExceeded when it has lapsed, and others have taken the room.
        """
        age = time.monotonic() - self._laid_at
        if age > RESERVED_FOR_S:
            await self.grow(self.size)
        elif age > RENEW_AFTER_S:
            await self._lay(self.size)

    async def release(self) -> None:
        """Give the room back. A reservation that cannot be removed lapses by itself."""
        if self._path is not None:
            with suppress(StorageError):
                await self._objects.delete(self._session_id, [self._path])

    async def _lay(self, size: int) -> None:
        """Tell others of `size` bytes, in place of what they were told before."""
        path, before = f"{RESERVATIONS}/{self._token}.{size}", self._path
        await self._objects.put(self._session_id, path, b"")
        self._path, self._laid_at = path, time.monotonic()
        if before not in {None, path}:
            await self._objects.delete(self._session_id, [str(before)])


def exceeded(held: int, more: int, quota: int) -> QuotaExceeded:
    """The session as a whole is full."""
    return QuotaExceeded(
        f"the session's storage holds {held} of {quota} bytes: {more} more do not fit",
        "Delete files that are not needed any more, or go on in another session.",
    )


def _is_good_enough(count: _Count, size: int, quota: int) -> bool:
    """Whether the count is new enough to admit `size` bytes without another. It never is enough to refuse them."""
    if count.counted_at is None or time.monotonic() - count.counted_at > count.good_for_s:
        return False
    uncounted = count.uncounted + size
    return uncounted <= max(UNCOUNTED_BYTES, quota // UNCOUNTED_SHARE) and count.held + uncounted <= quota


def _is_reservation(stored: StoredObject) -> bool:
    return stored.path.startswith(f"{RESERVATIONS}/")


def _reserved(stored: StoredObject, now: datetime) -> int:
    size = stored.path.rpartition(".")[2]
    lapsed = (now - stored.modified_at).total_seconds() > RESERVED_FOR_S
    return 0 if lapsed or not size.isdecimal() else int(size)
