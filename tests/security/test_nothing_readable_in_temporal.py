"""Whoever reads Temporal's database or asks its server sees ids, names and sizes; nothing of what passed through."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from google.protobuf.message import Message
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import (
    DescribeScheduleRequest,
    DescribeWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
    ListSchedulesRequest,
    ListWorkflowExecutionsRequest,
)
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleSpec,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from sandhold.cli.stack.temporal_server import SQLITE_PRAGMAS, dev_server_tuning, temporal_program
from sandhold.client import Sandhold
from sandhold.contracts.names import sandbox_workflow_id, session_workflow_id
from sandhold.security import NotEncrypted
from sandhold.security.codec import ENCODING, EncryptingCodec
from sandhold.temporal import PLAIN_CONVERTER, data_converter, session_record
from tests.local_daytona_server import LocalDaytona
from tests.security.carrier import Carrier, CarrierChild, Scheduled, break_down, carry, carry_locally
from tests.stack import CONVERTER, RING, running_stack
from tests.workflows.calls import call_ok, creates, error_of_call, exec_ok
from tests.workflows.waiting import eventually

QUEUE = "carriers"


@dataclass
class Server:
    """A development server whose database lies in a file."""

    client: Client
    folder: Path
    canaries: list[str] = field(default_factory=list)

    def canary(self, what: str) -> str:
        """A value that is found nowhere else."""
        value = f"canary-{what}-{secrets.token_hex(12)}"
        self.canaries.append(value)
        return value

    def files(self) -> bytes:
        return b"".join(path.read_bytes() for path in sorted(self.folder.iterdir()))

    async def answers(self) -> AsyncIterator[Message]:
        """All that the server tells about every workflow and schedule, as it sends it."""
        service, namespace = self.client.workflow_service, self.client.namespace
        executions = await service.list_workflow_executions(ListWorkflowExecutionsRequest(namespace=namespace))
        yield executions
        for each in executions.executions:
            run = WorkflowExecution(workflow_id=each.execution.workflow_id, run_id=each.execution.run_id)
            yield await service.describe_workflow_execution(
                DescribeWorkflowExecutionRequest(namespace=namespace, execution=run)
            )
            token = b""
            while True:
                page = await service.get_workflow_execution_history(
                    GetWorkflowExecutionHistoryRequest(namespace=namespace, execution=run, next_page_token=token)
                )
                yield page
                if not (token := page.next_page_token):
                    break
        schedules = await service.list_schedules(ListSchedulesRequest(namespace=namespace))
        yield schedules
        for row in schedules.schedules:
            yield await service.describe_schedule(
                DescribeScheduleRequest(namespace=namespace, schedule_id=row.schedule_id)
            )

    async def found(self) -> set[str]:
        """The canaries that can be read, in any form, and where."""
        where = {"the database": self.files()}
        async for number, answer in _numbered(self.answers()):
            where[f"{type(answer).__name__} {number}"] = answer.SerializeToString()
        return {
            f"{canary.split('-')[1]} in {place}"
            for canary in self.canaries
            for place, data in where.items()
            if any(form in data for form in _forms(canary))
        }


async def _numbered(answers: AsyncIterator[Message]) -> AsyncIterator[tuple[int, Message]]:
    number = 0
    async for answer in answers:
        yield number, answer
        number += 1


def _forms(canary: str) -> Iterator[bytes]:
    """The value itself, and as it would be encoded."""
    random = canary.rpartition("-")[2]
    yield random.encode()
    yield random.encode().hex().encode()
    yield quote(canary, safe="").encode()
    for ahead in range(3):
        # The middle, which does not depend on what is around it.
        yield base64.b64encode(b"\0" * ahead + random.encode())[4:-4]


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("database")
    pragmas = [argument for pragma in SQLITE_PRAGMAS for argument in ("--sqlite-pragma", pragma)]
    environment = await WorkflowEnvironment.start_local(
        data_converter=CONVERTER,
        dev_server_existing_path=str(temporal_program()),
        dev_server_log_level="error",
        dev_server_database_filename=str(folder / "temporal.db"),
        dev_server_extra_args=[*dev_server_tuning(), *pragmas],
    )
    async with environment:
        yield Server(environment.client, folder)


@contextlib.asynccontextmanager
async def carriers(client: Client) -> AsyncIterator[None]:
    often = timedelta(milliseconds=50)
    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[Carrier, CarrierChild, Scheduled],
        activities=[carry, break_down, carry_locally],
        max_heartbeat_throttle_interval=often,
        default_heartbeat_throttle_interval=often,
    ):
        yield


async def test_this_search_finds_what_was_sent_without_encryption(server: Server) -> None:
    """All that follows would see a canary that was left readable."""
    config = server.client.config()
    config["data_converter"] = PLAIN_CONVERTER
    plain = Server(Client(**config), server.folder)
    canary = plain.canary("plain")
    await plain.client.start_workflow("Nobody", canary, id="plain", task_queue="nobody", memo={"memo": canary})
    answers = {"DescribeWorkflowExecutionResponse", "GetWorkflowExecutionHistoryResponse"}
    # Asked of what the server lists, which it does a moment later.
    found = await eventually(
        plain.found, lambda found: {place.split()[2] for place in found} >= answers, "the workflow among the answers"
    )
    assert "plain in the database" in found
    await plain.client.get_workflow_handle("plain").terminate()


async def test_all_that_a_workflow_can_carry_is_encrypted_and_arrives(server: Server) -> None:
    canary = server.canary("carried")
    client = server.client
    async with carriers(client):
        handle = await client.start_workflow(
            Carrier.run,
            args=[canary, 1],
            id="session/carrier",
            task_queue=QUEUE,
            memo={"memo": canary},
            static_summary=f"summary {canary}",
            static_details=f"details {canary}",
        )
        described = await handle.describe()
        assert (await described.static_summary(), await described.static_details()) == (
            f"summary {canary}",
            f"details {canary}",
        )
        assert await handle.execute_update(Carrier.change, canary) == f"changed {canary}"
        for update, begins in ((Carrier.fail, "update failed with"), (Carrier.change, "refused")):
            with pytest.raises(WorkflowUpdateFailedError) as refusal:
                await handle.execute_update(update, f"refused {canary}")
            assert isinstance(refusal.value.cause, ApplicationError)
            assert refusal.value.cause.message.startswith(begins)
            assert refusal.value.cause.details == (f"detail refused {canary}",)
        assert await handle.query(Carrier.ask, canary) == f"answer {canary}"
        with pytest.raises(WorkflowQueryFailedError, match=r"^Encoded failure$"):
            await handle.query(Carrier.ask, f"refused {canary}")
        first_run = (await handle.describe()).run_id
        await handle.signal(Carrier.tell, canary)
        await eventually(handle.describe, lambda now: now.run_id != first_run, "a continue-as-new")
        await handle.signal(Carrier.tell, canary)
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
        assert isinstance(failed.value.cause, ApplicationError)
        assert failed.value.cause.message == f"ended with {canary}", "so what it checks inside held as well"
        child = await client.get_workflow_handle("sandbox/carrier/child-1").describe()
        assert await child.memo() == {"childs": f"memo {canary}"}
        # Temporal's client encrypts these for the parent, and reads them for the child.
        assert (await child.static_summary(), await child.static_details()) == (
            f"child summary {canary}",
            f"child details {canary}",
        )
        assert (await (await handle.describe()).memo())["continued"] == f"memo {canary}"
    await _nothing_is_readable(server)


async def test_what_was_sent_without_the_key_is_refused_until_the_settings_say_that_it_is_from_before(
    server: Server,
) -> None:
    config = server.client.config()
    plain = Client(**(config | {"data_converter": PLAIN_CONVERTER}))
    forged = await plain.start_workflow(Scheduled.run, "forged", id="forged", task_queue=QUEUE, memo={"memo": "forged"})
    async with carriers(server.client):
        await eventually(
            lambda: _failed_tasks(forged), lambda found: any("NotEncrypted" in each for each in found), "a refusal"
        )
        memo = await (await plain.get_workflow_handle("forged").describe()).memo()
        assert memo == {"memo": "forged"}
        with pytest.raises(NotEncrypted, match="SANDHOLD_READ_PLAIN_HISTORIES"):
            await (await server.client.get_workflow_handle("forged").describe()).memo()
    reading = Client(**(config | {"data_converter": data_converter(RING, plain_too=True)}))
    async with carriers(reading):
        assert await reading.get_workflow_handle("forged", result_type=str).result() == "scheduled forged"


async def _failed_tasks(handle: WorkflowHandle[Any, Any]) -> list[str]:
    """What the worker answered to the workflow's tasks where it could not."""
    return [
        str(event.workflow_task_failed_event_attributes.failure)
        async for event in handle.fetch_history_events()
        if event.HasField("workflow_task_failed_event_attributes")
    ]


