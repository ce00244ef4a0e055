"""Starts and ends isolated sandboxes on this machine.

A sandbox is one bubblewrap process with the toolbox as PID 1 of its namespaces. It lives as long as the
toolbox: killing that one process ends everything inside, and the kernel kills it when the server dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sandhold.local_daytona.cgroups import Cgroups
from sandhold.local_daytona.egress import EgressProxy
from sandhold.local_daytona.interface import SandboxSpec, SandboxStartFailed
from sandhold.local_daytona.isolation import Isolation
from sandhold.local_daytona.launch import PROCESS_LIMIT, Greeted, base_environment, greet, launch
from sandhold.local_daytona.toolbox_client import ToolboxClient

log = logging.getLogger(__name__)

_STDERR_PIECE_BYTES = 4096
#: What a sandbox may write into our log: a bug of the toolbox shows, a flood does not.
_STDERR_LIMIT_BYTES = 64 * 1024
_STARTING_AT_ONCE = 8


class BubblewrapSandbox:
    """A started sandbox. Implements `interface.RunningSandbox`."""

    def __init__(self, sandbox_id: str, greeted: Greeted) -> None:
        self.sandbox_id = sandbox_id
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = loop.create_future()
        self.toolbox = ToolboxClient(greeted.launched.control)
        self._process = greeted.launched.process
        self._init = greeted.init
        self._cgroup = greeted.cgroup
        self._egress: EgressProxy | None = None
        self._killed = False
        self._stderr = greeted.launched.stderr
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
        if self.ended.done():
            egress.close()

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
        if self._cgroup is not None:
            loop.run_in_executor(None, self._cgroup.close)
        self.ended.set_result("killed" if self._killed else f"the sandbox ended by itself (status {status})")


class BubblewrapRuntime:
    """Starts sandboxes under bubblewrap. Implements `interface.Runtime`; made by `open`."""

    def __init__(
        self,
        isolation: Isolation,
        cgroups: Cgroups | None,
        allow_egress_to: Collection[str],
        routes: Mapping[str, tuple[str, int]],
    ) -> None:
        self._isolation = isolation
        self._cgroups = cgroups
        self._allow_egress_to = frozenset(allow_egress_to)
        self._routes = dict(routes)
        self._starting: dict[str, asyncio.Task[BubblewrapSandbox]] = {}
        self._running: dict[str, BubblewrapSandbox] = {}
        self._ending: set[asyncio.Task[None]] = set()
        # The kernel kills a sandbox when the *thread* that started it ends, so one thread starts them all and
        # lives as long as the runtime.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox-starter")
        self._greeters = ThreadPoolExecutor(_STARTING_AT_ONCE, thread_name_prefix="sandbox-greeter")
        self.limits: Mapping[str, str] = _limits(cgroups)

    @classmethod
    async def open(
        cls,
        data_dir: Path,
        *,
        allow_egress_to: Collection[str] = (),
        routes: Mapping[str, tuple[str, int]] | None = None,
    ) -> BubblewrapRuntime:
        """A runtime for this machine, after the real profile has been tried once.

        `allow_egress_to` names `host:port` targets that sandboxes may reach although they are loopback or
        private; `routes` says which lead elsewhere than their name does. Raises IsolationUnavailable with what to do
        about it.
        """
        isolation = await asyncio.to_thread(Isolation.probe, data_dir / "isolation")
        # Every sandbox costs a handful of descriptors, every request two.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        return cls(isolation, Cgroups.open(), allow_egress_to, routes or {})

    async def start(self, spec: SandboxSpec) -> BubblewrapSandbox:
        """Start a sandbox whose toolbox answers when this returns.

        Raises SandboxStartFailed. A cancelled start leaves no sandbox.
        """
        if spec.sandbox_id in self._running or spec.sandbox_id in self._starting:
            raise SandboxStartFailed(f"sandbox {spec.sandbox_id} is running already")
        start = self._starting[spec.sandbox_id] = asyncio.create_task(self._start(spec))
        start.add_done_callback(lambda _: self._starting.pop(spec.sandbox_id, None))
        try:
            return await asyncio.shield(start)
        except asyncio.CancelledError:
            # The threads at work on it cannot be stopped; what they bring up is ended as soon as it is there.
            start.add_done_callback(self._end_unwanted)
            raise

    async def close(self) -> None:
        """End every sandbox of this runtime."""
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        await asyncio.gather(*(sandbox.kill() for sandbox in list(self._running.values())))
        self._starter.shutdown(wait=False)
        self._greeters.shutdown(wait=False)

    async def _start(self, spec: SandboxSpec) -> BubblewrapSandbox:
        loop = asyncio.get_running_loop()
        try:
            launched = await loop.run_in_executor(self._starter, launch, self._isolation, spec)
        except OSError as error:
            raise SandboxStartFailed(f"bubblewrap could not be started: {error}") from error
        environment = base_environment(spec.sandbox_id, self._isolation.path)
        greeted = await loop.run_in_executor(self._greeters, greet, launched, spec, environment, self._cgroups)
        sandbox = BubblewrapSandbox(spec.sandbox_id, greeted)
        self._running[spec.sandbox_id] = sandbox
        sandbox.ended.add_done_callback(lambda _: self._running.pop(spec.sandbox_id, None))
        if greeted.egress_listener is not None:
            await sandbox.serve_egress(EgressProxy(greeted.egress_listener, self._allow_egress_to, self._routes))
        return sandbox

    def _end_unwanted(self, start: asyncio.Task[BubblewrapSandbox]) -> None:
        if not start.cancelled() and start.exception() is None:
            end = asyncio.create_task(start.result().kill())
            self._ending.add(end)
            end.add_done_callback(self._ending.discard)


def _limits(cgroups: Cgroups | None) -> dict[str, str]:
    held: frozenset[str] = frozenset() if cgroups is None else cgroups.controllers
    polled_memory = "polled inside the sandbox every 0.1 s: above the limit its largest process is killed"
    return {
        "processes": f"RLIMIT_NPROC in each sandbox's user namespace: {PROCESS_LIMIT} processes and threads",
        "memory": "cgroup v2" if "memory" in held else polled_memory,
        "cpu": "cgroup v2" if "cpu" in held else "not limited",
        "disk": "polled inside the sandbox: above the limit the processes that write are killed; one file cannot"
        " exceed it (RLIMIT_FSIZE)",
        "tmp": "/tmp is in memory and has half the size of the sandbox's memory, /dev/shm a quarter",  # noqa: S108
    }
