"""PID 1 of a sandbox: hardens itself, takes its configuration, serves the server's requests."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import sys
import threading

from . import execute, files, transfer
from .failures import Failure, bad_request, from_os_error
from .limits import Watch
from .processes import ChildLimits, Processes
from .wire import Connection, WireError, receive_descriptor

TYPE_CHECKING = False  # importing typing would cost every sandbox 4 ms and 1 MB
if TYPE_CHECKING:
    from typing import Any

#: Where the egress proxy listens inside the sandbox's own network namespace.
PROXY_ADDRESS = ("127.0.0.1", 3128)

_PR_SET_DUMPABLE = 4
_KEYCTL_JOIN_SESSION_KEYRING = 1
_KEYCTL_NUMBER = {"x86_64": 250, "aarch64": 219}
#: The kernel should take a process of a sandbox before anything of the host.
_OOM_SCORE_ADJ = 500
_THREAD_STACK_BYTES = 512 * 1024


def harden() -> None:
    """Put this process out of reach of the commands it starts, which run as the same user."""
    # A signal that PID 1 has no handler for is dropped by the kernel, except that Python installs one for
    # SIGINT. Ignoring all of them keeps that true whatever a later interpreter installs. Children get the
    # defaults back. SIGCHLD stays: ignoring it would throw exit codes away.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    # Before the next step, which makes this file read-only for us. Children inherit the value.
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjustment:
        adjustment.write(str(_OOM_SCORE_ADJ))
    libc = ctypes.CDLL(None, use_errno=True)
    # Not dumpable: commands cannot trace us or read our memory, environment and descriptors.
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_DUMPABLE")
    # The session key ring was inherited from the server's login session. Failure is normal where the
    # kernel has no key rings or a filter forbids the call; then there is nothing to inherit either.
    keyctl = _KEYCTL_NUMBER.get(os.uname().machine)
    if keyctl is not None:
        libc.syscall(keyctl, _KEYCTL_JOIN_SESSION_KEYRING, None)


class Toolbox:
    """Serves requests; one thread each."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self._env: dict[str, str] = configuration["env"]
        self._home: str = configuration["home"]
        limits = configuration["limits"]
        self._processes = Processes(ChildLimits(limits["processes"], limits["disk_bytes"]))
        self._watch = Watch(self._processes.something_runs, self._home, limits["memory_bytes"], limits["disk_bytes"])

    def begin(self) -> None:
        threading.Thread(target=self._processes.collect_for_ever, daemon=True).start()
        if self._watch.needed:
            threading.Thread(target=self._watch.for_ever, daemon=True).start()

    def serve(self, stream: socket.socket) -> None:
        """Answer the one request of a connection and close it."""
        with stream:
            connection = Connection(stream)
            try:
                self._answer(connection)
            except (WireError, BrokenPipeError, ConnectionResetError):
                return  # the server no longer wants the answer

    def _answer(self, connection: Connection) -> None:
        request = connection.receive_message()
        try:
            self._perform(connection, request)
        except Failure as failure:
            connection.send(failure.to_wire())
        except (WireError, BrokenPipeError, ConnectionResetError):
            raise
        except OSError as error:
            connection.send(from_os_error(error).to_wire())
        except UnicodeEncodeError as error:
            connection.send(bad_request(f"text that cannot be encoded: {error.reason}").to_wire())
        except Exception as error:  # whatever a request does to us, its caller is told and PID 1 goes on
            reason = f"{type(error).__name__}: {error}"
            connection.send(Failure(500, "INTERNAL_SERVER_ERROR", reason).to_wire())

    def _perform(self, connection: Connection, request: dict[str, Any]) -> None:
        operation = request["operation"]
        if operation == "execute":
            request["cwd"] = files.resolve(self._home, request.get("cwd") or self._home)
            execute.execute(connection, request, self._processes, {**self._env, **(request.get("env") or {})})
        elif operation == "upload":
            transfer.upload(connection, self._home, request["path"], self._watch.disk.admit)
        elif operation == "download":
            transfer.download(connection, files.resolve(self._home, request["path"]))
        elif operation in files.LISTINGS:
            files.stream(connection, files.LISTINGS[operation](self._home, request))
        elif operation in files.CHANGES:
            connection.send({"result": files.CHANGES[operation](self._home, request)})
        else:
            raise bad_request(f"unknown operation {operation!r}")


def _serve_for_ever(control: socket.socket, toolbox: Toolbox) -> None:
    """Take connections from the control socket until the server has gone."""
    while True:
        descriptor = receive_descriptor(control)
        if descriptor is None:
            return
        stream = socket.socket(fileno=descriptor)
        try:
            threading.Thread(target=toolbox.serve, args=(stream,), daemon=True).start()
        except RuntimeError:  # no thread to be had: the sandbox is at its limit of processes
            failure = Failure(503, "INTERNAL_SERVER_ERROR", "the sandbox is at its limit of processes")
            with stream, contextlib.suppress(OSError):
                stream.settimeout(1)
                Connection(stream).send(failure.to_wire())


def main() -> None:
    # `python -I -S -c ... CONTROL_FD`; the descriptor is the server's end of every conversation.
    control = socket.socket(fileno=int(sys.argv[1]))
    fcntl.fcntl(control, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    harden()
    threading.stack_size(_THREAD_STACK_BYTES)
    descriptor = receive_descriptor(control)
    if descriptor is None:
        return  # the server gave up before it said anything
    with socket.socket(fileno=descriptor) as first:
        connection = Connection(first)
        configuration = connection.receive_message()
        toolbox = Toolbox(configuration)
        toolbox.begin()
        if configuration["proxy"]:
            listener = socket.create_server(PROXY_ADDRESS, backlog=128)
            # The server accepts on our listening socket: a way out of this network namespace that only it controls.
            socket.send_fds(first, [b"P"], [listener.fileno()])
            listener.close()
        connection.send({"ready": True})
    _serve_for_ever(control, toolbox)
    # Nobody to serve: the server has gone, and PID 1 takes the whole sandbox with it.
    os._exit(0)
