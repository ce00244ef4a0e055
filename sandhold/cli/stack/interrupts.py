"""Signals while a stack runs: the first ends it in order, the second at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from sandhold.cli.stack.stack import Stack

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal ended the work, in order. Nothing of the stack runs any more."""


async def until_interrupted(stack: Stack, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which runs the stack inside itself.

    The first SIGINT, SIGTERM or SIGHUP cancels it, so that it closes the stack, and Interrupted is raised
    afterwards. From the second on the parts are killed without waiting.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            task.cancel()
        else:
            stack.kill()

    for name in _SIGNALS:
        loop.add_signal_handler(name, on_signal)
    try:
        return await task
    except asyncio.CancelledError:
        if signals:
            raise Interrupted from None
        raise
    finally:
        for name in _SIGNALS:
            loop.remove_signal_handler(name)
