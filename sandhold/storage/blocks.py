"""Bytes that come in pieces of any size, in blocks of one size."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


async def in_blocks(pieces: AsyncIterable[Buffer], size: int, *, ahead: int = 0) -> AsyncIterator[bytes]:
    """The same bytes in blocks of `size`, each copied once; the last one is shorter, or the only one.

    The first one has as many bytes more as are `ahead`.
    """
    held: list[memoryview] = []
    weight = -ahead
    async for piece in pieces:
        view = memoryview(piece)
        while view:
            taken = view[: size - weight]
            held.append(taken)
            weight += len(taken)
            view = view[len(taken) :]
            if weight == size:
                yield b"".join(held)
                held, weight = [], 0
    if held:
        yield b"".join(held)
