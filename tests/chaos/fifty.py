"""Fifty commands at once on one sandbox, and how long a short call takes meanwhile."""

from __future__ import annotations

import asyncio
import time

from sandhold.contracts.tools import ExecResult
from tests.stack import Stack


async def fifty_commands(stack: Stack, *, seconds: float) -> list[float]:
    """The seconds that short calls took, one after the other, while the fifty ran. All fifty end right."""
    session = await stack.open()
    box = (await session.create_sandbox()).sandbox_id

    async def long(number: int) -> ExecResult:
        return await session.exec(box, f"sleep {seconds}; echo {number}; exit {number}")

    running = [asyncio.create_task(long(number)) for number in range(50)]
    latencies = []
    while not any(task.done() for task in running):
        began = time.monotonic()
        await session.exec(box, "true")
        latencies.append(time.monotonic() - began)
        await asyncio.sleep(0.5)
    for number, result in enumerate(await asyncio.gather(*running)):
        assert (result.status, result.exit_code, result.stdout) == ("completed", number, f"{number}\n")
    await session.end()
    assert await stack.provider_sandboxes(session) == []
    return latencies
