"""The work is kept: with `on_end: download` every workspace is saved before its sandbox is deleted."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from temporalio.testing import WorkflowEnvironment

from activities.clients import ProviderPool
from activities.provider import ProviderAccess
from activities.stream_requests import StreamBroken
from sandhold.client import Session
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.names import sandbox_workflow_id
from sandhold.contracts.transfers import SavedWorkspace
from sandhold.github import GitHub
from tests.local_daytona_server import LocalDaytona
from tests.stack import RING, Stack, running_stack
from tests.workflows.calls import call_ok, creates, exec_ok
from tests.workflows.test_endings import WAYS, Way, opened_with_a_timeout
from tests.workflows.test_killed_worker import kill, worker_process
from tests.workflows.waiting import eventually
from worker import activities_of, build_workers

pytestmark = pytest.mark.storage("folder", "s3")

DOWNLOAD = r"/toolbox/[^/]+/files/.*download.*"
MIB = 1024 * 1024
UPLOAD = r"/toolbox/[^/]+/files/.*upload.*"


async def with_work(session: Session, sandbox_id: str) -> None:
    """A sandbox in which a file holds its name."""
    await creates(session, sandbox_id=sandbox_id)
    await exec_ok(session, sandbox_id, f"echo {sandbox_id} >work")


async def work_in(session: Session, saved: SavedWorkspace | None) -> str:
    """What the saved file holds; the archive is checked against what is told of it."""
    assert saved is not None
    assert saved.error is None, saved.error
    assert saved.session_path is not None
    data = await session.files.read(saved.session_path)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (saved.archive_bytes, saved.sha256)
    plain = subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        names = {member.name.removeprefix("./"): member for member in tar.getmembers()}
        assert len(names) >= saved.files
        member = tar.extractfile(names["work"])
        assert member is not None
        return member.read().decode().strip()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_however_a_session_ends_the_work_in_its_running_and_stopped_sandbox_is_saved(
    stack: Stack, way: Way
) -> None:
    kept = Way(way.reason, way.status, way.by, {**way.policy, "on_end": "download"}, way.execution_timeout)  # type: ignore[dict-item]
    session = await (
        stack.open(**kept.policy) if kept.execution_timeout is None else opened_with_a_timeout(stack, kept)
    )
    await asyncio.gather(with_work(session, "running"), with_work(session, "stopped"))
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": "stopped", "action": "stop"})
    if kept.by is not None:
        await kept.by(stack.temporal.get_workflow_handle(session.workflow_id))
    outcome = await session.wait_for_end()
    assert outcome.reason == kept.reason
    assert {row.sandbox_id: row.outcome for row in outcome.sandboxes} == {"running": "deleted", "stopped": "deleted"}
    for row in outcome.sandboxes:
        assert await work_in(session, row.saved) == row.sandbox_id
    assert await stack.provider_sandboxes(session) == []
    paths = [each.path async for each in session.files.list()]
    assert paths == ["workspaces/running-g1.tar.zst", "workspaces/stopped-g1.tar.zst"]


async def test_a_deleted_sandbox_is_saved_too_and_each_generation_by_itself(stack: Stack) -> None:
    session = await stack.open(on_end="download")
    for generation in ("one", "two"):
        await creates(session, sandbox_id="box")
        await exec_ok(session, "box", f"echo {generation} >work")
        deleted = await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": "box", "action": "delete"})
        assert await work_in(session, SavedWorkspace.model_validate(deleted["saved"])) == generation
    [shown] = (await session.show()).sandboxes
    assert shown.saved is not None
    assert shown.saved.session_path == "/workspaces/box-g2.tar.zst"
    again = await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": "box", "action": "delete"})
    assert again["state"] == "deleted"
    [row] = (await session.end()).sandboxes
    assert row.saved == shown.saved


async def test_what_cannot_be_saved_is_told_and_deleted_all_the_same(stack: Stack) -> None:
    session = await stack.open(on_end="download", storage_quota_bytes=MIB)
    await creates(session, sandbox_id="box")
    await exec_ok(session, "box", "for n in $(seq 50); do head -c 30000 /dev/urandom >work-$n; done")
    [row] = (await session.end()).sandboxes
    assert row.saved is not None
    assert row.saved.error is not None
    assert (row.outcome, row.saved.session_path, row.saved.error.code) == ("deleted", None, ErrorCode.QUOTA_EXCEEDED)
    assert await stack.provider_sandboxes(session) == []
    assert [each async for each in session.files.list()] == []


async def test_a_workspace_is_saved_whatever_a_file_of_the_session_may_have(stack: Stack) -> None:
    session = await stack.open(on_end="download", file_quota_bytes=1024)
    await with_work(session, "box")
    await exec_ok(session, "box", "head -c 50000 /dev/urandom >large")
    [row] = (await session.end()).sandboxes
    assert await work_in(session, row.saved) == "box"
    assert row.saved is not None
    assert (row.saved.bytes, row.saved.skipped_count) == (50004, 0)


@pytest.mark.parametrize(
    ("in_the_way", "saved_as"),
    [
        ("workspaces", "/workspaces-2/box-g1.tar.zst"),
        ("workspaces/box-g1.tar.zst/notes", "/workspaces-2/box-g1.tar.zst"),
        ("workspaces/box-g1.tar.zst", "/workspaces/box-g1.tar.zst"),
    ],
)
async def test_a_stored_file_in_the_way_of_a_save_does_not_keep_it_from_being_made(
    stack: Stack, in_the_way: str, saved_as: str
) -> None:
    session = await stack.open(on_end="download")
    await with_work(session, "box")
    await session.files.write(in_the_way, b"a note")
    [row] = (await session.end()).sandboxes
    assert await work_in(session, row.saved) == "box"
    assert row.saved is not None
    assert row.saved.session_path == saved_as
    if in_the_way != saved_as.strip("/"):
        assert await session.files.read(in_the_way) == b"a note"


async def test_a_save_that_takes_too_long_is_given_up(stack: Stack) -> None:
    session = await stack.open(on_end="download", save_timeout_s=1.5)
    await with_work(session, "box")
    await stack.faults.add(path=DOWNLOAD, effect="delay", seconds=20.0)
    [row] = (await session.end()).sandboxes
    assert row.saved is not None
    assert row.saved.error is not None
    assert (row.outcome, row.saved.error.code) == ("deleted", ErrorCode.TIMEOUT)
    assert await stack.provider_sandboxes(session) == []


async def test_attempts_at_a_save_that_fail_use_up_its_time_together(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(_: object) -> SavedWorkspace:
        await asyncio.sleep(0.4)
        raise StreamBroken("as it always does")

    monkeypatch.setattr("activities.keeping._Saving.run", breaks)
    session = await stack.open(on_end="download", save_timeout_s=2.0)
    await with_work(session, "box")
    [row] = (await session.end()).sandboxes
    assert row.saved is not None
    assert row.saved.error is not None
    assert (row.outcome, row.saved.error.code) == ("deleted", ErrorCode.TIMEOUT)
    assert row.saved.error.message.startswith("the workspace was not saved within 2 s: a stream of the sandbox broke")


async def test_a_save_that_nobody_took_up_in_its_time_is_made_once_somebody_can(
    temporal: WorkflowEnvironment, stack_daytona: LocalDaytona, tmp_path: Path
) -> None:
    async with running_stack(
        temporal.client, stack_daytona, tmp_path, task_queue="sandhold-nobody-saves", workers=False
    ) as stack:
        access = ProviderAccess(ProviderPool(stack.settings, stack.vault), stack.settings, stack.deployment)
        github = GitHub(stack.settings, stack.vault)
        activities = activities_of(temporal.client, stack.settings, access, stack.vault, RING, github)
        calls, followers = build_workers(temporal.client, stack.settings.task_queue, activities=activities)
        async with calls:
            session = await stack.open(on_end="download", save_timeout_s=10.0, save_wait_s=0.1)
            await with_work(session, "box")
            box = temporal.client.get_workflow_handle(sandbox_workflow_id(session.session_id, "box"))
            ending = asyncio.create_task(session.end())

            async def timed_out() -> int:
                events = [event async for event in box.fetch_history_events()]
                return sum(event.HasField("activity_task_timed_out_event_attributes") for event in events)

            await eventually(timed_out, bool, "the end of the time in which nobody took the save up")
            async with followers:
                [row] = (await ending).sandboxes
                assert await work_in(session, row.saved) == "box"
        assert await stack.provider_sandboxes(session) == []
        await access.pool.close()


async def test_a_save_is_tried_again_when_the_provider_fails_in_between(stack: Stack) -> None:
    session = await stack.open(on_end="download")
    await with_work(session, "box")
    [held] = await stack.provider_sandboxes(session)
    await held.stop()  # behind our back
    await stack.faults.add(route="/api/sandbox/{id}/start", effect="status", status=503, times=1)
    broken = await stack.faults.add(path=DOWNLOAD, effect="reset_during", times=2)
    [row] = (await session.end()).sandboxes
    assert await work_in(session, row.saved) == "box"
    assert await stack.faults.hits(broken) == 2


async def test_a_lost_sandbox_cannot_be_saved_and_one_that_never_started_has_nothing(stack: Stack) -> None:
    session = await stack.open(on_end="download")
    await with_work(session, "known")
    await with_work(session, "unknown")
    await stack.faults.add(method="POST", route="/api/sandbox", effect="start_error", times=1)
    assert (await session.call("daytona_create_sandbox", {"sandbox_id": "broken"})).ok is False
    for held in await stack.provider_sandboxes(session):
        if held.labels["sandhold-sandbox"] != "broken":
            await held.delete()
    assert (await session.call("daytona_exec", {"sandbox_id": "known", "command": "true"})).ok is False
    rows = {row.sandbox_id: row for row in (await session.end()).sandboxes}
    assert (rows["known"].outcome, rows["unknown"].outcome, rows["broken"].outcome) == ("lost", "deleted", "failed")
    for name in ("known", "unknown"):
        saved = rows[name].saved
        assert saved is not None
        assert saved.error is not None
        assert saved.error.code is ErrorCode.SANDBOX_LOST
    assert rows["broken"].saved is None


async def test_a_sandbox_whose_workflow_was_terminated_is_saved_by_its_new_owner(stack: Stack) -> None:
    session = await stack.open(on_end="download")
    await with_work(session, "box")
    await stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, "box")).terminate("by hand")

    async def saved() -> SavedWorkspace | None:
        return (await session.status()).sandboxes[0].saved

    found = await eventually(saved, lambda each: each is not None, "the end of the sandbox")
    assert await work_in(session, found) == "box"
    assert await stack.provider_sandboxes(session) == []


async def test_a_worker_that_is_killed_and_replaced_late_costs_neither_a_save_nor_a_fill(
    temporal: WorkflowEnvironment, stack_daytona: LocalDaytona, tmp_path: Path
) -> None:
    """For longer than a save, or the start of a sandbox for it, may take there is no worker."""
    data = random.Random(8).randbytes(20 * MIB)
    within_s = 9.0
    async with running_stack(
        temporal.client, stack_daytona, tmp_path, task_queue="sandhold-killed-transfers", workers=False
    ) as stack:
        async with worker_process(stack, tmp_path) as worker:
            limits = {"on_end": "download", "save_timeout_s": within_s, "lifecycle_timeout_s": within_s}
            saved, stopped, filled = await asyncio.gather(stack.open(**limits), stack.open(**limits), stack.open())
            await asyncio.gather(with_work(saved, "box"), with_work(stopped, "box"))
            await call_ok(stopped, "daytona_manage_sandbox", {"sandbox_id": "box", "action": "stop"})
            await exec_ok(saved, "box", "head -c 20000000 /dev/urandom >more")
            await filled.files.write("data", data)
            await filled.files.write("small", b"small")
            slow_out = await stack.faults.add(path=DOWNLOAD, effect="delay", seconds=3.0, times=1)
            slow_in = await stack.faults.add(path=UPLOAD, effect="delay", seconds=3.0, skip=1, times=1)
            slow_start = await stack.faults.add(
                method="POST", route="/api/sandbox/{id}/start", effect="delay", seconds=3.0, times=1
            )
            ending = asyncio.gather(saved.end(), stopped.end())
            creating = asyncio.create_task(
                filled.create_sandbox(sandbox_id="box", upload_files=[("data", "data"), ("small", "small")])
            )
            for rule in (slow_out, slow_in, slow_start):
                await eventually(lambda rule=rule: stack.faults.hits(rule), bool, "a transfer under way")  # type: ignore[misc]
            await kill(worker)
        await asyncio.sleep(within_s + 0.5)
        async with worker_process(stack, tmp_path):
            created = await creating
            assert (created.files_uploaded, created.files_failed) == (2, [])
            seen = await exec_ok(filled, "box", "sha256sum <data; cat small; ls -A .sandhold/streams", output="normal")
            assert seen["stdout"] == f"{hashlib.sha256(data).hexdigest()}  -\nsmall"
            for session, outcome in zip((saved, stopped), await ending, strict=True):
                assert await work_in(session, outcome.sandboxes[0].saved) == "box"
                assert [each.path async for each in session.files.list()] == ["workspaces/box-g1.tar.zst"]
            await filled.end()
            for session in (saved, stopped, filled):
                assert await stack.provider_sandboxes(session) == []
