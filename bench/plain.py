"""Sandhold without encryption, to measure what that costs: a client, and the real worker in a process of its own.

Run as `python -m bench.plain`. Prints `ready URL` as the real worker does, and ends when its standard input does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from temporalio.client import Client

import worker
from sandhold.client import Sandhold
from sandhold.client.requests import TemporalRequests
from sandhold.settings import Settings
from sandhold.temporal import PLAIN_CONVERTER

PLAIN_QUEUE = "sandhold-bench-plain"


class PlainSandhold(Sandhold):
    """The client as it is, but for the encryption of payloads."""

    def __init__(self, client: Client, settings: Settings) -> None:
        config = client.config()
        config["data_converter"] = PLAIN_CONVERTER
        self._settings = settings.model_copy(update={"task_queue": PLAIN_QUEUE})
        self._requests = TemporalRequests(Client(**config), reconnect_s=settings.reconnect_s)


def _end_with_standard_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    vars(worker)["data_converter"] = lambda ring, *, plain_too: PLAIN_CONVERTER
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    # The interpreter sometimes aborts at exit once Temporal's client ran (see `worker.py`).
    os._exit(worker.main())
