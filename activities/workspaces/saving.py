"""Storing single files as they come: small ones several at once, large ones in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from activities.workspaces.entries import Report
from activities.workspaces.single_files import Copied, Opened, Order, Whole
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.storage import FileStore, Quota

AT_ONCE = 16
_ZEROS = bytes(1024 * 1024)


class FilesSaving:
    """Carries out the orders of one download."""

    def __init__(self, files: FileStore, quota: Quota, report: Report, *, is_fresh: bool) -> None:
        """`is_fresh` says that nothing is stored where the files go."""
        self._is_fresh = is_fresh
        self._files = files
        self._quota = quota
        self._report = report
        self._under_way: set[asyncio.Task[None]] = set()

    async def carry_out(self, orders: AsyncIterator[Order]) -> None:
        """Return once everything is stored. Raises the first failure; nothing goes on in the background then."""
        try:
            async for order in orders:
                match order:
                    case Whole():
                        await self._begin(order)
                    case Opened():
                        await self._store(order.path, order.name, _content(orders, order.size), order.size)
                    case Copied():
                        await self._all_stored()
                        await self._copy(order)
                    case _:
                        raise AssertionError("a piece of no file")
            await self._all_stored()
        finally:
            for task in self._under_way:
                task.cancel()
            if self._under_way:
                await asyncio.wait(self._under_way)

    async def _begin(self, order: Whole) -> None:
        while len(self._under_way) >= AT_ONCE:
            await self._some_stored()
        self._under_way.add(asyncio.create_task(self._store(order.path, order.name, order.data, len(order.data))))

    async def _some_stored(self) -> None:
        done, self._under_way = await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _all_stored(self) -> None:
        while self._under_way:
            await self._some_stored()

    async def _copy(self, order: Copied) -> None:
        size = (await self._files.find(order.source)).size
        await self._store(order.path, order.name, self._files.read(order.source), size)

    async def _store(self, path: str, name: bytes, content: bytes | AsyncIterator[bytes], size: int) -> None:
        try:
            await self._files.write(path, content, self._quota, size=size, is_fresh=self._is_fresh)
        except ToolFailure as failure:
            # Beside what was stored earlier: a file where a folder belongs, or the other way round.
            if failure.error.code is not ErrorCode.INVALID_ARGUMENTS:
                raise
            self._report.skip(name, "name_not_storable")
            if not isinstance(content, bytes):
                async for _ in content:
                    pass
        else:
            self._report.take_file(size)


async def _content(orders: AsyncIterator[Order], size: int) -> AsyncIterator[bytes]:
    """The pieces of the file that was opened: the orders up to its size."""
    left = size
    while left:
        order = await anext(orders)
        if isinstance(order, int):
            left -= order
            for start in range(0, order, len(_ZEROS)):
                yield _ZEROS[: order - start]
        else:
            assert isinstance(order, bytes)
            left -= len(order)
            yield order
