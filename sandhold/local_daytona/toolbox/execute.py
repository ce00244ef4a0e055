"""One shell command: run it, pass its output on, answer with its exit code."""

from __future__ import annotations

import os
import select
import time

from .failures import Failure, bad_request
from .processes import Child, Processes
from .wire import CHUNK_BYTES, Connection

TYPE_CHECKING = False  # importing typing would cost every sandbox 4 ms and 1 MB
if TYPE_CHECKING:
    from typing import Any

#: The shell that the provider uses is the first of these that the sandbox has.
_SHELLS = ("/usr/bin/zsh", "/bin/zsh", "/usr/bin/bash", "/bin/bash", "/bin/sh")
#: How often a command whose output pipe is still open is looked at.
_LOOK_S = 0.5
#: How long a background process may hold the output open after the shell has ended, when the request
#: set no timeout. The provider waits for ever; a server that many tests share must not.
HELD_OUTPUT_S = 60.0


def shell() -> str:
    return next(path for path in _SHELLS if os.access(path, os.X_OK))


def execute(connection: Connection, request: dict[str, Any], processes: Processes, env: dict[str, str]) -> None:
    """Run `request["command"]`; send its merged output as it comes and its exit code at the end.

    Answers when the output has ended and the shell has exited. At the timeout the command's process
    group is killed and `timed_out` is sent; a process that left the group by `setsid` lives on. A
    server that stops listening does not disturb the command.
    """
    timeout = request.get("timeout")
    deadline = time.monotonic() + timeout if timeout else None
    source, sink = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            child = processes.start([shell(), "-c", request["command"]], request["cwd"], env, sink)
        except OSError as error:
            raise bad_request(f"the command could not be started: {error.strerror}: {error.filename}") from error
        except ValueError as error:  # a NUL byte somewhere
            raise bad_request(f"the command could not be started: {error}") from error
        finally:
            os.close(sink)
        finished = _pass_on(connection, source, child, deadline)
        if not finished:
            processes.kill_group(child)
            raise Failure(408, "PROCESS_EXECUTION_TIMEOUT", "command execution timeout")
    finally:
        os.close(source)
    connection.send({"exit_code": child.exit_code})


def _pass_on(connection: Connection, source: int, child: Child, deadline: float | None) -> bool:
    """Send what arrives on `source` until it and the child have ended; False when the deadline came first."""
    poller = select.poll()
    poller.register(source, select.POLLIN)
    listening = True
    held_since: float | None = None
    while True:
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            return False
        if child.exited.is_set() and deadline is None:
            held_since = held_since or now
            if now - held_since >= HELD_OUTPUT_S:
                return True
        wait_s = _LOOK_S if deadline is None else min(_LOOK_S, deadline - now)
        if not poller.poll(wait_s * 1000):
            continue
        piece = os.read(source, CHUNK_BYTES)
        if not piece:
            return child.exited.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if listening:
            try:
                connection.send_data(piece)
            except OSError:
                listening = False  # the caller has gone; the command goes on, and must not block on a full pipe
