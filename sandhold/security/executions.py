"""Which workflow executions may hold payloads under a key. Histories cannot be wrapped anew, so Temporal is asked.

An execution may hold payloads under a key when its run began before the last process stopped to encrypt under that key,
and had not ended before there was the key. Those are found by their times, through visibility.

Some hold older payloads than their own beginning tells (server 1.32.0): a run that was reset has all the events of the
run before, signals and results among them; what a schedule starts has the arguments that the schedule keeps, and the
last result of the run before it. And a process that was forgotten encrypts under a key for as long as it lives, also
what it adds to runs that began later. So of the runs that began later the whole history is read, and of open ones also
what is not in the history yet: memo and heartbeats.

A schedule also keeps the last result (or failure) for the next run, which nothing shows. It is another one once a run
has completed since; that much a schedule tells of its last ten runs, also of those that Temporal has forgotten.

Visibility is eventually consistent. It errs on the safe side where it still lists what was deleted or has ended; so
that it lists all that began before a moment, it is asked only some time after that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload, WorkflowExecution
from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeScheduleRequest,
    DescribeScheduleResponse,
    DescribeWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from sandhold.contracts.names import CLEAN_STORAGE_SCHEDULE, CLEAN_STORAGE_WORKFLOW, SANDBOX_WORKFLOW, SESSION_WORKFLOW
from sandhold.security.codec import KEY_ID

OUR_WORKFLOWS = (SESSION_WORKFLOW, SANDBOX_WORKFLOW, CLEAN_STORAGE_WORKFLOW)
"""The workflow types whose payloads are under the key ring: all that a worker of ours runs."""
NAMED = 20
_AT_ONCE = 8
_PAGE = 200
_EVENTS = 100
"""So many events of a history are in memory at a time."""
_REQUEST_TIMEOUT = timedelta(seconds=15)


@dataclass(frozen=True)
class Span:
    """When a key was used to encrypt, at most."""

    since: datetime
    until: datetime | None
    """None while it is."""

    def query(self) -> str:
        """The executions that may hold payloads under it, for visibility."""
        clauses = [_OURS, f"(ExecutionStatus = 'Running' OR CloseTime >= '{moment_in_query(self.since)}')"]
        if self.until is not None:
            clauses.append(f"StartTime <= '{moment_in_query(self.until)}'")
        return " AND ".join(clauses)


@dataclass(frozen=True)
class Needed:
    """Executions of one kind that may need a key."""

    workflow_type: str
    is_open: bool
    count: int
    workflow_ids: tuple[str, ...]
    """Some of them."""


class Executions:
    """What Temporal has of this deployment's executions. Raises RPCError."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def count(self, span: Span) -> int:
        """How many executions, open or retained, may hold payloads of this time."""
        return (await self._client.count_workflows(span.query(), rpc_timeout=_REQUEST_TIMEOUT)).count

    async def of(self, span: Span) -> list[Needed]:
        """The executions, open or retained, that may hold payloads of this time, by kind; open ones first."""
        found = []
        for is_open in (True, False):
            for workflow_type in OUR_WORKFLOWS:
                status = f"ExecutionStatus {'=' if is_open else '!='} 'Running'"
                query = f"{span.query()} AND WorkflowType = '{workflow_type}' AND {status}"
                count = (await self._client.count_workflows(query, rpc_timeout=_REQUEST_TIMEOUT)).count
                if count:
                    found.append(Needed(workflow_type, is_open, count, await self._some_of(query)))
        return found

    async def later_with(self, key_id: str, after: datetime, told: Callable[[], None] = lambda: None) -> list[str]:
        """The ids of later executions that hold something under the key, about NAMED of them at most.

        `told` of each one that was read.
        """
        query = f"{_OURS} AND StartTime > '{moment_in_query(after)}'"
        found: set[str] = set()

        async def look(executions: Sequence[WorkflowExecution]) -> None:
            hold = await asyncio.gather(*(self._holds(each, key_id) for each in executions))
            found.update(each.workflow_id for each, it_does in zip(executions, hold, strict=True) if it_does)
            for _ in executions:
                told()

        batch: list[WorkflowExecution] = []
        async for execution in self._listed(query):
            batch.append(execution)
            if len(batch) == _AT_ONCE:
                await look(batch)
                batch = []
                if len(found) >= NAMED:
                    return sorted(found)
        await look(batch)
        return sorted(found)

    async def schedules_with(self, key_id: str) -> list[str]:
        """The ids of the namespace's schedules whose arguments are under the key."""
        return [schedule_id async for schedule_id, kept in self._schedules() if key_id in keys_in(kept)]

    async def schedules_without_result_since(self, moment: datetime) -> list[str]:
        """The ids of our schedules that may give the next run a result from before the moment.

        Those that have ever begun a run, and none after the moment that has completed.
        """
        return [
            schedule_id
            async for schedule_id, kept in self._schedules()
            if kept.schedule.action.start_workflow.workflow_type.name in OUR_WORKFLOWS
            and kept.info.action_count
            and not _has_completed_since(kept, moment)
        ]

    async def _schedules(self) -> AsyncIterator[tuple[str, DescribeScheduleResponse]]:
        listed = [each.id async for each in await self._client.list_schedules(rpc_timeout=_REQUEST_TIMEOUT)]
        # The list may lag behind: ours is looked at in any case.
        for schedule_id in sorted({CLEAN_STORAGE_SCHEDULE, *listed}):
            request = DescribeScheduleRequest(namespace=self._client.namespace, schedule_id=schedule_id)
            try:
                kept = await self._client.workflow_service.describe_schedule(
                    request, retry=True, timeout=_REQUEST_TIMEOUT
                )
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    continue
                raise
            yield schedule_id, kept

    async def retention(self) -> timedelta:
        """For how long Temporal keeps a closed execution."""
        request = DescribeNamespaceRequest(namespace=self._client.namespace)
        answer = await self._client.workflow_service.describe_namespace(request, retry=True, timeout=_REQUEST_TIMEOUT)
        return answer.config.workflow_execution_retention_ttl.ToTimedelta()

    async def _some_of(self, query: str) -> tuple[str, ...]:
        ids: dict[str, None] = {}
        async for execution in self._listed(query):
            ids[execution.workflow_id] = None
            if len(ids) >= NAMED:
                break
        return tuple(ids)

    async def _listed(self, query: str) -> AsyncIterator[WorkflowExecution]:
        async for each in self._client.list_workflows(query, page_size=_PAGE, rpc_timeout=_REQUEST_TIMEOUT):
            yield WorkflowExecution(workflow_id=each.id, run_id=each.run_id)

    async def _holds(self, execution: WorkflowExecution, key_id: str) -> bool:
        """Whether an execution holds anything under the key; False when it was deleted since it was listed."""
        try:
            async for message in self._all_of(execution):
                if key_id in keys_in(message):
                    return True
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
        return False

    async def _all_of(self, execution: WorkflowExecution) -> AsyncIterator[Message]:
        """What an execution holds besides its history, then its history, page by page."""
        service, namespace = self._client.workflow_service, self._client.namespace
        yield await service.describe_workflow_execution(
            DescribeWorkflowExecutionRequest(namespace=namespace, execution=execution),
            retry=True,
            timeout=_REQUEST_TIMEOUT,
        )
        request = GetWorkflowExecutionHistoryRequest(
            namespace=namespace, execution=execution, maximum_page_size=_EVENTS
        )
        while True:
            page = await service.get_workflow_execution_history(request, retry=True, timeout=_REQUEST_TIMEOUT)
            yield page
            if not page.next_page_token:
                return
            request.next_page_token = page.next_page_token


def _has_completed_since(kept: DescribeScheduleResponse, moment: datetime) -> bool:
    """Whether a run that a schedule began after the moment has completed."""
    return any(
        each.actual_time.ToDatetime(UTC) > moment
        and each.start_workflow_status == WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED
        for each in kept.info.recent_actions
    )


def keys_in(message: Message) -> set[str]:
    """The ids of the keys under which the payloads are that lie anywhere in the message."""
    if isinstance(message, Payload):
        key_id = message.metadata.get(KEY_ID)
        return set() if key_id is None else {key_id.decode(errors="replace")}
    found: set[str] = set()
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        if descriptor.message_type.GetOptions().map_entry:
            inner = [each for each in value.values() if isinstance(each, Message)]
        else:
            inner = [value] if isinstance(value, Message) else list(value)
        for each in inner:
            found |= keys_in(each)
    return found


_OURS = f"WorkflowType IN ({', '.join(repr(each) for each in OUR_WORKFLOWS)})"


def moment_in_query(moment: datetime) -> str:
    """A time as visibility reads it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
