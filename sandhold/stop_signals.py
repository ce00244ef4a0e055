"""SIGTERM and SIGINT for a process that shares itself with libraries that want them too.

The provider's event client puts a SIGINT handler of its own over ours as soon as it connects, and that one cancels
every task at once (python-engineio 4.13, below daytona 0.226.1). A blocked signal that a thread waits for reaches no
handler, whoever installed it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
EXIT_AT_ONCE = 130


def block_stop_signals() -> None:
    """Keep the signals from every handler, in this thread and in those that it starts.

    To be called before any thread is started. Children would inherit it: this is for processes without any.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def on_stop_signal(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Call `stop` in the loop at the first signal; leave the process at the second.

    Needs `block_stop_signals` before.
    """

    def wait() -> None:
        signal.sigwait(STOP_SIGNALS)
        loop.call_soon_threadsafe(stop)
        signal.sigwait(STOP_SIGNALS)
        os._exit(EXIT_AT_ONCE)

    threading.Thread(target=wait, name="stop signals", daemon=True).start()
