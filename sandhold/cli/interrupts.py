"""Signals while a command is followed: the first Ctrl-C cancels it, the second leaves it; so do SIGTERM and SIGHUP.

A cancellation that was sent cannot be taken back. So it is sent a moment after the first Ctrl-C, and a second one
within that moment leaves the command running.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from sandhold.cli.output import output

T = TypeVar("T")

MOMENT_S = 2.0
_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Left(Exception):
    """A signal has ended the following; what was followed goes on, unless its cancellation was sent."""

    def __init__(self, number: int, *, cancelling: bool) -> None:
        super().__init__(f"left by signal {number}")
        self.exit_code = 128 + number
        self.cancelling = cancelling


async def followed(work: Awaitable[T], cancel: Callable[[], Awaitable[None]]) -> T:
    """The outcome of `work`. MOMENT_S after a Ctrl-C `cancel` runs beside it, and `work` is expected to see the end.

    Raises Left at once on the second Ctrl-C and on any other signal that ends a process. When `cancel` has failed,
    the next Ctrl-C is a first one again.
    """
    cancelling: asyncio.Future[None] | None = None
    sent = False

    async def cancel_soon() -> None:
        nonlocal sent, cancelling
        await asyncio.sleep(MOMENT_S)
        sent = True
        try:
            await cancel()
        except Exception as error:
            sent, cancelling = False, None
            output.note(f"the command was not cancelled: {error}; Ctrl-C tries again")

    working = asyncio.ensure_future(work)
    try:
        with _heard() as signals:
            while not working.done():
                came = asyncio.ensure_future(signals.get())
                await asyncio.wait({working, came}, return_when=asyncio.FIRST_COMPLETED)
                if not came.done():
                    came.cancel()
                    break
                if came.result() != signal.SIGINT or cancelling is not None:
                    raise Left(came.result(), cancelling=sent)
                output.note("cancelling the command; Ctrl-C again at once leaves it running")
                cancelling = asyncio.ensure_future(cancel_soon())
            return await working
    finally:
        for task in (working, cancelling):
            if task is not None:
                task.cancel()


@contextlib.contextmanager
def _heard() -> Iterator[asyncio.Queue[int]]:
    """The signals that come meanwhile; those that the process was started to ignore stay ignored."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[int] = asyncio.Queue()
    heard = [number for number in _HEARD if signal.getsignal(number) is not signal.SIG_IGN]
    for number in heard:
        loop.add_signal_handler(number, queue.put_nowait, number)
    try:
        yield queue
    finally:
        for number in heard:
            loop.remove_signal_handler(number)
