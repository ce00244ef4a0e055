"""The clean-up of storage: what is due goes, and nothing of which anybody may still want something."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import obstore
import pytest
from obstore.exceptions import PermissionDeniedError
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.testing import ActivityEnvironment

from activities.retention import SETTLED_AFTER, RetentionActivities
from sandhold.client import Session
from sandhold.contracts.names import CLEAN_STORAGE_SCHEDULE, session_workflow_id
from sandhold.contracts.storage import CleanStorageStep, StorageCleaned
from sandhold.schedules import ensure_schedules
from sandhold.storage import SessionStorage
from sandhold.storage.claims import CLAIM, Claim
from sandhold.storage.remains import EndMark, Remains
from tests.stack import Stack
from tests.workflows.waiting import eventually

pytestmark = pytest.mark.storage("folder", "s3")

OLD = timedelta(days=400)


@pytest.fixture
def storage(storage_url: str) -> SessionStorage:
    """A storage of its own: that of the stack is full of other tests' sessions."""
    return SessionStorage.open(storage_url)


async def clean(
    stack: Stack,
    storage: SessionStorage,
    *,
    dry_run: bool = False,
    settled_after: timedelta = timedelta(0),
    environment: ActivityEnvironment | None = None,
    client: Client | None = None,
) -> StorageCleaned:
    retention = RetentionActivities(
        client or stack.temporal, storage, stack.deployment, stack.vault, settled_after=settled_after
    )
    cleaned: StorageCleaned = await (environment or ActivityEnvironment()).run(
        retention.clean_storage, CleanStorageStep(dry_run=dry_run)
    )
    return cleaned


async def left(storage: SessionStorage) -> set[str]:
    return set(await storage.objects.sessions())


async def with_content(storage: SessionStorage, *session_ids: str) -> None:
    for session_id in session_ids:
        await storage.put_bytes(session_id, "files/a", b"12345")


async def ended(stack: Stack, **policy: float) -> str:
    session = await stack.open(**policy)
    await session.end()
    return session.session_id


