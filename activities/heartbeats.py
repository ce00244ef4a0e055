"""Heartbeats beside the work: an activity that waits must still be seen to live, and must hear of its cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from temporalio import activity

INTERVAL_S = 0.8
"""Below one second, as a worker that died is noticed by a heartbeat timeout of a few seconds."""


@asynccontextmanager
async def heartbeats(detail: Callable[[], object] | None = None) -> AsyncIterator[None]:
    """Send a heartbeat at once and then every INTERVAL_S from a task of its own, until the block is left.

    Each carries what `detail` says at its time: the next attempt finds the last one.
    """
    beating = asyncio.create_task(_beat(detail), name="heartbeats")
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.wait([beating])


@asynccontextmanager
async def heartbeats_if_wanted() -> AsyncIterator[None]:
    """Heartbeats when the attempt has to send them: a short call is spared the message."""
    if activity.info().heartbeat_timeout is None:
        yield
        return
    async with heartbeats():
        yield


async def _beat(detail: Callable[[], object] | None) -> None:
    while True:
        activity.heartbeat(*([detail()] if detail else []))
        await asyncio.sleep(INTERVAL_S)
