"""Waiting for what the stack will do by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

LONG_ENOUGH_S = 60.0


async def eventually(
    look: Callable[[], Awaitable[T]], holds: Callable[[T], bool], what: str, *, pause_s: float = 0.05
) -> T:
    """What `look` returns once it `holds`. Fails with the last sight of it after LONG_ENOUGH_S."""
    seen = await look()
    try:
        async with asyncio.timeout(LONG_ENOUGH_S):
            while not holds(seen):
                await asyncio.sleep(pause_s)
                seen = await look()
    except TimeoutError:
        raise AssertionError(f"never came: {what}; last seen: {seen}") from None
    return seen
