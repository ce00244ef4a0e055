"""Who holds sealed values, so that every one of them can be found, opened and wrapped under another key.

The vault and session storage each hand out what they hold as `SealedValues`; what rotation and verification do with
them is the same for both. Whatever is sealed by `Envelope` and kept anywhere has to be reachable through a holder.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from sandhold.security.envelope import Envelope, Place, key_id_of
from sandhold.security.errors import FormatUnknown, KeyUnknown, NotEncrypted, SecurityError, Tampered

BATCH = 200
"""How many values are read at a time."""
_AT_ONCE = 8
"""A key management service, or a bucket, is asked for so many of them at a time."""

_Became = Literal["done", "already", "overtaken"]


@dataclass(frozen=True)
class SealedRow:
    """A sealed value, and where it lies."""

    cursor: str
    """Its position among all values of its holder, never empty."""
    place: Place
    sealed: bytes = field(repr=False)
    fault: str = ""
    """Why there is no value in its place, although there has to be one."""


class SealedValues(Protocol):
    """What a holder hands out of its sealed values."""

    async def sealed_batch(self, after: str, limit: int) -> Sequence[SealedRow]:
        """At most `limit` values beyond the cursor `after`, in the order of their cursors; none at the end.

        What was there when the first batch was read, and still is, comes up in one of the batches.
        """
        ...

    async def replace_sealed(self, row: SealedRow, new: bytes) -> bool:
        """Put `new` in the place of `row.sealed`; False when something else lies there by now, or nothing."""
        ...


@dataclass(frozen=True)
class Fault:
    """A value that does not open."""

    place: Place
    reason: str


@dataclass(frozen=True)
class Survey:
    """What a holder holds."""

    by_key: Counter[str]
    """How many values are sealed under each key."""
    faults: tuple[Fault, ...] = ()
    """What tells no key: no sealed value at all, or one that is missing."""

    @property
    def values(self) -> int:
        return self.by_key.total() + len(self.faults)


@dataclass(frozen=True)
class Step:
    """What became of one batch of a holder's values."""

    cursor: str
    """The last value of the batch."""
    done: int = 0
    """How many values came to what was wanted: they lie under the primary key now, or they open."""
    already: int = 0
    """How many lay under the primary key before."""
    overtaken: int = 0
    """How many were replaced or removed by somebody else meanwhile: the next look finds what lies there now."""
    faults: tuple[Fault, ...] = ()

    @property
    def values(self) -> int:
        return self.done + self.already + self.overtaken + len(self.faults)


class Holder(Protocol):
    """Something that keeps sealed values."""

    @property
    def name(self) -> str:
        """What people call it, such as `vault`."""
        ...

    async def survey(self) -> Survey:
        """Which keys its values are sealed under."""
        ...

    def rewrap(self, after: str = "") -> AsyncIterator[Step]:
        """Bring all values beyond `after` under the ring's primary key. Safe to repeat and with several at once."""
        ...

    def verify(self, after: str = "") -> AsyncIterator[Step]:
        """Open all values beyond `after`."""
        ...


class SealedHolder:
    """A holder whose values are handed out as `SealedValues`. Raises what those raise, and KeyRingUnusable."""

    def __init__(self, name: str, values: SealedValues, envelope: Envelope) -> None:
        self._name = name
        self._values = values
        self._envelope = envelope

    @property
    def name(self) -> str:
        return self._name

    async def survey(self) -> Survey:
        by_key: Counter[str] = Counter()
        faults: list[Fault] = []
        async for batch in self._batches(""):
            for row in batch:
                if row.fault:
                    faults.append(Fault(row.place, row.fault))
                    continue
                try:
                    by_key[key_id_of(row.sealed)] += 1
                except SecurityError as error:
                    faults.append(Fault(row.place, str(error)))
        return Survey(by_key, tuple(faults))

    async def rewrap(self, after: str = "") -> AsyncIterator[Step]:
        async for batch in self._batches(after):
            yield await self._all_of(batch, self._rewrap_one)

    async def verify(self, after: str = "") -> AsyncIterator[Step]:
        async for batch in self._batches(after):
            yield await self._all_of(batch, self._open_one)

    async def _batches(self, after: str) -> AsyncIterator[Sequence[SealedRow]]:
        while batch := await self._values.sealed_batch(after, BATCH):
            yield batch
            after = batch[-1].cursor

    async def _all_of(self, batch: Sequence[SealedRow], work: Callable[[SealedRow], Awaitable[_Became]]) -> Step:
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(row: SealedRow) -> _Became | Fault:
            if row.fault:
                return Fault(row.place, row.fault)
            async with places:
                try:
                    return await work(row)
                except (KeyUnknown, Tampered, NotEncrypted, FormatUnknown) as error:
                    return Fault(row.place, str(error))

        ended = await asyncio.gather(*(one(row) for row in batch), return_exceptions=True)
        # Raised only now: nothing goes on behind the back of whoever catches it.
        became = [_result(each) for each in ended]
        return Step(
            cursor=batch[-1].cursor,
            done=became.count("done"),
            already=became.count("already"),
            overtaken=became.count("overtaken"),
            faults=tuple(each for each in became if isinstance(each, Fault)),
        )

    async def _rewrap_one(self, row: SealedRow) -> _Became:
        new = await self._envelope.rewrap(row.sealed, row.place)
        if new == row.sealed:
            return "already"
        return "done" if await self._values.replace_sealed(row, new) else "overtaken"

    async def _open_one(self, row: SealedRow) -> _Became:
        await self._envelope.open(row.sealed, row.place)
        return "done"


def _result(ended: _Became | Fault | BaseException) -> _Became | Fault:
    if isinstance(ended, BaseException):
        raise ended
    return ended