async def test_only_what_is_kept_no_longer_goes(stack: Stack, storage: SessionStorage) -> None:
    runs = (await stack.open(keep_days=0.0)).session_id
    due, kept = await ended(stack, keep_days=0.0), await ended(stack, keep_days=1.0)
    await with_content(storage, runs, due, kept)
    assert (await clean(stack, storage, settled_after=SETTLED_AFTER)).sessions_removed == 0
    cleaned = await clean(stack, storage)
    assert (cleaned.looked_at, cleaned.kept_open, cleaned.kept_for_now) == (3, 1, 1)
    assert (cleaned.removed, cleaned.sessions_removed) == ([due], 1)
    assert (cleaned.objects_removed, cleaned.bytes_removed) == (1, 5)
    assert await left(storage) == {runs, kept}
    mark = await Remains(storage.objects, kept).mark()
    assert mark is not None
    assert (mark.deployment, mark.keep_days, mark.owner) == (stack.deployment, 1.0, "tests")
    assert abs(mark.ended_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert await Remains(storage.objects, runs).mark() is None


async def test_a_dry_run_tells_the_same_and_changes_nothing(stack: Stack, storage: SessionStorage) -> None:
    due, kept = await ended(stack, keep_days=0.0), await ended(stack)
    await with_content(storage, due, kept)
    told = await clean(stack, storage, dry_run=True)
    assert (told.dry_run, told.removed, told.bytes_removed) == (True, [due], 5)
    assert await left(storage) == {due, kept}
    assert [each.path async for each in storage.objects.list(kept)] == ["files/a"]
    assert await storage.objects.claimed_by() is None


async def test_the_mark_counts_once_temporal_has_forgotten(stack: Stack, storage: SessionStorage) -> None:
    now = datetime.now(UTC)
    for name, deployment, age in (
        ("due", stack.deployment, 31),
        ("young", stack.deployment, 29),
        ("foreign", "another", 400),
    ):
        await with_content(storage, name)
        mark = EndMark(deployment=deployment, ended_at=now - timedelta(days=age), keep_days=30)
        await Remains(storage.objects, name).put_mark(mark)
    cleaned = await clean(stack, storage)
    assert (cleaned.removed, cleaned.kept_for_now, cleaned.kept_undecided) == (["due"], 1, 1)
    assert await left(storage) == {"young", "foreign"}


async def test_what_nobody_knows_goes_long_after_it_was_last_written(
    stack: Stack, storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_content(storage, "nobodys", "fresh")
    written_at = Remains.last_written_at

    async def earlier(remains: Remains) -> datetime | None:
        moment = await written_at(remains)
        return moment - OLD if moment and remains.session_id == "nobodys" else moment

    monkeypatch.setattr(Remains, "last_written_at", earlier)
    cleaned = await clean(stack, storage)
    assert (cleaned.removed, cleaned.kept_for_now) == (["nobodys"], 1)


async def test_what_cannot_be_read_of_one_session_is_kept_and_holds_up_no_other(
    stack: Stack, storage: SessionStorage
) -> None:
    mark = EndMark(deployment=stack.deployment, ended_at=datetime.now(UTC) - OLD, keep_days=1)
    for name in ("aaa", "mmm", "zzz"):
        await with_content(storage, name)
        await Remains(storage.objects, name).put_mark(mark)
    await storage.put_bytes("aaa", "ended.json", b"")
    await stack.temporal.start_workflow("AgentSession", "nonsense", id=session_workflow_id("mmm"), task_queue="nobody")
    await stack.temporal.get_workflow_handle(session_workflow_id("mmm")).terminate("only its record is needed")
    told = await clean(stack, storage, dry_run=True)
    assert (told.removed, told.unreadable) == (["zzz"], ["aaa", "mmm"])
    cleaned = await clean(stack, storage)
    assert (cleaned.removed, cleaned.kept_unreadable, cleaned.unreadable) == (["zzz"], 2, ["aaa", "mmm"])
    assert await left(storage) == {"aaa", "mmm"}


async def test_a_mark_that_nobody_can_read_is_written_anew_while_temporal_knows_better(
    stack: Stack, storage: SessionStorage
) -> None:
    due, kept = await ended(stack, keep_days=0.0), await ended(stack, keep_days=1.0)
    for session_id in (due, kept):
        await with_content(storage, session_id)
        await storage.put_bytes(session_id, "ended.json", b"{")
    cleaned = await clean(stack, storage)
    assert (cleaned.removed, cleaned.kept_for_now, cleaned.kept_unreadable) == ([due], 1, 0)
    mark = await Remains(storage.objects, kept).mark()
    assert mark is not None
    assert mark.keep_days == 1.0


async def test_what_must_not_be_removed_of_one_session_holds_up_no_other(
    stack: Stack, storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sorted([await ended(stack, keep_days=0.0), await ended(stack, keep_days=0.0)])
    await with_content(storage, first, second)
    delete = obstore.delete_async

    async def refusing(store: Any, paths: Any) -> None:
        if first in str(paths):
            raise PermissionDeniedError("not this one")
        await delete(store, paths)

    monkeypatch.setattr(obstore, "delete_async", refusing)
    cleaned = await clean(stack, storage)
    assert (cleaned.removed, cleaned.unreadable) == ([second], [first])


async def test_what_an_earlier_session_of_the_id_left_is_kept_as_long_as_that_one_wanted(
    stack: Stack, storage: SessionStorage
) -> None:
    marked, claimed = await ended(stack, keep_days=0.0), await ended(stack, keep_days=0.0)
    await with_content(storage, marked, claimed)
    mark = EndMark(deployment=stack.deployment, ended_at=datetime.now(UTC) - timedelta(days=5), keep_days=30)
    await Remains(storage.objects, marked).put_mark(mark)
    await storage.put_bytes(claimed, CLAIM, Claim(run_id="of another", owner="alice").model_dump_json().encode())
    assert (await clean(stack, storage)).kept_for_now == 2
    assert await Remains(storage.objects, marked).mark() == mark
    assert await left(storage) == {marked, claimed}


async def test_in_anothers_storage_the_unknown_stays(
    stack: Stack, storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.objects.claim("another deployment")
    known = await ended(stack, keep_days=0.0)
    await with_content(storage, "theirs", known)

    async def long_ago(remains: Remains) -> datetime | None:
        return datetime.now(UTC) - OLD

    monkeypatch.setattr(Remains, "last_written_at", long_ago)
    cleaned = await clean(stack, storage)
    assert (cleaned.removed, cleaned.kept_undecided) == ([known], 1)


async def test_a_session_closed_by_force_keeps_its_storage_while_a_sandbox_of_it_runs(
    stack: Stack, storage: SessionStorage
) -> None:
    session = await stack.open(keep_days=0.0)
    await session.create_sandbox(sandbox_id="box")
    await with_content(storage, session.session_id)
    await stack.faults.add(method="DELETE", route="/api/sandbox/{id}", effect="status", status=503)
    await stack.temporal.get_workflow_handle(session.workflow_id).terminate("by hand")
    cleaned = await clean(stack, storage)
    assert (cleaned.kept_open, cleaned.sessions_removed) == (1, 0)
    await stack.faults.clear()
    await session.end(timeout=60)

    async def gone() -> bool:
        return (await clean(stack, storage)).sessions_removed == 1

    await eventually(gone, bool, "the removal once nothing of the session runs")


async def test_nothing_goes_while_temporal_does_not_answer(stack: Stack, storage: SessionStorage) -> None:
    await with_content(storage, await ended(stack, keep_days=0.0))
    unreachable = await Client.connect("127.0.0.1:1", lazy=True)
    with pytest.raises((RPCError, RuntimeError)):
        await clean(stack, storage, client=unreachable)
    assert len(await left(storage)) == 1


async def test_another_attempt_goes_on_where_the_one_before_was(stack: Stack, storage: SessionStorage) -> None:
    first, second = sorted([await ended(stack, keep_days=0.0), await ended(stack, keep_days=0.0)])
    await with_content(storage, first, second)
    environment = ActivityEnvironment()
    beats: list[dict[str, object]] = []
    environment.on_heartbeat = beats.append
    before = {"after": first, "done": {"looked_at": 7, "bytes_removed": 100}}
    environment.info = dataclasses.replace(environment.info, heartbeat_details=[before])
    cleaned = await clean(stack, storage, environment=environment)
    assert (cleaned.looked_at, cleaned.bytes_removed, cleaned.removed) == (8, 105, [second])
    assert await left(storage) == {first}
    assert beats


@pytest.fixture
async def schedule(stack: Stack) -> AsyncIterator[str]:
    await ensure_schedules(stack.temporal, stack.settings.task_queue)
    yield CLEAN_STORAGE_SCHEDULE
    await stack.temporal.get_schedule_handle(CLEAN_STORAGE_SCHEDULE).delete()


async def test_the_schedule_cleans_and_stays_as_an_operator_left_it(stack: Stack, schedule: str) -> None:
    handle = stack.temporal.get_schedule_handle(schedule)
    await handle.pause(note="not now")
    assert await ensure_schedules(stack.temporal, "another-queue") == []
    described = await handle.describe()
    assert described.schedule.state.paused
    assert described.schedule.action.task_queue == "another-queue"  # type: ignore[union-attr]
    assert await ensure_schedules(stack.temporal, stack.settings.task_queue) == []
    await handle.trigger()

    async def cleaned() -> list[StorageCleaned]:
        actions = (await handle.describe()).info.recent_actions
        ids = [each.action.workflow_id for each in actions]  # type: ignore[attr-defined]
        return [await stack.temporal.get_workflow_handle(each, result_type=StorageCleaned).result() for each in ids]

    [result] = await eventually(cleaned, bool, "the triggered clean-up")
    assert result.sessions_removed == 0


async def test_a_deployment_cleans_by_hand(stack: Stack) -> None:
    session: Session = await stack.open()
    await session.files.write(f"f-{uuid.uuid4()}", b"1")
    told = await stack.sandhold.clean_storage(dry_run=True)
    assert told.dry_run
    assert told.kept_open >= 1
