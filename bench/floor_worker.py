"""The worker of the floor: a process like the real worker, with the real worker's own settings.

Run as `python -m bench.floor_worker ADDRESS`. Prints `ready` once it was started, and ends when its standard
input does: it never outlives whoever started it.
"""

from __future__ import annotations

import asyncio
import os
import sys

from temporalio.worker import Worker

from bench.floor import FLOOR_QUEUE, Floor, return_at_once
from sandhold.settings import Settings
from sandhold.temporal import PLAIN_CONVERTER, connect
from worker import Activities, build_workers


async def serve(address: str) -> None:
    """Serve the floor until end-of-file on standard input."""
    client = await connect(Settings(temporal_address=address), converter=PLAIN_CONVERTER)
    activities = Activities(of_calls=[return_at_once], of_followers=[return_at_once])
    # This one is never run, only asked for its settings; a process may have but one worker per task queue.
    calls, _ = build_workers(client, f"{FLOOR_QUEUE}-settings", activities=activities)
    settings = calls.config()
    settings["task_queue"] = FLOOR_QUEUE
    settings["workflows"] = [Floor]
    async with Worker(**settings):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
    # The interpreter sometimes aborts at exit once Temporal's client ran (see `worker.py`).
    os._exit(0)