async def test_what_a_schedule_carries_is_encrypted_and_reaches_the_workflow_that_it_starts(server: Server) -> None:
    canary = server.canary("scheduled")
    action = ScheduleActionStartWorkflow(
        Scheduled.run,
        canary,
        id="scheduled",
        task_queue=QUEUE,
        memo={"memo": canary},
        static_summary=f"summary {canary}",
        static_details=f"details {canary}",
    )
    async with carriers(server.client):
        schedule = await server.client.create_schedule(
            "schedule", Schedule(action=action, spec=ScheduleSpec()), memo={"memo": canary}, trigger_immediately=True
        )
        described = await eventually(
            schedule.describe, lambda now: bool(now.info.recent_actions), "that the schedule has begun"
        )
        begun = described.info.recent_actions[0].action
        workflow_id = begun.workflow_id  # type: ignore[union-attr]
        assert workflow_id != "scheduled", "it has the time in its id"
        handle = server.client.get_workflow_handle(workflow_id, result_type=str)
        assert await handle.result() == f"scheduled {canary}"
        started = await handle.describe()
        assert await started.memo() == {"memo": canary}
        assert await started.static_summary() == f"summary {canary}"
        # The next one gets this one's result, which was encrypted for another id.
        await asyncio.sleep(1.1)  # the id has seconds
        await schedule.trigger()
        described = await eventually(
            schedule.describe, lambda now: len(now.info.recent_actions) == 2, "that the schedule has begun again"
        )
        again = described.info.recent_actions[1].action.workflow_id  # type: ignore[union-attr]
        assert await server.client.get_workflow_handle(again, result_type=str).result() == f"scheduled {canary} again"
    await _nothing_is_readable(server)


