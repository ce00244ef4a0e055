"""The standard streams of this process as bytes. Waiting for them never blocks the event loop, which hears signals."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from typing import Any, TextIO

PIECE_BYTES = 4096
"""What a pipe that is ready takes without blocking (PIPE_BUF on Linux)."""


async def write(stream: TextIO | None, data: bytes) -> None:
    """Write all of `data`; nothing to a stream that was closed from the start.

    Raises BrokenPipeError when nobody reads any more.
    """
    if stream is None:
        return
    loop = asyncio.get_running_loop()
    descriptor = stream.fileno()
    at_once = len(data) if _is_file(descriptor) else PIECE_BYTES
    left = memoryview(data)
    while left:
        await _ready(descriptor, loop.add_writer, loop.remove_writer)
        try:
            left = left[os.write(descriptor, left[:at_once]) :]
        except BlockingIOError:
            continue


async def read(stream: TextIO | None, limit: int) -> bytes:
    """At most `limit` bytes as soon as there are some; none at the end, and of a stream closed from the start."""
    if stream is None:
        return b""
    loop = asyncio.get_running_loop()
    descriptor = stream.fileno()
    while True:
        await _ready(descriptor, loop.add_reader, loop.remove_reader)
        try:
            return os.read(descriptor, limit)
        except BlockingIOError:
            continue


async def _ready(descriptor: int, watch: Callable[..., Any], unwatch: Callable[[int], Any]) -> None:
    """Return when `descriptor` can be read or written without waiting."""
    if _is_file(descriptor):
        return
    ready = asyncio.get_running_loop().create_future()
    try:
        watch(descriptor, _set, ready)
    except PermissionError:
        return  # A device that cannot be watched is always ready: /dev/null.
    try:
        await ready
    finally:
        unwatch(descriptor)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)
