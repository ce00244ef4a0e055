"""The server: one loopback address for control plane, toolbox proxy and events, wired together."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from aiohttp import web

from sandhold.local_daytona.control_routes import ControlRoutes
from sandhold.local_daytona.events import Events
from sandhold.local_daytona.fault_routes import cut_streams, fault_routes, faults_applied
from sandhold.local_daytona.faults import FaultPlan
from sandhold.local_daytona.housekeeping import Housekeeping
from sandhold.local_daytona.interface import Runtime, SandboxLookup
from sandhold.local_daytona.middlewares import (
    bearer_required,
    errors_as_json,
    toolbox_activity,
    unknown_routes_named,
)
from sandhold.local_daytona.records import SandboxRecord
from sandhold.local_daytona.store import DataFolder
from sandhold.local_daytona.transitions import Sandboxes

log = logging.getLogger(__name__)

ToolboxRoutes = Callable[[SandboxLookup], list[web.RouteDef]]

#: The largest body that is read as a whole (a command with its environment); uploads are streamed.
MAX_WHOLE_BODY_BYTES = 16 * 1024 * 1024

#: An open toolbox request counts as activity this many times a minute: every 50 s, as at the provider.
_TOUCHES_A_MINUTE = 60 / 50

#: How long the end of the server waits for requests that are being answered.
_FAREWELL_S = 1.0


class NotLoopback(ValueError):
    """The server runs commands for whoever has its key, on this machine: it listens on loopback only."""


@dataclass(frozen=True)
class ServerOptions:
    """How a server runs. `minute_s` is the length of the API's minutes in seconds, shorter in tests."""

    api_key: str
    host: str = "127.0.0.1"
    port: int = 0
    faults: bool = False
    minute_s: float = 60.0
    check_period_s: float = 10.0

    def __post_init__(self) -> None:
        """Raises NotLoopback."""
        check_loopback(self.host)


class LocalDaytona:
    """A running server; made by `start`, ended by `close`."""

    def __init__(
        self, folder: DataFolder, runtime: Runtime, toolbox_routes: ToolboxRoutes, options: ServerOptions
    ) -> None:
        self._options = options
        self._port = options.port
        organization_id = folder.organization_id()

        def details(record: SandboxRecord) -> dict[str, object]:
            return record.details(organization_id, control.toolbox_url())

        minute = timedelta(seconds=options.minute_s)
        self._events = Events(options.api_key, details)
        self._sandboxes = Sandboxes(folder, runtime, self._events, minute)
        self._housekeeping = Housekeeping(self._sandboxes, options.check_period_s)
        self._housekeeping_task: asyncio.Task[None] | None = None
        control = ControlRoutes(self._sandboxes, organization_id, lambda: self.origin)

        # Errors get their shape twice: inside, so that a fault can lose an error's answer like any other,
        # and outside, for what goes wrong in between.
        plan = FaultPlan() if options.faults else None
        middlewares = [errors_as_json(), bearer_required(options.api_key)]
        if plan is not None:
            middlewares.append(faults_applied(plan, self._sandboxes))
        middlewares += [
            errors_as_json(),
            unknown_routes_named(),
            toolbox_activity(self._sandboxes, minute / _TOUCHES_A_MINUTE),
        ]

        app = web.Application(middlewares=middlewares, client_max_size=MAX_WHOLE_BODY_BYTES)
        app.add_routes(control.table())
        app.add_routes(toolbox_routes(self._sandboxes.running))
        if plan is not None:
            app.add_routes(fault_routes(plan))
            app.on_response_prepare.append(cut_streams)
        self._events.attach(app)
        app.on_shutdown.append(self._before_connections_close)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_FAREWELL_S)

    @property
    def origin(self) -> str:
        """Scheme, host and port, valid once `start` has returned."""
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        return f"http://{host}:{self._port}"

    @property
    def api_url(self) -> str:
        return f"{self.origin}/api"

    async def start(self) -> None:
        """Serve, with the sandboxes on record taken up. Raises OSError if the address cannot be had."""
        await self._runner.setup()
        # The port is taken first, so that a port in use touches no sandbox; nobody is let in before every
        # sandbox is known.
        listener = _bound(self._options.host, self._options.port)
        self._port = listener.getsockname()[1]
        await self._sandboxes.resume()
        await web.SockSite(self._runner, listener).start()
        self._housekeeping_task = asyncio.create_task(self._housekeeping.run())

    async def close(self) -> None:
        """End the sandboxes, whose disks stay, then the connections."""
        if self._housekeeping_task is not None:
            self._housekeeping_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._housekeeping_task
        await self._runner.cleanup()

    async def _before_connections_close(self, app: web.Application) -> None:
        await self._sandboxes.close()
        await self._events.close()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def check_loopback(host: str) -> None:
    """Raises NotLoopback unless `host` is an address that only this machine reaches."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise NotLoopback(f"{host} is not a loopback address; this server listens on loopback only")
