"""Bringing up one sandbox: bubblewrap started, PID 1 identified, the toolbox configured.

These steps block for some 30 ms, so they run in threads; the runtime says in which.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandhold.local_daytona.cgroups import Cgroup, Cgroups
from sandhold.local_daytona.interface import SandboxSpec, SandboxStartFailed
from sandhold.local_daytona.isolation import HOME, USER, Isolation, MemorySizes, memory_file, open_settings
from sandhold.local_daytona.toolbox import wire

#: How long bubblewrap and the toolbox may take until they answer. Usually it is 0.03 s.
START_TIMEOUT_S = 30.0
#: Processes and threads of one sandbox.
PROCESS_LIMIT = 1024
#: Beyond that limit, so that a full sandbox can still be served.
_TOOLBOX_THREADS = 256
GIB = 1024**3
_UNLIMITED_MEMORY = MemorySizes(tmp_bytes=GIB, shm_bytes=GIB // 4)
_PROXY_URL = "http://127.0.0.1:3128"
_UNPROXIED = "localhost,127.0.0.1,::1"
_REASON_BYTES = 4096


@dataclass(frozen=True)
class Launched:
    """bubblewrap as it was started; its toolbox has not answered yet."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    info: int
    stderr: int


@dataclass(frozen=True)
class Greeted:
    """A sandbox whose toolbox answers. `init` is a descriptor of its PID 1."""

    launched: Launched
    init: int
    cgroup: Cgroup | None
    egress_listener: socket.socket | None


def launch(isolation: Isolation, spec: SandboxSpec) -> Launched:
    """Start bubblewrap. The sandbox dies with the *thread* that calls this. Raises OSError."""
    home = spec.folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    # Its user may have taken all rights from it, and could then never come back.
    home.chmod(stat.S_IMODE(home.stat().st_mode) | stat.S_IRWXU)
    with contextlib.ExitStack() as handed_over, contextlib.ExitStack() as ours:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.callback(control.close)
        handed_over.callback(theirs.close)
        info, info_writer = _pipe(ours, handed_over)
        stderr, stderr_writer = _pipe(ours, handed_over)
        settings = open_settings()
        arguments = isolation.arguments(home, _memory_sizes(spec), settings)
        arguments += ["--info-fd", str(info_writer)]
        packed = memory_file("".join(f"{argument}\0" for argument in arguments).encode())
        for descriptor in (*settings.values(), packed):
            handed_over.callback(os.close, descriptor)
        process = subprocess.Popen(
            isolation.command(packed, theirs.fileno()),
            # An empty environment: what bubblewrap is started with can be read inside as /proc/1/environ.
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr_writer,
            pass_fds=[theirs.fileno(), info_writer, packed, *settings.values()],
            # A Ctrl-C in the server's terminal is the server's business.
            start_new_session=True,
            umask=0o022,
        )
        ours.pop_all()
        return Launched(process, control, info, stderr)


def _pipe(readers: contextlib.ExitStack, writers: contextlib.ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    readers.callback(os.close, reader)
    writers.callback(os.close, writer)
    return reader, writer


def greet(launched: Launched, spec: SandboxSpec, environment: Mapping[str, str], cgroups: Cgroups | None) -> Greeted:
    """Limit and configure the sandbox. Raises SandboxStartFailed with nothing left of it."""
    with contextlib.ExitStack() as undo:
        try:
            pid, init = _init_of(launched)
            undo.callback(os.close, init)
            cgroup = None
            if cgroups is not None:
                cgroup = cgroups.admit(
                    f"sandbox-{pid}",
                    [launched.process.pid, pid],
                    memory_bytes=spec.memory_gib * GIB,
                    processes=PROCESS_LIMIT + _TOOLBOX_THREADS,
                    cpus=spec.cpu,
                )
                undo.callback(cgroup.close)
            # Where the kernel counts, the toolbox need not.
            memory_bytes = 0 if cgroup is not None else spec.memory_gib * GIB
            listener = _configure(launched, spec, environment, memory_bytes)
        except (OSError, ValueError, KeyError) as error:
            raise SandboxStartFailed(f"the sandbox did not start: {_abandon(launched) or error}") from error
        undo.pop_all()
        return Greeted(launched, init, cgroup, listener)


def _init_of(launched: Launched) -> tuple[int, int]:
    """PID 1 of the sandbox: its number here, and a descriptor by which it is signalled, for numbers are reused."""
    with os.fdopen(launched.info, "rb") as file:
        text = file.read()
    if not text:
        raise wire.WireError("bubblewrap ended before the sandbox existed")
    pid = int(json.loads(text)["child-pid"])
    descriptor = os.pidfd_open(pid)
    status = Path(f"/proc/{pid}/stat").read_bytes()
    parent = int(status[status.rindex(b")") + 1 :].split()[1])
    if parent != launched.process.pid:
        os.close(descriptor)
        raise wire.WireError("the sandbox ended while it started")
    return pid, descriptor


def _configure(
    launched: Launched, spec: SandboxSpec, environment: Mapping[str, str], memory_bytes: int
) -> socket.socket | None:
    """Tell the toolbox what it needs to know; the listener it opened for the egress proxy, if it may have one."""
    configuration: dict[str, Any] = {
        "home": HOME,
        "env": {**environment, **proxy_environment(spec), **spec.env},
        "proxy": not spec.network_block_all,
        "limits": {
            "processes": PROCESS_LIMIT,
            "memory_bytes": memory_bytes,
            "disk_bytes": spec.disk_gib * GIB,
        },
    }
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            socket.send_fds(launched.control, [b"C"], [theirs.fileno()])
        ours.settimeout(START_TIMEOUT_S)
        connection = wire.Connection(ours)
        connection.send(configuration)
        listener = None
        if configuration["proxy"]:
            descriptor = wire.receive_descriptor(ours)
            if descriptor is None:
                raise wire.WireError("the toolbox ended before it was ready")
            listener = socket.socket(fileno=descriptor)
        connection.receive_message()
        return listener


def base_environment(sandbox_id: str, path: str) -> dict[str, str]:
    """The variables that every command of a sandbox finds."""
    return {
        "HOME": HOME,
        "USER": USER,
        "LOGNAME": USER,
        "SHELL": "/bin/bash",
        "PATH": path,
        "LANG": "C.UTF-8",
        "DAYTONA_SANDBOX_ID": sandbox_id,
        "DAYTONA_SANDBOX_USER": USER,
    }


def proxy_environment(spec: SandboxSpec) -> dict[str, str]:
    """The variables that lead programs to the egress proxy; programs differ in which case they read."""
    if spec.network_block_all:
        return {}
    lower = {"http_proxy": _PROXY_URL, "https_proxy": _PROXY_URL, "no_proxy": _UNPROXIED}
    return {**lower, **{name.upper(): value for name, value in lower.items()}}


def _memory_sizes(spec: SandboxSpec) -> MemorySizes:
    if not spec.memory_gib:
        return _UNLIMITED_MEMORY
    return MemorySizes(tmp_bytes=spec.memory_gib * GIB // 2, shm_bytes=spec.memory_gib * GIB // 4)


def _abandon(launched: Launched) -> str:
    """End what is left of a sandbox that did not start; what it said about the reason."""
    launched.control.close()
    # Killing bubblewrap kills PID 1 of the sandbox, if there is one: --die-with-parent.
    launched.process.kill()
    launched.process.wait()
    with os.fdopen(launched.stderr, "rb") as file:
        os.set_blocking(file.fileno(), False)
        text = file.read(_REASON_BYTES) or b""
    return text.decode(errors="replace").strip()
