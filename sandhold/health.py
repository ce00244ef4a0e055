"""The worker's health endpoint: `/healthz` says whether this worker serves calls, and if not, why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import structlog
from aiohttp import web
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, DescribeWorkerDeploymentRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from sandhold.contracts.names import WORKER_DEPLOYMENT

log = structlog.get_logger(__name__)

_PROBE_TIMEOUT = timedelta(seconds=3)


Build = Literal["current", "ramping", "not_current"]
"""Where Temporal sends workflow tasks: to this build, in part to this build, or to another one."""


@dataclass(frozen=True)
class Health:
    """Whether this worker polls, and whether work comes to its build; `reason` says what is wrong."""

    ok: bool
    """Polling. A build that is not current is fine as well: every new build is, until it is made current."""
    reason: str | None = None
    build: Build | None = None
    """None when the worker is not versioned, or when nobody knows."""

    @property
    def status(self) -> Literal["ok", "degraded", "unavailable"]:
        if not self.ok:
            return "unavailable"
        return "degraded" if self.build == "not_current" else "ok"

    def as_json(self) -> dict[str, str]:
        known = {"status": self.status, "build": self.build, "reason": self.reason}
        return {name: value for name, value in known.items() if value is not None}


Probe = Callable[[], Awaitable[Health]]


@dataclass(frozen=True)
class PolledQueue:
    """A task queue that a healthy worker polls for one kind of task."""

    name: str
    kind: TaskQueueType.ValueType


class WorkerProbe:
    """Asks Temporal itself whether this worker polls: an answer proves the way there and back."""

    def __init__(
        self, client: Client, identity: str, queues: Sequence[PolledQueue], build_id: str | None = None
    ) -> None:
        self._client = client
        self._identity = identity
        self._queues = queues
        self._build_id = build_id
        self.stopping = False
        """Set at the beginning of a shutdown: no new work should be sent here."""

    async def __call__(self) -> Health:
        """The state now. Raises nothing: what goes wrong is the reason."""
        if self.stopping:
            return Health(ok=False, reason="the worker is shutting down")
        try:
            polled = await asyncio.gather(*(self._is_polled(queue) for queue in self._queues))
            silent = [queue.name for queue, here in zip(self._queues, polled, strict=True) if not here]
            if silent:
                return Health(ok=False, reason=f"this worker does not poll {', '.join(silent)}")
            return Health(ok=True) if self._build_id is None else await self._health_of_build(self._build_id)
        except RPCError as error:
            return Health(ok=False, reason=f"Temporal does not answer: {error.message}")

    async def _health_of_build(self, build_id: str) -> Health:
        request = DescribeWorkerDeploymentRequest(namespace=self._client.namespace, deployment_name=WORKER_DEPLOYMENT)
        try:
            answer = await self._client.workflow_service.describe_worker_deployment(request, timeout=_PROBE_TIMEOUT)
            routing = answer.worker_deployment_info.routing_config
            current = routing.current_deployment_version.build_id
            ramping = routing.ramping_deployment_version.build_id
        except RPCError as error:
            # Temporal notes a deployment a moment after its first worker polls.
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            current = ramping = ""
        if build_id == current:
            return Health(ok=True, build="current")
        if build_id == ramping:
            return Health(ok=True, build="ramping")
        return Health(
            ok=True,
            build="not_current",
            reason=f"build {build_id} is not current: workflow tasks go to "
            f"{f'build {current}' if current else 'unversioned workers'}; `sandhold setup` makes it current",
        )

    async def _is_polled(self, queue: PolledQueue) -> bool:
        request = DescribeTaskQueueRequest(
            namespace=self._client.namespace,
            task_queue=TaskQueue(name=queue.name),
            task_queue_type=queue.kind,
        )
        answer = await self._client.workflow_service.describe_task_queue(request, timeout=_PROBE_TIMEOUT)
        return any(poller.identity == self._identity for poller in answer.pollers)


@asynccontextmanager
async def health_endpoint(address: str, probe: Probe) -> AsyncIterator[str]:
    """Serve `/healthz` at `host:port` (port 0 takes a free one) and yield its URL.

    It answers with a JSON body: 503 when `status` is `unavailable`, else 200. A worker whose build is not current
    is `degraded` with 200: whoever ends what is not healthy must let a new build wait for its roll-out, and an
    old one finish. Raises OSError when the address cannot be listened on.
    """

    async def healthz(_: web.Request) -> web.Response:
        health = await probe()
        return web.json_response(health.as_json(), status=200 if health.ok else 503)

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        host, _, port = address.rpartition(":")
        site = web.TCPSite(runner, host.strip("[]"), int(port))
        await site.start()
        bound_host, bound_port = runner.addresses[0][:2]
        shown_host = f"[{bound_host}]" if ":" in bound_host else bound_host
        yield f"http://{shown_host}:{bound_port}/healthz"
    finally:
        await runner.cleanup()
