"""What keeps a key in the ring: payloads anywhere in later runs, results that schedules keep, unreadable values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
    ResetWorkflowExecutionRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from sandhold.contracts.names import CLEAN_STORAGE_SCHEDULE, CLEAN_STORAGE_WORKFLOW, SANDBOX_WORKFLOW
from sandhold.contracts.storage import CleanStorageStep, StorageCleaned
from sandhold.schedules import ensure_schedules, renew_schedules
from sandhold.security import Envelope, KeyRing, executions
from sandhold.security.executions import Executions
from sandhold.security.holders import SealedHolder, SealedRow
from sandhold.security.key_document import KeyDocument, RingKey
from sandhold.security.key_rings import EnvironmentKeyRing, FileKeyRing
from sandhold.security.removal import KeyNeeded, Removal, Times
from sandhold.security.rotation import rewrap, verify, with_fresh_primary
from sandhold.temporal import data_converter
from tests.security.holding import SETTLES_S, MemoryValues, forgotten, place, settle_soon
from tests.stack import running_temporal
from tests.workflows.waiting import eventually

QUEUE = "holding"
DOCUMENT = KeyDocument.new().added(RingKey.new("decrypt_only"))
FIRST, OTHER = (key.id for key in DOCUMENT.keys)
SOON = Times(timedelta(seconds=0.5), timedelta(seconds=0.5))


@workflow.defn(name=SANDBOX_WORKFLOW)
class Waiting:
    def __init__(self) -> None:
        self._told: list[str] = []

    @workflow.signal
    def tell(self, what: str) -> None:
        self._told.append(what)

    @workflow.run
    async def run(self, beating: bool) -> None:
        if beating:
            await workflow.execute_activity(
                "beat", task_queue="beating", start_to_close_timeout=timedelta(seconds=60), heartbeat_timeout=None
            )
        await workflow.wait_condition(lambda: "end" in self._told)


@workflow.defn(name=CLEAN_STORAGE_WORKFLOW)
class Cleaning:
    @workflow.run
    async def run(self, step: CleanStorageStep) -> StorageCleaned:
        return StorageCleaned()


@pytest.fixture
async def temporal() -> AsyncIterator[Client]:
    async with running_temporal() as server:
        yield server.client


def under(temporal: Client, ring: KeyRing) -> Client:
    config = temporal.config()
    config["data_converter"] = data_converter(ring)
    return Client(**config)


def worker(client: Client) -> Worker:
    runner = UnsandboxedWorkflowRunner()
    return Worker(client, task_queue=QUEUE, workflows=[Waiting, Cleaning], workflow_runner=runner)


async def test_a_signal_far_into_a_later_run_is_found_open_and_closed(
    temporal: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "_EVENTS", 3)
    first = under(temporal, EnvironmentKeyRing(DOCUMENT.dump()))
    other = under(temporal, EnvironmentKeyRing(DOCUMENT.promoted(OTHER).dump()))
    before, asked = datetime.now(UTC) - timedelta(seconds=1), Executions(first)
    for number in range(10):  # More than are looked into at a time.
        handle = await first.start_workflow(SANDBOX_WORKFLOW, False, id=f"sandbox/s/{number}", task_queue=QUEUE)
    for _ in range(7):
        await handle.signal("tell", "more")
    told: list[None] = []
    await eventually(first.count_workflows, lambda counted: counted.count == 10, "ten runs")
    assert await asked.later_with(OTHER, before, lambda: told.append(None)) == []
    assert len(told) == 10
    await other.get_workflow_handle(handle.id).signal("tell", "under the other key")
    assert await asked.later_with(OTHER, before) == [handle.id]
    await handle.terminate()
    assert await asked.later_with(OTHER, before) == [handle.id]
    monkeypatch.setattr(executions, "NAMED", 1)
    assert 1 <= len(await asked.later_with(FIRST, before)) < 10, "one is enough to say no"


async def test_a_heartbeat_of_an_activity_that_still_runs_is_found(temporal: Client) -> None:
    first = under(temporal, EnvironmentKeyRing(DOCUMENT.dump()))
    other = under(temporal, EnvironmentKeyRing(DOCUMENT.promoted(OTHER).dump()))
    before, end = datetime.now(UTC) - timedelta(seconds=1), asyncio.Event()

    @activity.defn
    async def beat() -> None:
        activity.heartbeat("where it is")
        await end.wait()

    async with worker(first), Worker(other, task_queue="beating", activities=[beat]):
        handle = await first.start_workflow(SANDBOX_WORKFLOW, True, id="sandbox/s/1", task_queue=QUEUE)
        await eventually(
            lambda: Executions(first).later_with(OTHER, before), lambda ids: ids == [handle.id], "the heartbeat"
        )
        await handle.terminate()
        end.set()


async def test_a_result_that_a_paused_schedule_keeps_holds_its_key(
    temporal: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_soon(monkeypatch)
    ring = FileKeyRing(tmp_path / "ring.json")
    ring.create()
    old = ring.document().primary.id
    client = under(temporal, FileKeyRing(ring.path))
    await ensure_schedules(client, QUEUE)
    schedule = client.get_schedule_handle(CLEAN_STORAGE_SCHEDULE)
    await schedule.pause()
    removal = Removal(Executions(client), [], SOON)

    async def cleaned() -> None:
        await schedule.trigger()
        query = f"WorkflowType = '{CLEAN_STORAGE_WORKFLOW}' AND ExecutionStatus = 'Completed'"
        await eventually(lambda: client.count_workflows(query), lambda found: found.count == 1, "a clean-up")

    async def refusal() -> set[str]:
        try:
            await removal.remove(ring, old)
        except KeyNeeded as needed:
            return {reason.kind for reason in needed.reasons}
        return set()

    async with worker(client):
        await cleaned()
        ring.change(with_fresh_primary(ring.document()))
        await asyncio.sleep(SETTLES_S)
        assert await renew_schedules(client) == [CLEAN_STORAGE_SCHEDULE]

        # Temporal forgets the clean-up; what its schedule keeps of it stays.
        await forgotten(client, f"WorkflowType = '{CLEAN_STORAGE_WORKFLOW}'")
        assert await refusal() == {"schedules"}, "paused by an operator, it is not run; it keeps the result"

        await cleaned()
        await eventually(refusal, lambda kinds: kinds == {"still_used"}, "that the run was given the old result")


async def test_renewing_the_schedule_replaces_the_result_that_it_keeps(temporal: Client) -> None:
    await ensure_schedules(temporal, QUEUE)
    async with worker(temporal):
        began = datetime.now(UTC) - timedelta(seconds=1)
        assert await Executions(temporal).schedules_without_result_since(began) == [], "it keeps none"
        await renew_schedules(temporal)
        await eventually(temporal.count_workflows, lambda counted: counted.count == 1, "a clean-up")
        since = Executions(temporal).schedules_without_result_since
        await eventually(lambda: since(began), lambda ids: ids == [], "its end")
        assert await since(datetime.now(UTC)) == [CLEAN_STORAGE_SCHEDULE]


async def test_what_cannot_be_read_counts_as_no_answer(temporal: Client, tmp_path: Path) -> None:
    ring = FileKeyRing(tmp_path / "ring.json")
    ring.create()
    old = ring.document().primary.id
    ring.change(with_fresh_primary(ring.document()))
    values = MemoryValues()
    await values.fill(Envelope(ring), 2)
    holder = SealedHolder("held", values, Envelope(ring))
    removal = Removal(Executions(temporal), [holder], SOON)
    await asyncio.sleep(1.5)
    document = ring.document()
    assert await removal.reasons(document, document.usable(old)) == []
    await values.put(1, b"no sealed value")
    values.rows["000002"] = SealedRow("000002", place(2), b"", "it is missing")
    [reason] = await removal.reasons(document, document.usable(old))
    assert (reason.kind, reason.count, reason.examples) == ("values", 2, ("held",))
    for reports in (await verify([holder]), await rewrap([holder])):
        assert [fault.place for fault in reports[0].faults] == [place(1), place(2)]
        assert reports[0].faults[1].reason == "it is missing"


async def test_a_run_that_was_reset_holds_the_keys_of_the_run_before_it_also_once_that_is_deleted(
    temporal: Client, tmp_path: Path
) -> None:
    ring = FileKeyRing(tmp_path / "ring.json")
    ring.create()
    old = ring.document().primary.id
    client = under(temporal, EnvironmentKeyRing(ring.document().dump()))
    service, namespace = client.workflow_service, client.namespace
    async with worker(client):
        handle = await client.start_workflow(SANDBOX_WORKFLOW, False, id="sandbox/s/1", task_queue=QUEUE)
        await handle.signal("tell", "under the old key")

        async def completed_tasks() -> list[int]:
            history = await handle.fetch_history()
            return [
                each.event_id for each in history.events if each.HasField("workflow_task_completed_event_attributes")
            ]

        await eventually(completed_tasks, bool, "its first task")
    ring.change(with_fresh_primary(ring.document()))
    document = ring.document()
    retired_at = document.usable(old).retired_at
    assert retired_at is not None
    base = WorkflowExecution(workflow_id=handle.id, run_id=(await handle.describe()).run_id)
    reset = await service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=namespace,
            workflow_execution=base,
            workflow_task_finish_event_id=(await completed_tasks())[-1],
            request_id="reset",
            reason="a test",
        )
    )
    assert reset.run_id != base.run_id

    await service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(namespace=namespace, workflow_execution=base)
    )

    async def base_is_there() -> bool:
        request = GetWorkflowExecutionHistoryRequest(namespace=namespace, execution=base, maximum_page_size=1)
        try:
            await service.get_workflow_execution_history(request)
        except RPCError as error:
            return error.status is not RPCStatusCode.NOT_FOUND
        return True

    await eventually(base_is_there, lambda there: not there, "the deletion of the run before")
    later_with = Executions(client).later_with
    await eventually(lambda: later_with(old, retired_at), lambda ids: ids == [handle.id], "the run that was reset")
    await client.get_workflow_handle(handle.id).terminate()
    assert await later_with(old, retired_at) == [handle.id]
    with pytest.raises(KeyNeeded):
        await Removal(Executions(client), [], Times(timedelta(0), timedelta(0))).remove(ring, old)
