"""Waiting inside a workflow: not thrown out by the workflow's own cancellation, and over when its run is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

from temporalio import workflow

_CLOSING = "_run_is_closing"
_LAST_STEPS = 32
"""More than any chain of tasks here that wait for each other."""


async def until(condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
    """Wait until `condition` holds; False when `timeout_s` passed first.

    A workflow's cancellation is for its main coroutine. `wait_condition` raises it in every task whose
    condition comes true in the same activation (temporalio 1.35.0), so all other tasks wait through this.
    While the run is being closed nothing is let go on.
    """
    deadline = None if timeout_s is None else workflow.now() + timedelta(seconds=timeout_s)

    def may_go_on() -> bool:
        return not _is_closing() and condition()

    while not may_go_on():
        left = None if deadline is None or _is_closing() else (deadline - workflow.now()).total_seconds()
        if left is not None and left <= 0:
            return False
        try:
            await workflow.wait_condition(may_go_on, timeout=left)
        except TimeoutError:
            return condition()
        except asyncio.CancelledError:
            continue
    return True


async def close_run() -> None:
    """For the main coroutine, before it completes or continues as new: what is ready takes its last steps first.

    A command behind the last one makes the server refuse all of them, again and again (server 1.32.0: `invalid
    command sequence`), and in one activation other tasks run after the main one. From here on no condition lets
    any of them go on; those that an event has woken already take their steps, and their commands, before this returns.
    """
    setattr(workflow.instance(), _CLOSING, True)
    for _ in range(_LAST_STEPS):
        await asyncio.sleep(0)


def reopen_run() -> None:
    """Go on after all: a last step has changed what there is to do."""
    setattr(workflow.instance(), _CLOSING, False)


def _is_closing() -> bool:
    return getattr(workflow.instance(), _CLOSING, False)


def seconds_until(moment: datetime) -> float:
    """Seconds from the workflow's now to `moment`, at least a millisecond: the shortest timer there is."""
    return max((moment - workflow.now()).total_seconds(), 0.001)