async def test_real_sessions_leave_nothing_readable(
    server: Server, stack_daytona: LocalDaytona, tmp_path: Path
) -> None:
    config = server.client.config()
    config["data_converter"] = PLAIN_CONVERTER
    plain = Client(**config)
    async with running_stack(server.client, stack_daytona, tmp_path, task_queue="canaries") as stack:
        # Whoever brings a Temporal client of their own sends no plain text with it.
        brought = Sandhold(plain, stack.settings)
        assert isinstance(brought.client.data_converter.payload_codec, EncryptingCodec)
        session = await brought.open_session("canaries", owner="tests", policy={"end_grace_s": 0.2})
        # Not its title: the id is made of that, and ids are not encrypted.
        box = await creates(session, env={"TOKEN": server.canary("env")})
        await exec_ok(session, box, f"echo {server.canary('command')}; echo {server.canary('stderr')} >&2; exit 3")
        big = server.canary("output")
        await exec_ok(session, box, f"for i in $(seq 2000); do echo {big}; done", output="full")
        await call_ok(
            session,
            "daytona_write_file",
            {"sandbox_id": box, "path": server.canary("path"), "content": server.canary("content")},
        )
        await error_of_call(session, "daytona_read_file", {"sandbox_id": box, "path": server.canary("missing")})
        await error_of_call(session, "daytona_exec", {"sandbox_id": server.canary("refused"), "command": "true"})
        await stack.faults.add(
            method="POST",
            route="/toolbox/{id}/process/execute",
            effect="status",
            status=400,
            body={"statusCode": 400, "message": f"the provider says {server.canary('provider')}"},
            times=1,
        )
        await session.call("daytona_exec", {"sandbox_id": box, "command": "true"})
        running = asyncio.create_task(
            session.call("daytona_exec", {"sandbox_id": box, "command": f"sleep 60 # {server.canary('running')}"})
        )
        await eventually(lambda: stack.status(session, box), lambda seen: seen.runs >= 1, "the sandbox")
        await asyncio.sleep(9.0)  # until it is followed, with heartbeats
        await session.end(server.canary("reason"))
        await running
        record = await session_record(stack.temporal, "canaries")
        assert record.start.owner == "tests"
    await _nothing_is_readable(server)
    for workflow_id in (session_workflow_id("canaries"), sandbox_workflow_id("canaries", box)):
        history = await server.client.get_workflow_handle(workflow_id).fetch_history()
        assert sum(event.ByteSize() for event in history.events) > 1000


async def _nothing_is_readable(server: Server) -> None:
    assert await server.found() == set()
    assert server.files().count(ENCODING) > 20, "they are there all the same"
