"""The worker's health endpoint: `/healthz` says whether calls are being served, and if not, why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog
from aiohttp import web
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

log = structlog.get_logger(__name__)

_PROBE_TIMEOUT = timedelta(seconds=3)


@dataclass(frozen=True)
class Health:
    """Whether this worker serves calls; `reason` says what is wrong when it does not."""

    ok: bool
    reason: str | None = None

    def as_json(self) -> dict[str, str]:
        return {"status": "ok"} if self.ok else {"status": "unavailable", "reason": self.reason or "unknown"}


Probe = Callable[[], Awaitable[Health]]


@dataclass(frozen=True)
class PolledQueue:
    """A task queue that a healthy worker polls for one kind of task."""

    name: str
    kind: TaskQueueType.ValueType


class WorkerProbe:
    """Asks Temporal itself whether this worker polls: an answer proves the way there and back."""

    def __init__(self, client: Client, identity: str, queues: Sequence[PolledQueue]) -> None:
        self._client = client
        self._identity = identity
        self._queues = queues
        self.stopping = False
        """Set at the beginning of a shutdown: no new work should be sent here."""

    async def __call__(self) -> Health:
        """The state now. Raises nothing: what goes wrong is the reason."""
        if self.stopping:
            return Health(ok=False, reason="the worker is shutting down")
        try:
            polled = await asyncio.gather(*(self._is_polled(queue) for queue in self._queues))
        except RPCError as error:
            return Health(ok=False, reason=f"Temporal does not answer: {error.message}")
        silent = [queue.name for queue, here in zip(self._queues, polled, strict=True) if not here]
        if silent:
            return Health(ok=False, reason=f"this worker does not poll {', '.join(silent)}")
        return Health(ok=True)

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

    It answers 200 or 503 with a JSON body. Raises OSError when the address cannot be listened on.
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
