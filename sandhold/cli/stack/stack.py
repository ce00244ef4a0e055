"""The stack: its parts in their order, where they are, and what happens when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from types import TracebackType

from pydantic import JsonValue

from sandhold.cli.stack.data_folder import DataFolder
from sandhold.cli.stack.errors import PartFailed, StackFailed
from sandhold.cli.stack.guard import Guard
from sandhold.cli.stack.options import StackOptions
from sandhold.cli.stack.part import Part, PartPlan
from sandhold.cli.stack.plans import (
    HOSTED_DAYTONA,
    console_plan,
    daytona_plan,
    local_daytona_key,
    temporal_plan,
    vault_location,
    worker_plan,
)
from sandhold.cli.stack.ports import LOOPBACK, choose_port
from sandhold.security import SecurityError, open_key_ring
from sandhold.security.key_rings import FileKeyRing
from sandhold.settings import Settings

USUAL_TEMPORAL_PORT = 7233
USUAL_UI_PORT = 8233
USUAL_CONSOLE_PORT = 8234
_PORT_ATTEMPTS = 3

Told = Callable[[str, str], None]


class Stack:
    """All parts on this machine, as an asynchronous context: ready inside, without a trace outside.

    Inside, a part that dies is started again. `settings` are those of a process that uses the stack.
    """

    def __init__(self, settings: Settings, options: StackOptions, told: Told) -> None:
        """`told` is called with a part's name and what happened to it, while the stack starts and runs."""
        self._options = options
        self._told = told
        self.folder = DataFolder(options.data_dir)
        self.settings = settings.model_copy(update={"data_dir": self.folder.path})
        self.parts: dict[str, Part] = {}
        self.ui_url: str | None = None
        self.console_url: str | None = None
        self.local_provider = False
        self._workers_vault: str | None = None
        """Where the vault of this stack's workers is, without a password; None without workers."""
        self._guard: Guard | None = None
        self._held = ExitStack()
        self._started_at = datetime.now(UTC)
        self._closing = False

    async def __aenter__(self) -> Stack:
        """Start everything. Raises StackFailed; nothing runs then."""
        self._held.enter_context(self.folder)
        try:
            if self._options.fresh:
                self.folder.clear()
            self._have_key_ring()
            self._guard = Guard.start(self.folder.stack_file, self.folder.lock)
            console_port = self._console_port()
            await _together(
                self._start_console(console_port), self._start_temporal(console_port), self._start_daytona()
            )
            if "worker" not in self._options.without:
                numbers = range(1, self._options.workers + 1)
                plans = [self._worker_plan(number) for number in numbers]
                self._workers_vault = vault_location(self.settings)
                await _together(*(self._start(plan) for plan in plans))
            self._write()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def wait(self) -> None:
        """Return never; raise what ended the supervision of a part, or StackFailed when the guard is gone."""
        assert self._guard is not None
        supervisions = [part.supervision for part in self.parts.values() if part.supervision is not None]
        await asyncio.gather(self._watch_guard(self._guard), *supervisions)

    def kill(self) -> None:
        """End every part at once, without waiting for anything."""
        for part in self.parts.values():
            part.kill()

    def pids(self) -> dict[str, int]:
        """The process id of every part that runs now."""
        return {name: part.pid for name, part in self.parts.items() if part.pid is not None}

    def _have_key_ring(self) -> None:
        """Make the key ring with the first start; nobody else makes one by the way."""
        try:
            if self.settings.key_ring_document is None and self.settings.keyring_provider is None:
                FileKeyRing(self.settings.key_ring_file).create()
            open_key_ring(self.settings)
        except SecurityError as error:
            raise StackFailed(str(error)) from error

    def _console_port(self) -> int | None:
        """Chosen ahead: the Web UI is told where the console will be, and neither waits for the other."""
        if "console" in self._options.without:
            return None
        usual = USUAL_CONSOLE_PORT if self._options.usual_ports else None
        return choose_port("the console", asked=self._options.console_port, usual=usual)

    async def _start_console(self, port: int | None) -> None:
        if port is None:
            return
        plan = partial(console_plan, self.settings, with_web_ui="temporal" not in self._options.without)
        try:
            part = await self._start(plan(port=port))
        except PartFailed as failure:
            # Taken a moment ago. Nobody loses anything by another one: browsers have an endpoint of their own.
            if "cannot be listened on" not in failure.log_tail or self._options.console_port is not None:
                raise
            part = await self._start(plan(port=0))
        self.console_url = part.url

    async def _start_temporal(self, console_port: int | None) -> None:
        if "temporal" in self._options.without:
            return
        asked_port = self._options.temporal_port or _asked_port(self.settings.temporal_address)
        usual = self._options.usual_ports
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = choose_port("Temporal", asked=asked_port, usual=USUAL_TEMPORAL_PORT if usual else None)
            ui_port = choose_port(
                "Temporal's Web UI", asked=self._options.ui_port, usual=USUAL_UI_PORT if usual else None
            )
            try:
                await self._start(
                    temporal_plan(
                        self.settings,
                        port=port,
                        ui_port=ui_port,
                        data_dir=self.folder.path,
                        codec_endpoint=None if console_port is None else f"http://{LOOPBACK}:{console_port}",
                    )
                )
            except PartFailed as failure:
                # A port that was free a moment ago can be taken now; chosen ports are chosen again.
                if "address already in use" not in failure.log_tail or attempt == _PORT_ATTEMPTS:
                    raise
                continue
            self.settings = self.settings.model_copy(update={"temporal_address": f"{LOOPBACK}:{port}"})
            self.ui_url = f"http://{LOOPBACK}:{ui_port}"
            return

    async def _start_daytona(self) -> None:
        if self.settings.daytona_api_key is not None:
            url = self.settings.daytona_api_url or HOSTED_DAYTONA
            self.settings = self.settings.model_copy(update={"daytona_api_url": url})
            return
        if self.settings.daytona_api_url is not None:
            raise StackFailed("a Daytona address is set without a key; set DAYTONA_API_KEY, or neither")
        if "daytona" in self._options.without:
            return
        port = choose_port("the local Daytona", asked=self._options.daytona_port, usual=None)
        part = await self._start(daytona_plan(port=port, data_dir=self.folder.path))
        self.local_provider = True
        self.settings = self.settings.model_copy(
            update={"daytona_api_url": part.url, "daytona_api_key": local_daytona_key(self.folder.path)}
        )

    def _worker_plan(self, number: int) -> PartPlan:
        # The addresses that the environment names for a worker's own ports are for one worker of one stack.
        named_ports = number == 1 and self._options.usual_ports
        return worker_plan(number, self.settings, local_provider=self.local_provider, named_ports=named_ports)

    async def _start(self, plan: PartPlan) -> Part:
        assert self._guard is not None
        part = Part(plan, self._guard, self.folder.fresh_log(plan.name), self._changed)
        self.parts[plan.name] = part
        self._told(plan.name, "starting")
        await part.start()
        self._told(plan.name, f"ready, process {part.pid}")
        return part

    def _changed(self, part: str, what: str) -> None:
        if not self._closing:
            self._write()
            self._told(part, what)

    def _write(self) -> None:
        pids: dict[str, JsonValue] = {"dev": os.getpid(), **self.pids()}
        health: dict[str, JsonValue] = {
            name: part.url for name, part in self.parts.items() if name.startswith("worker")
        }
        self.folder.write_stack(
            {
                "temporal_address": self.settings.temporal_address,
                "ui_url": self.ui_url,
                "console_url": self.console_url,
                "daytona_api_url": self.settings.daytona_api_url,
                "pids": pids,
                "health_urls": health,
                "workers_vault": self._workers_vault,
                "data_dir": str(self.folder.path),
                "started_at": self._started_at.isoformat().replace("+00:00", "Z"),
            }
        )

    @staticmethod
    async def _watch_guard(guard: Guard) -> None:
        await guard.wait()
        raise StackFailed(
            "the process that guards the stack was killed; without it a crash could leave processes behind"
        )

    async def _close(self) -> None:
        """End what was started, last first: workers finish their activities while the servers still answer."""
        self._closing = True
        try:
            workers = [part for name, part in self.parts.items() if name.startswith("worker")]
            others = [part for part in self.parts.values() if part not in workers]
            await asyncio.gather(*(part.stop() for part in workers))
            await asyncio.gather(*(part.stop() for part in others))
        finally:
            self.kill()
            with contextlib.closing(self._held):
                if self._guard is not None:
                    self._guard.close()


async def _together(*starts: Coroutine[object, object, object]) -> None:
    """Run all; the first failure cancels the others and is raised once they have ended."""
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(start)
    except* StackFailed as failures:
        raise failures.exceptions[0] from None


def _asked_port(address: str | None) -> int | None:
    """The port in SANDHOLD_TEMPORAL_ADDRESS, if it is set. Raises StackFailed for an address elsewhere."""
    if address is None:
        return None
    host, _, port = address.rpartition(":")
    if host not in {LOOPBACK, "localhost"} or not port.isdigit():
        raise StackFailed(
            f"SANDHOLD_TEMPORAL_ADDRESS is {address}, which is not on this machine; use that server with "
            "`--without temporal`, or unset the variable"
        )
    return int(port)
