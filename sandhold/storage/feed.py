"""Handing a stream to an upload that reads it by itself, so that the upload is given up when the stream breaks off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import Any

_GIVE_UP_WITHIN_S = 30.0


class WriteAbandoned(Exception):
    """Raised into an upload: what it was given is not whole."""


class Feed:
    """Between who has the blocks and an upload that takes them from `taken()`.

    Leaving the context without `end()` having returned makes the upload fail, and waits until it has.
    """

    def __init__(self) -> None:
        self._blocks: asyncio.Queue[bytes | bytearray | None] = asyncio.Queue(1)
        self._broken = asyncio.Event()
        self._upload: asyncio.Future[object] | None = None

    def into(self, upload: Awaitable[object]) -> None:
        """The upload that takes the blocks."""
        self._upload = asyncio.ensure_future(upload)

    async def taken(self) -> AsyncIterator[bytes | bytearray]:
        """What the upload reads. Raises WriteAbandoned."""
        while (block := await self._next()) is not None:
            yield block

    async def give(self, block: bytes | bytearray) -> None:
        """Pass a block on once the upload has room for it. Raises what ended the upload."""
        await self._while_uploading(self._blocks.put(block))

    async def end(self) -> None:
        """Return when the upload has stored everything. Raises what ended it."""
        await self._while_uploading(self._blocks.put(None))
        assert self._upload is not None
        await asyncio.shield(self._upload)

    async def __aenter__(self) -> Feed:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._upload is None or self._upload.done():
            return
        self._broken.set()
        await asyncio.wait({self._upload}, timeout=_GIVE_UP_WITHIN_S)
        if self._upload.done() and not self._upload.cancelled():
            self._upload.exception()  # It is ours: who left the context has an error of his own.

    async def _next(self) -> bytes | bytearray | None:
        came = asyncio.ensure_future(self._blocks.get())
        broke = asyncio.ensure_future(self._broken.wait())
        either: set[asyncio.Future[Any]] = {came, broke}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.is_set():
                raise WriteAbandoned("the source broke off")
            return came.result()
        finally:
            came.cancel()
            broke.cancel()

    async def _while_uploading(self, step: Awaitable[None]) -> None:
        assert self._upload is not None
        doing = asyncio.ensure_future(step)
        try:
            both: set[asyncio.Future[Any]] = {doing, self._upload}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                self._upload.result()
                raise WriteAbandoned("the upload ended before its source")
        finally:
            doing.cancel()
