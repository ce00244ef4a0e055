"""A key is turned under a running deployment, and goes only when no value and no history can need it any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import gt
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from temporalio import workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client

from sandhold.contracts.names import CLEAN_STORAGE_SCHEDULE, SESSION_WORKFLOW, sandbox_workflow_id
from sandhold.schedules import ensure_schedules
from sandhold.security import removal, rotation
from sandhold.security.executions import OUR_WORKFLOWS, Executions, Span, keys_in
from sandhold.security.key_document import KeyDocument, RingKey
from sandhold.security.key_rings import FileKeyRing
from sandhold.security.removal import Times
from sandhold.temporal import data_converter
from tests.cli.process import Finished
from tests.cli.process import sandhold as run
from tests.local_daytona_server import LocalDaytona
from tests.security import holding
from tests.security.load import Load, load
from tests.stack import Stack, environment_of, replayer, running_stack, running_temporal
from tests.workflows.calls import creates, exec_ok
from tests.workflows.waiting import eventually


@dataclass
class Deployment:
    """A whole deployment whose key ring is in a file."""

    stack: Stack
    ring: FileKeyRing
    temporal: Client
    environment: dict[str, str] = field(repr=False)

    @property
    def primary(self) -> str:
        return self.ring.document().primary.id

    async def keys(self, *arguments: str) -> Finished:
        return await run("--json", "keys", *arguments, env=self.environment)

    async def ok(self, *arguments: str) -> Any:
        finished = await self.keys(*arguments)
        assert finished.code == 0, finished
        return finished.document

    async def runs(self, query: str = "") -> list[WorkflowExecution]:
        return await holding.executions(self.temporal, query)

    async def first_keys(self, workflow_id: str) -> set[str]:
        """The keys under which the payloads are with which the present run began."""
        events = self.temporal.get_workflow_handle(workflow_id).fetch_history_events(page_size=1)
        return keys_in(await anext(events))

    async def cleaned(self, after: datetime) -> None:
        """Have the schedule clean storage, and wait until it has completed a run that began after this."""
        executions = Executions(self.temporal)

        async def missing() -> list[str]:
            if found := await executions.schedules_without_result_since(after):
                # Passed over while another one runs.
                await self.temporal.get_schedule_handle(CLEAN_STORAGE_SCHEDULE).trigger()
            return found

        await eventually(missing, lambda ids: not ids, "a clean-up", pause_s=1)


@pytest.fixture
async def deployment(
    stack_daytona: LocalDaytona, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Deployment]:
    """One of its own. What counts in minutes elsewhere counts in seconds here."""
    holding.settle_soon(monkeypatch)
    ring = FileKeyRing(tmp_path / "ring.json")
    ring.create()
    async with running_temporal() as server:
        config = server.client.config()
        config["data_converter"] = data_converter(FileKeyRing(ring.path))
        temporal = Client(**config)
        await ensure_schedules(temporal, "turning")
        async with running_stack(
            temporal, stack_daytona, tmp_path / "data", task_queue="turning", keyring=str(ring.path)
        ) as stack:
            environment = {**environment_of(stack, tmp_path / "data"), "SANDHOLD_KEYRING": str(ring.path)}
            yield Deployment(stack, ring, temporal, environment)


def counts(answer: Any) -> dict[str, tuple[int, int, int]]:
    return {each["name"]: (each["rewrapped"], each["already"], each["failed"]) for each in answer["holders"]}


def kinds(refused: Finished) -> set[str]:
    assert (refused.code, refused.document["error"]["code"]) == (1, "key_needed"), refused
    return {reason["kind"] for reason in refused.document["error"]["reasons"]}


async def rotated_under(running: Load, deployment: Deployment) -> str:
    """Turn the key while everybody goes on; the new one, under which all is now that can be."""

    async def runs() -> list[int]:
        return [(await deployment.stack.status(used.session, used.box)).runs for used in running.used]

    before = await runs()
    once = await deployment.ok("rotate")
    assert (once["ok"], once["added"], once["primary"]) == (True, True, deployment.primary)
    done = counts(once)
    # A connection, a secret that stays and one that changes; a key for the storage of each session.
    assert done["vault"][0] >= 5
    assert done["storage"][0] >= 4
    assert (done["vault"][2], done["storage"][2]) == (0, 0)
    assert once["schedules"] == [CLEAN_STORAGE_SCHEDULE]
    assert (once["sandboxes"]["asked"] >= 4, once["sandboxes"]["failed"]) == (True, {})
    await eventually(runs, lambda now: all(map(gt, now, before)), "another run of each sandbox")
    for used in running.used:
        workflow_id = sandbox_workflow_id(used.session.session_id, used.box)
        assert await deployment.first_keys(workflow_id) == {deployment.primary}
    await running.everybody_goes_on()
    listed = {row["id"]: row["used"] for row in (await deployment.ok("list", "--used"))["keys"]}
    for key, used_by in listed.items():
        assert (used_by["vault"] > 0, used_by["storage"] > 0) == (key == deployment.primary, key == deployment.primary)
    return deployment.primary


async def test_keys_turn_twice_under_load_and_the_first_goes_when_nothing_can_need_it(deployment: Deployment) -> None:
    stack = deployment.stack
    first = deployment.primary
    await stack.vault.put_connection("alice", "daytona", SecretStr("dtn_" + "a" * 40), replaces=0)

    async with load(stack) as running:
        await running.everybody_goes_on()
        second = await rotated_under(running, deployment)
        refused = await deployment.keys("remove", first)
        assert "executions" in kinds(refused)
        third = await rotated_under(running, deployment)
    assert len({first, second, third}) == 3

    # The sessions themselves began under the first key, and are open.
    refused = await deployment.keys("remove", first)
    assert "executions" in kinds(refused)
    [told] = [each for each in refused.document["error"]["reasons"] if f"open {SESSION_WORKFLOW}" in each["text"]]
    assert (told["count"], set(told["examples"])) == (4, {used.session.workflow_id for used in running.used})
    assert deployment.ring.document().find(first) is not None

    await asyncio.gather(*(used.session.end() for used in running.used))
    refused = await deployment.keys("remove", first)
    assert "executions" in kinds(refused)
    assert all(
        "closed" in each["text"] for each in refused.document["error"]["reasons"] if each["kind"] == "executions"
    )

    listed = {row["id"]: row for row in (await deployment.ok("list", "--used"))["keys"]}
    assert [listed[key]["state"] for key in (first, second, third)] == ["decrypt_only", "decrypt_only", "primary"]
    assert (listed[first]["used"]["vault"], listed[first]["used"]["storage"]) == (0, 0)
    assert listed[first]["used"]["executions"] >= 8, "sessions and the first runs of their sandboxes"

    await holding.forgotten(deployment.temporal)
    # A clean-up that began while the key was used has left its result with the schedule, until the next one.
    await deployment.cleaned(after=datetime.now(UTC))
    assert await deployment.ok("remove", first) == {"id": first, "state": "removed"}
    removed = deployment.ring.document().find(first)
    assert removed is not None
    assert (removed.state, removed.material) == ("removed", None)
    assert (await deployment.keys("remove", first)).document["error"]["code"] == "key_unknown"
    verified = await deployment.ok("verify")
    assert verified["ok"]

    # All goes on without it.
    later = await stack.open()
    assert (await exec_ok(later, await creates(later), "echo here", output="normal"))["stdout"] == "here\n"
    await later.end()
    assert kinds(await deployment.keys("remove", third)) == {"primary"}


async def test_a_key_under_which_values_lie_stays_and_too_soon_is_told(deployment: Deployment) -> None:
    old = deployment.primary
    vault = deployment.stack.vault
    await vault.put_connection("alice", "daytona", SecretStr("dtn_" + "a" * 40), replaces=0)
    added = (await deployment.ok("add"))["id"]
    assert kinds(await deployment.keys("remove", old)) == {"primary"}
    # Nobody says whether it has ever been used somewhere.
    assert kinds(await deployment.keys("remove", added)) >= {"unknown"}
    assert await deployment.ok("promote", added) == {"primary": added}
    assert kinds(await deployment.keys("remove", old)) == {"values", "schedules", "too_soon"}
    brought = await deployment.ok("rotate", "--rewrap-only")
    assert (brought["added"], counts(brought)["vault"]) == (False, (1, 0, 0))
    # The rotation has begun a clean-up: soon it has replaced the result that the schedule keeps.
    assert kinds(await deployment.keys("remove", old)) <= {"too_soon", "schedules"}
    used_until = datetime.now(UTC) + timedelta(hours=1)
    refused = await deployment.keys("remove", old, "--used-until", f"{used_until:%Y-%m-%dT%H:%M:%SZ}")
    assert kinds(refused) == {"too_soon", "schedules", "executions"}, "the clean-up began before that"

    async def removed() -> int:
        return (await deployment.keys("remove", old)).code

    await eventually(removed, lambda code: code == 0, "its removal", pause_s=1)
    assert (await vault.connection("alice", "daytona")) is not None


async def test_a_rotation_that_was_cut_off_is_gone_on_with_and_adds_no_second_key(deployment: Deployment) -> None:
    await deployment.stack.vault.put_connection("alice", "daytona", SecretStr("dtn_" + "a" * 40), replaces=0)
    turned = deployment.ring.change(rotation.with_fresh_primary(deployment.ring.document()))  # Killed right behind it.
    finished = await deployment.keys("rotate")
    assert finished.code == 0
    assert (finished.document["added"], finished.document["primary"]) == (False, turned.primary.id)
    assert counts(finished.document)["vault"] == (1, 0, 0)
    assert "no key is added" in finished.err
    assert (await deployment.ok("rotate"))["added"]
    assert len(deployment.ring.document().keys) == 3


async def test_what_began_later_and_yet_holds_something_older_is_found(deployment: Deployment) -> None:
    """A schedule hands the last result on, and a run that is reset takes over the events of the one before."""
    old = deployment.primary
    executions = Executions(deployment.temporal)
    schedule = deployment.temporal.get_schedule_handle(CLEAN_STORAGE_SCHEDULE)
    session = await deployment.stack.open()
    await session.end()

    async def completed() -> list[WorkflowExecution]:
        return await deployment.runs("WorkflowType = 'CleanStorage' AND ExecutionStatus = 'Completed'")

    async def cleaned(times: int) -> None:
        await schedule.trigger()
        await eventually(completed, lambda runs: len(runs) == times, f"{times} clean-ups")

    await cleaned(1)
    assert await executions.schedules_with(old) == [CLEAN_STORAGE_SCHEDULE]
    later = datetime.now(UTC)
    assert await executions.later_with(old, later) == []
    # It begins a clean-up, which is given the last result under the old key.
    await deployment.ok("rotate")
    assert await executions.schedules_with(old) == []
    await eventually(completed, lambda runs: len(runs) == 2, "the clean-up")
    [found] = await executions.later_with(old, later)
    assert found.startswith(CLEAN_STORAGE_SCHEDULE)
    soon = datetime.now(UTC)
    await cleaned(3)
    assert await executions.later_with(old, soon) == [], "the next one is given the result of a run under the new key"

    reset_at = datetime.now(UTC)
    await deployment.temporal.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=deployment.temporal.namespace,
            workflow_execution=WorkflowExecution(workflow_id=session.workflow_id),
            workflow_task_finish_event_id=3,
            request_id="reset",
            reason="a test",
        )
    )
    await eventually(
        lambda: executions.later_with(old, reset_at), lambda ids: ids == [session.workflow_id], "the run that was reset"
    )
    # The new run takes up the request to end as well.
    await eventually(lambda: deployment.runs("ExecutionStatus = 'Running'"), lambda runs: not runs, "its end")


def test_every_workflow_that_a_worker_runs_is_asked_for() -> None:
    names = {workflow._Definition.must_from_class(each).name for each in replayer().config()["workflows"]}
    assert names == set(OUR_WORKFLOWS)


async def test_only_executions_that_lived_while_the_key_was_used_are_counted(deployment: Deployment) -> None:
    executions = Executions(deployment.temporal)
    before = datetime.now(UTC)
    session = await deployment.stack.open()
    await session.end()
    after = datetime.now(UTC) + timedelta(milliseconds=1)
    query = f"WorkflowId = '{session.workflow_id}' AND ExecutionStatus = 'Completed'"
    await eventually(lambda: deployment.runs(query), bool, "the closed session")
    day = timedelta(days=1)
    assert await executions.count(Span(before - day, before)) == 0
    assert await executions.count(Span(before - day, after)) == 1
    assert await executions.count(Span(before - day, None)) == 1
    assert await executions.count(Span(after, None)) == 0
    opened = await deployment.stack.open()
    await eventually(lambda: executions.count(Span(after, None)), lambda count: count == 1, "the open session")
    await opened.end()


def test_a_key_that_never_was_primary_has_no_end_of_its_use() -> None:
    document = KeyDocument.new().added(RingKey.new("decrypt_only"))
    added, now = document.keys[1], datetime.now(UTC)
    assert Times().span(added).until is None
    assert Times(used_until=now).span(added).until == now + removal.MARGIN
    assert Times(used_until=now).span(document.primary).until is None
