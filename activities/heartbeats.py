"""Heartbeats beside the work: an activity that waits must still be seen to live, and must hear of its cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio import activity

INTERVAL_S = 0.8
"""Below one second, as a worker that died is noticed by a heartbeat timeout of a few seconds."""


@asynccontextmanager
async def heartbeats() -> AsyncIterator[None]:
    """Send a heartbeat at once and then every INTERVAL_S from a task of its own, until the block is left."""
    beating = asyncio.create_task(_beat(), name="heartbeats")
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.wait([beating])


async def _beat() -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(INTERVAL_S)
