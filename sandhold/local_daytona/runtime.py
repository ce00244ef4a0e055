"""Starts and ends isolated sandboxes on this machine.

A sandbox is one bubblewrap process with the toolbox as PID 1 of its namespaces. It lives as long as the
toolbox: killing that one process ends everything inside, and the kernel kills it when the server dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandhold.local_daytona.egress import EgressProxy
from sandhold.local_daytona.interface import RunningSandbox, SandboxSpec, SandboxStartFailed
from sandhold.local_daytona.isolation import (
    HOME,
    USER,
    Isolation,
    MemorySizes,
    memory_file,
    open_settings,
)
from sandhold.local_daytona.toolbox import wire
from sandhold.local_daytona.toolbox_client import ToolboxClient

log = logging.getLogger(__name__)

#: How long bubblewrap and the toolbox may take until they answer. Usually it is 0.03 s.
START_TIMEOUT_S = 30.0
#: Processes and threads of one sandbox.
PROCESS_LIMIT = 1024
_GIB = 1024**3
_UNLIMITED_MEMORY = MemorySizes(tmp_bytes=_GIB, shm_bytes=_GIB // 4)
_PROXY_URL = "http://127.0.0.1:3128"
_STDERR_PIECE_BYTES = 4096
#: What a sandbox may write into our log: a bug of the toolbox shows, a flood does not.
_STDERR_LIMIT_BYTES = 64 * 1024
_STARTING_AT_ONCE = 8


@dataclass
class _Launched:
    """What exists once bubblewrap has been started, before its toolbox has answered."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    info: int
    stderr: int


class BubblewrapSandbox:
    """A started sandbox. Implements `interface.RunningSandbox`."""

    def __init__(self, sandbox_id: str, launched: _Launched, init: int) -> None:
        self.sandbox_id = sandbox_id
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = loop.create_future()
        self.toolbox = ToolboxClient(launched.control)
        self._process = launched.process
        self._init = init
        self._killed = False
        self._egress: EgressProxy | None = None
        self._stderr = launched.stderr
        self._stderr_left_bytes = _STDERR_LIMIT_BYTES
        os.set_blocking(self._stderr, False)
        loop.add_reader(self._stderr, self._on_stderr)
        # bubblewrap's own process ends after PID 1 of the sandbox, which ends after all its processes.
        self._monitor = os.pidfd_open(self._process.pid)
        loop.add_reader(self._monitor, self._on_exit)

    async def kill(self) -> None:
        """End every process of the sandbox; its disk stays. Safe to repeat; returns when all are gone."""
        self._killed = True
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
        await asyncio.shield(self.ended)

    async def serve_egress(self, egress: EgressProxy) -> None:
        """Let the sandbox reach the outside through `egress` for as long as it lives."""
        self._egress = egress
        await egress.start()

    def _on_stderr(self) -> None:
        said = os.read(self._stderr, _STDERR_PIECE_BYTES)
        if not said:
            asyncio.get_running_loop().remove_reader(self._stderr)
        elif self._stderr_left_bytes > 0:
            self._stderr_left_bytes -= len(said)
            log.warning("sandbox %s: %s", self.sandbox_id, said.decode(errors="replace").rstrip())

    def _on_exit(self) -> None:
        loop = asyncio.get_running_loop()
        status = self._process.wait()
        for descriptor in (self._monitor, self._stderr):
            loop.remove_reader(descriptor)
        for descriptor in (self._monitor, self._stderr, self._init):
            os.close(descriptor)
        self.toolbox.close()
        if self._egress is not None:
            self._egress.close()
        if not self.ended.done():
            self.ended.set_result("killed" if self._killed else f"the sandbox ended by itself (status {status})")


