"""Fifty commands at once on one sandbox, and how long a short call takes meanwhile."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

from sandhold.contracts.tools import ExecResult
from tests.stack import Stack

TARGET_S = 1.0
"""A short call takes no longer beside the fifty; once it may, when all fifty are being taken in."""


@dataclass(frozen=True)
class Latencies:
    """The seconds that short calls took, sorted."""

    seconds: list[float]

    @property
    def missed(self) -> bool:
        """Whether the target was missed, more often than once."""
        return sum(each > TARGET_S for each in self.seconds) > 1

    def __str__(self) -> str:
        return (
            f"{len(self.seconds)} calls, p50 {self._at(0.5):.2f} s, p99 {self._at(0.99):.2f} s, "
            f"max {self.seconds[-1]:.2f} s, {sum(each > TARGET_S for each in self.seconds)} above {TARGET_S:g} s"
        )

    def _at(self, share: float) -> float:
        """The least time that this share of the calls did not exceed."""
        return self.seconds[min(len(self.seconds) - 1, math.ceil(share * len(self.seconds)) - 1)]


async def fifty_commands(stack: Stack, *, seconds: float) -> Latencies:
    """What short calls took, one after the other, while the fifty ran. All fifty end right."""
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
    return Latencies(sorted(latencies))
