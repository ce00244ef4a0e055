"""Passing a whole input on to a command, in writes that are the same however often and however it is passed on.

What a pipe gives at once is chance: cut by its reads, an input that is passed on again would be cut differently, and
some of it be written twice or never. So each cut is recorded in session storage before it is first written, under the
offset at which it begins. Whoever passes the same input on again cuts it there, and writes each piece under its call id
of before, which writes it once. Between the cuts an input may come as it likes: a line that somebody types is sent when
he pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from pydantic import ValidationError

from sandhold.contracts.base import Message
from sandhold.contracts.commands import INPUT_LIMIT_CHARS
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import call_folder
from sandhold.storage import SessionStorage, StorageError

if TYPE_CHECKING:
    from sandhold.client.commands import Command

INPUT_BYTES = INPUT_LIMIT_CHARS // 4 * 3
"""The most that one `write` takes: it travels as base64."""
QUIET_S, LINGER_S = 0.05, 0.5
"""A piece that is not full is sent once nothing has come for so long, or so long after it began."""

Read = Callable[[int], Awaitable[bytes]]
"""At most so many bytes as soon as there are some; none at the end."""


class Cut(Message):
    """Where a piece of the input ends, as it is recorded."""

    bytes: int
    last: bool
    """Whether the input ends with it."""


class StandardInput:
    """One passing on of a command's input, from its beginning to its end."""

    def __init__(self, command: Command, session_id: str, storage: SessionStorage, read: Read) -> None:
        self._command = command
        self._session_id = session_id
        self._storage = storage
        self._source = _Source(read)
        self._repeats = True
        """Whether the pieces so far were recorded by an earlier attempt."""

    async def pass_on(self) -> None:
        """Write all of it and close. Raises ToolFailure as `Command.feed` says."""
        offset = 0
        try:
            while True:
                cut = await self._cut_at(offset)
                data = await self._source.exactly(cut.bytes)
                if len(data) < cut.bytes or (cut.last and not await self._source.at_end()):
                    raise self._written_differently()
                await self._write(data, offset, last=cut.last)
                if cut.last:
                    return
                offset += cut.bytes
        finally:
            self._source.leave()

    async def _write(self, data: bytes, offset: int, *, last: bool) -> None:
        try:
            await self._command.write(data, close=last, call_id=_writer(self._command.call_id, offset))
        except ToolFailure as failure:
            if failure.error.code is not ErrorCode.CALL_ID_CONFLICT:
                raise
            raise self._written_differently() from failure

    def _written_differently(self) -> ToolFailure:
        return ToolFailure(
            ErrorCode.CALL_ID_CONFLICT,
            f"the input of command {self._command.call_id!r} was written before, and differently",
            hint="Pass the same input on again, or run the command under a new call id.",
        )

    async def _cut_at(self, offset: int) -> Cut:
        """The piece that begins at `offset`: as it was recorded, else as the input comes, which is then on record."""
        path = f"calls/{call_folder(self._command.call_id)}/stdin/{offset:020d}"
        recorded = await self._recorded(path) if self._repeats else None
        if recorded is not None:
            return recorded
        self._repeats = False
        cut = await self._source.next_cut()
        async with _told():
            if await self._storage.put_new(self._session_id, path, cut.model_dump_json().encode()):
                return cut
        # Somebody else passes the same input on at the same time, or an answer was lost: the record holds.
        return await self._recorded(path) or cut

    async def _recorded(self, path: str) -> Cut | None:
        async with _told():
            data = await self._storage.get_bytes(self._session_id, path)
            return None if data is None else Cut.model_validate_json(data)


class _Source:
    """The input, taken in pieces of any size from reads of any size."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._held = bytearray()
        self._ended = False
        self._reading: asyncio.Future[bytes] | None = None

    async def next_cut(self) -> Cut:
        """A piece for what has come and comes without a pause. All of it is held then."""
        await self._hold(1)
        until = time.monotonic() + LINGER_S
        while len(self._held) < INPUT_BYTES and not self._ended:
            if not await self._take_reading(min(QUIET_S, until - time.monotonic())):
                break
        size = min(len(self._held), INPUT_BYTES)
        return Cut(bytes=size, last=self._ended and size == len(self._held))

    async def exactly(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        await self._hold(size)
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    async def at_end(self) -> bool:
        """Whether nothing follows; waits until that is known."""
        await self._hold(1)
        return not self._held

    def leave(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()

    async def _hold(self, size: int) -> None:
        while len(self._held) < size and not self._ended:
            await self._take_reading(None)

    async def _take_reading(self, within_s: float | None) -> bool:
        """Hold what one reading gives; False when it gave nothing in time, and goes on."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read(INPUT_BYTES))
        await asyncio.wait({self._reading}, timeout=within_s)
        if not self._reading.done():
            return False
        reading, self._reading = self._reading, None
        data = reading.result()
        self._held += data
        self._ended = not data
        return True


@contextlib.asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """What goes wrong with the storage, in our words."""
    try:
        yield
    except StorageError as error:
        raise error.failure("session storage does not tell how the input is cut") from error
    except ValidationError as error:
        raise ToolFailure(
            ErrorCode.INTERNAL, "what session storage holds of how the input is cut cannot be read"
        ) from error


def _writer(call_id: str, offset: int) -> str:
    """The call id of the piece that begins at `offset`."""
    return f"{call_id}.in.{offset}"