class BubblewrapRuntime:
    """Starts sandboxes under bubblewrap. Implements `interface.Runtime`; made by `open`."""

    def __init__(self, isolation: Isolation, allow_egress_to: Collection[str]) -> None:
        self._isolation = isolation
        self._allow_egress_to = frozenset(allow_egress_to)
        self._running: dict[str, BubblewrapSandbox] = {}
        # The kernel kills a sandbox when the *thread* that started it ends, so one thread starts them all and
        # lives as long as the runtime.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox-starter")
        self._greeters = ThreadPoolExecutor(_STARTING_AT_ONCE, thread_name_prefix="sandbox-greeter")
        self.limits: Mapping[str, str] = {
            "processes": f"RLIMIT_NPROC in each sandbox's user namespace: {PROCESS_LIMIT} processes and threads",
            "memory": "polled inside the sandbox every 0.1 s: above the limit its largest process is killed",
            "disk": "polled inside the sandbox: above the limit the processes that write are killed; one file"
            " cannot exceed it (RLIMIT_FSIZE)",
            "tmp": "file systems in memory of fixed size for /tmp and /dev/shm",
            "cpu": "not limited",
        }

    @classmethod
    async def open(cls, data_dir: Path, *, allow_egress_to: Collection[str] = ()) -> BubblewrapRuntime:
        """A runtime for this machine, after the real profile has been tried once.

        `allow_egress_to` names `host:port` targets that sandboxes may reach although they are loopback or
        private. Raises IsolationUnavailable with what to do about it.
        """
        return cls(await asyncio.to_thread(Isolation.probe, data_dir / "isolation"), allow_egress_to)

    async def start(self, spec: SandboxSpec) -> RunningSandbox:
        """Start a sandbox whose toolbox answers when this returns. Raises SandboxStartFailed."""
        if spec.sandbox_id in self._running:
            raise SandboxStartFailed(f"sandbox {spec.sandbox_id} is running already")
        loop = asyncio.get_running_loop()
        try:
            launched = await loop.run_in_executor(self._starter, self._launch, spec)
        except OSError as error:
            raise SandboxStartFailed(f"bubblewrap could not be started: {error}") from error
        try:
            init, listener = await loop.run_in_executor(self._greeters, self._greet, launched, spec)
        except (OSError, ValueError) as error:
            reason = await loop.run_in_executor(self._greeters, _abandon, launched)
            raise SandboxStartFailed(f"the sandbox did not start: {reason or error}") from error
        sandbox = BubblewrapSandbox(spec.sandbox_id, launched, init)
        self._running[spec.sandbox_id] = sandbox
        sandbox.ended.add_done_callback(lambda _: self._running.pop(spec.sandbox_id, None))
        if listener is not None:
            await sandbox.serve_egress(EgressProxy(listener, self._allow_egress_to))
        return sandbox

    async def close(self) -> None:
        """End every sandbox of this runtime."""
        await asyncio.gather(*(sandbox.kill() for sandbox in list(self._running.values())))
        self._starter.shutdown(wait=False)
        self._greeters.shutdown(wait=False)

    def _launch(self, spec: SandboxSpec) -> _Launched:
        home = spec.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        info, info_writer = os.pipe2(os.O_CLOEXEC)
        stderr, stderr_writer = os.pipe2(os.O_CLOEXEC)
        settings = open_settings()
        inherited = [theirs.fileno(), info_writer, *settings.values()]
        try:
            arguments = self._isolation.arguments(home, _memory_sizes(spec), settings)
            arguments += ["--info-fd", str(info_writer)]
            packed = memory_file("".join(f"{argument}\0" for argument in arguments).encode())
            inherited.append(packed)
            process = subprocess.Popen(
                self._isolation.command(packed, theirs.fileno()),
                # An empty environment: what bubblewrap is started with can be read inside as /proc/1/environ.
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr_writer,
                pass_fds=inherited,
                # A Ctrl-C in the server's terminal is the server's business.
                start_new_session=True,
                umask=0o022,
            )
        except BaseException:
            ours.close()
            os.close(info)
            os.close(stderr)
            raise
        finally:
            os.close(stderr_writer)
            for descriptor in inherited[1:]:
                os.close(descriptor)
            theirs.close()
        return _Launched(process, ours, info, stderr)

    def _greet(self, launched: _Launched, spec: SandboxSpec) -> tuple[int, socket.socket | None]:
        """Configure the toolbox; a descriptor of PID 1 of the sandbox, and the egress listener if it has one."""
        init = _pidfd_of_init(launched)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with ours:
                with theirs:
                    socket.send_fds(launched.control, [b"C"], [theirs.fileno()])
                ours.settimeout(START_TIMEOUT_S)
                connection = wire.Connection(ours)
                connection.send(self._configuration(spec))
                listener = None
                if not spec.network_block_all:
                    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
                    if not descriptors:
                        raise wire.WireError("the toolbox ended before it was ready")
                    listener = socket.socket(fileno=descriptors[0])
                connection.receive_message()
        except BaseException:
            os.close(init)
            raise
        return init, listener

    def _configuration(self, spec: SandboxSpec) -> dict[str, Any]:
        return {
            "home": HOME,
            "env": self._environment(spec),
            "proxy": not spec.network_block_all,
            "limits": {
                "processes": PROCESS_LIMIT,
                "memory_bytes": spec.memory_gib * _GIB,
                "disk_bytes": spec.disk_gib * _GIB,
            },
        }

    def _environment(self, spec: SandboxSpec) -> dict[str, str]:
        environment = {
            "HOME": HOME,
            "USER": USER,
            "LOGNAME": USER,
            "SHELL": "/bin/bash",
            "PATH": self._isolation.path,
            "LANG": "C.UTF-8",
            "DAYTONA_SANDBOX_ID": spec.sandbox_id,
            "DAYTONA_SANDBOX_USER": USER,
        }
        if not spec.network_block_all:
            for name in ("http_proxy", "https_proxy"):
                environment |= {name: _PROXY_URL, name.upper(): _PROXY_URL}
            environment |= {"no_proxy": "localhost,127.0.0.1,::1", "NO_PROXY": "localhost,127.0.0.1,::1"}
        return {**environment, **spec.env}


def _memory_sizes(spec: SandboxSpec) -> MemorySizes:
    if not spec.memory_gib:
        return _UNLIMITED_MEMORY
    return MemorySizes(tmp_bytes=spec.memory_gib * _GIB // 2, shm_bytes=spec.memory_gib * _GIB // 4)


def _pidfd_of_init(launched: _Launched) -> int:
    """A descriptor for PID 1 of the sandbox, by which alone it is ever signalled: numbers are reused."""
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
    return descriptor


def _abandon(launched: _Launched) -> str:
    """End what is left of a sandbox that did not start; what it said about the reason."""
    launched.control.close()
    # Killing bubblewrap kills PID 1 of the sandbox, if there is one: --die-with-parent.
    launched.process.kill()
    launched.process.wait()
    with os.fdopen(launched.stderr, "rb") as file:
        os.set_blocking(file.fileno(), False)
        text = file.read(_STDERR_PIECE_BYTES) or b""
    return text.decode(errors="replace").strip()
