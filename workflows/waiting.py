"""Waiting inside a workflow without being thrown out by the workflow's own cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

from temporalio import workflow


async def until(condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
    """Wait until `condition` holds; False when `timeout_s` passed first.

    A workflow's cancellation is for its main coroutine. `wait_condition` raises it in every task whose
    condition comes true in the same activation (temporalio 1.35.0), so all other tasks wait through this.
    """
    deadline = None if timeout_s is None else workflow.now() + timedelta(seconds=timeout_s)
    while not condition():
        left = None if deadline is None else (deadline - workflow.now()).total_seconds()
        if left is not None and left <= 0:
            return False
        try:
            await workflow.wait_condition(condition, timeout=left)
        except TimeoutError:
            return condition()
        except asyncio.CancelledError:
            continue
    return True


def seconds_until(moment: datetime) -> float:
    """Seconds from the workflow's now to `moment`, at least a millisecond: the shortest timer there is."""
    return max((moment - workflow.now()).total_seconds(), 0.001)
