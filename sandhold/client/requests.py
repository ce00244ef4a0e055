"""Requests to Temporal that are sent until they are answered.

The server restarts, connections break, a worker is away for a while: none of this is an answer. Every
request here is safe to repeat (queries, updates under a fixed id, starts under a fixed workflow id), so
it is repeated: without end while Temporal itself answers, for a bounded time while it does not.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar
from weakref import WeakValueDictionary

from pydantic import BaseModel
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import (
    Client,
    RPCTimeoutOrCancelledError,
    WorkflowExecutionStatus,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
)
from temporalio.common import QueryRejectCondition
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from sandhold.client.errors import TemporalRefused, WaitTimeout
from sandhold.contracts.names import DRAINING, QUERY_TOO_EARLY
from sandhold.temporal import NamespaceMissing, TemporalUnreachable

logger = logging.getLogger("sandhold.client")

Answer = TypeVar("Answer")
Model = TypeVar("Model", bound=BaseModel)

REQUEST_TIMEOUT_S = 15.0
"""One attempt; longer than a workflow takes to answer an update."""
UPDATES_IN_FLIGHT = 8
"""Per workflow, below the server's default limit of 10: an update above the limit does not only fail, it makes the
server abort others that are on their way (seen with server 1.32.0)."""
_PROBE_TIMEOUT = timedelta(seconds=3)
_TELL_AFTER_S = 15.0

_NO_ANSWER = {
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.UNKNOWN,
    RPCStatusCode.INTERNAL,
    RPCStatusCode.ABORTED,
    RPCStatusCode.DATA_LOSS,
    RPCStatusCode.OUT_OF_RANGE,
}
_LOST_BY_WORKER = "UnprocessedUpdate"
"""Failure type of an update that a worker was given and has not answered (server 1.32.0): nothing was done."""
_LOSSES_LIMIT = 10
"""Then it is no bad luck: that worker does not know updates."""
_CLOSED_BEFORE_ITS_FIRST_TASK = "closed before WorkflowTaskStarted"  # server 1.32.0, for a query
_WAITED_OUT = {RPCStatusCode.CANCELLED, RPCStatusCode.DEADLINE_EXCEEDED}
_FOR_THE_CALLER = {RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.ALREADY_EXISTS}


@dataclass(frozen=True)
class Deadline:
    """When the caller stops waiting; never, by default."""

    at: float | None = None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        return cls(None if seconds is None else time.monotonic() + seconds)

    def left_s(self) -> float:
        return float("inf") if self.at is None else self.at - time.monotonic()

    def check(self) -> float:
        """Seconds left. Raises WaitTimeout when there are none."""
        left = self.left_s()
        if left <= 0:
            raise WaitTimeout("no answer within the caller's timeout")
        return left


@dataclass
class Backoff:
    """Delays that grow from `first_s` to `most_s`, each spread by a fifth so that callers do not march in step."""

    first_s: float
    most_s: float
    factor: float = 1.6
    _next_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._next_s = self.first_s

    async def sleep(self, deadline: Deadline) -> None:
        """Sleep for the next delay. Raises WaitTimeout when the deadline has passed then."""
        delay, self._next_s = self._next_s, min(self._next_s * self.factor, self.most_s)
        await asyncio.sleep(max(0.0, min(delay * random.uniform(0.8, 1.2), deadline.check())))
        deadline.check()


class NoSlot(Exception):
    """The workflow has as many updates in flight as it may; the request was not delivered."""


class NeverRan(Exception):
    """The workflow was closed from outside before it did anything: there is nothing that it could tell."""


class UpdateSlots:
    """The updates of this client that one workflow has not answered yet."""

    def __init__(self) -> None:
        self._taken = 0
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def take(self, within_s: float) -> AsyncIterator[None]:
        """Hold a slot. Raises NoSlot when none is freed in time."""
        until = time.monotonic() + within_s
        while self._taken >= UPDATES_IN_FLIGHT:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise NoSlot
            freed = asyncio.get_running_loop().create_future()
            self._waiting.append(freed)
            await asyncio.wait([freed], timeout=None if left_s == float("inf") else left_s)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
            waiting, self._waiting = self._waiting, []
            for freed in waiting:
                freed.set_result(None)


class TemporalRequests:
    """Sends requests to Temporal until they are answered, or TemporalUnreachable or WaitTimeout is raised.

    What a workflow or the server says about the request itself is raised as the SDK has it:
    WorkflowUpdateFailedError, WorkflowQueryFailedError, RPCError NOT_FOUND and so on.
    """

    def __init__(self, client: Client, *, reconnect_s: float) -> None:
        self.client = client
        self._reconnect_s = reconnect_s
        self._slots: WeakValueDictionary[str, UpdateSlots] = WeakValueDictionary()

    async def update(
        self,
        workflow_id: str,
        name: str,
        request: BaseModel,
        *,
        update_id: str,
        answer: type[Model],
        deadline: Deadline,
        slot_within_s: float | None = None,
    ) -> Model:
        """The answer to an update. One that was refused because the workflow is draining, or that a worker has lost, is
        sent again under the same id.

        With `slot_within_s` it raises NoSlot when the workflow has too many updates in flight for so long.
        """
        handle = self.client.get_workflow_handle(workflow_id)
        slots = self._slots.setdefault(workflow_id, UpdateSlots())
        again = Backoff(0.02, 0.5)
        losses = 0

        async def attempt(timeout: timedelta) -> Model:
            result: Model = await handle.execute_update(
                name, request, id=update_id, result_type=answer, rpc_timeout=timeout
            )
            return result

        while True:
            left_s = deadline.check()
            try:
                async with slots.take(left_s if slot_within_s is None else min(slot_within_s, left_s)):
                    return await self.send(attempt, deadline=deadline, may_be_full=slot_within_s is not None)
            except WorkflowUpdateFailedError as refusal:
                reason = refusal.cause.type if isinstance(refusal.cause, ApplicationError) else None
                losses += reason == _LOST_BY_WORKER
                if reason not in {DRAINING, _LOST_BY_WORKER} or losses > _LOSSES_LIMIT:
                    raise
            await again.sleep(deadline)

    async def signal(self, workflow_id: str, name: str, request: BaseModel, *, deadline: Deadline) -> None:
        """Return when the server has the signal on record. It may be there twice: the receiver must not mind."""
        handle = self.client.get_workflow_handle(workflow_id)

        async def attempt(timeout: timedelta) -> None:
            await handle.signal(name, request, rpc_timeout=timeout)

        await self.send(attempt, deadline=deadline)

    async def query(
        self,
        workflow_id: str,
        name: str,
        *arguments: str,
        answer: type[Answer],
        deadline: Deadline,
        only_open: bool = False,
    ) -> Answer:
        """The answer to a query. With `only_open` a closed workflow raises WorkflowQueryRejectedError.

        A query between two runs of a workflow, or ahead of a task of it, is asked again.
        """
        handle = self.client.get_workflow_handle(workflow_id)
        pause = Backoff(0.02, 0.5)

        async def attempt(timeout: timedelta) -> Answer:
            result: Answer = await handle.query(
                name,
                args=arguments,
                result_type=answer,
                reject_condition=QueryRejectCondition.NOT_OPEN if only_open else None,
                rpc_timeout=timeout,
            )
            return result

        while True:
            try:
                return await self.send(attempt, deadline=deadline)
            except WorkflowQueryRejectedError as rejection:
                if not is_open(rejection.status):
                    raise
            except WorkflowQueryFailedError as failure:
                if failure.message != QUERY_TOO_EARLY:
                    raise
            await pause.sleep(deadline)

    async def send(
        self,
        attempt: Callable[[timedelta], Awaitable[Answer]],
        *,
        deadline: Deadline,
        may_be_full: bool = False,
    ) -> Answer:
        """Repeat `attempt` until it is answered. It gets the timeout of one request and must be safe to repeat.

        With `may_be_full` the server's own limit of updates in flight raises NoSlot.
        """
        backoff = Backoff(0.05, 1.0)
        began = time.monotonic()
        silent_since: float | None = None
        told = False
        while True:
            timeout_s = min(REQUEST_TIMEOUT_S, deadline.check())
            sent_at = time.monotonic()
            failure: Exception
            try:
                # The second timeout is for a client that does not come back from the first.
                async with asyncio.timeout(timeout_s + 2.0):
                    return await _cancellable(attempt(timedelta(seconds=timeout_s)))
            except RPCError as error:
                failure = error
                if error.status is RPCStatusCode.RESOURCE_EXHAUSTED:
                    if may_be_full:
                        raise NoSlot from error
                    silent_since = None
                elif error.status in _NO_ANSWER:
                    silent_since = silent_since or sent_at
                elif error.status in _WAITED_OUT:
                    silent_since = None if await self._answers(deadline) else (silent_since or sent_at)
                elif error.status is RPCStatusCode.FAILED_PRECONDITION:
                    if _CLOSED_BEFORE_ITS_FIRST_TASK in error.message:
                        raise NeverRan from error
                    silent_since = None  # no worker polls, or the workflow's own task is failing
                else:
                    self._raise_refusal(error)
            except (RPCTimeoutOrCancelledError, TimeoutError) as error:
                failure = error
                silent_since = None if await self._answers(deadline) else (silent_since or sent_at)
            now = time.monotonic()
            if silent_since is not None and now - silent_since > self._reconnect_s:
                raise TemporalUnreachable(
                    f"Temporal has not answered for {self._reconnect_s:g} s; what was asked for may have happened. "
                    "Calls can be repeated under the same call id"
                ) from failure
            if not told and now - began > _TELL_AFTER_S:
                told = True
                what = "Temporal does not answer" if silent_since is not None else "no worker has answered"
                logger.warning("still waiting: %s for %.0f s (%s)", what, now - began, failure)
            await backoff.sleep(deadline)

    async def _answers(self, deadline: Deadline) -> bool:
        """Whether Temporal itself answers: tells a worker that is away from a server that is."""
        try:
            async with asyncio.timeout(min(_PROBE_TIMEOUT.total_seconds() + 1, deadline.check())):
                await self.client.workflow_service.get_system_info(GetSystemInfoRequest(), timeout=_PROBE_TIMEOUT)
        except (RPCError, TimeoutError):
            deadline.check()
            return False
        return True

    def _raise_refusal(self, error: RPCError) -> None:
        if is_namespace_missing(error):
            raise NamespaceMissing(f"Temporal has no namespace {self.client.namespace!r}") from error
        if error.status in _FOR_THE_CALLER:
            raise error
        raise TemporalRefused(f"Temporal refused the request: {error.message}") from error


async def _cancellable(request: Awaitable[Answer]) -> Answer:
    """The SDK turns the cancellation of a task that waits for an update into an error of its own (temporalio 1.35)."""
    try:
        return await request
    except RPCTimeoutOrCancelledError as error:
        if isinstance(error.__cause__, asyncio.CancelledError):
            raise error.__cause__ from None
        raise


def is_open(status: WorkflowExecutionStatus | None) -> bool:
    """Whether a workflow that was found in this status goes on.

    A question may meet the run that has just continued as new: the server chose it a moment earlier (seen with 1.32.0).
    """
    return status in {WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW}


def is_namespace_missing(error: RPCError) -> bool:
    return any(detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details)
