"""The provider's timers, with minutes that last a fraction of a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from daytona import AsyncSandbox, CreateSandboxFromSnapshotParams

from tests.local_daytona.conftest import StartTrivial, Trivial
from tests.local_daytona.test_lifecycle import has_state, is_gone

MINUTE_S = 0.5


@pytest.fixture
async def quick(tmp_path: Path, start_trivial: StartTrivial) -> AsyncIterator[Trivial]:
    """A server whose minutes last half a second."""
    async with start_trivial(tmp_path / "data", minute_s=MINUTE_S, check_period_s=0.02) as server:
        yield server


async def create(quick: Trivial, **more: Any) -> AsyncSandbox:
    return await quick.daytona.create(CreateSandboxFromSnapshotParams(**more))


async def some_minutes(count: float) -> None:
    await asyncio.sleep(count * MINUTE_S)


async def test_an_idle_sandbox_is_stopped(quick: Trivial) -> None:
    sandbox = await create(quick, auto_stop_interval=1)

    shown = await has_state(quick, "stopped", sandbox.id)

    assert shown["desiredState"] == "stopped"
    assert shown["errorReason"] is None


async def test_an_interval_of_zero_turns_auto_stop_off(quick: Trivial) -> None:
    sandbox = await create(quick, auto_stop_interval=0)
    witness = await create(quick, auto_stop_interval=1)

    await has_state(quick, "stopped", witness.id)

    await has_state(quick, "started", sandbox.id)


async def test_looking_at_a_sandbox_is_not_activity(quick: Trivial) -> None:
    sandbox = await create(quick, auto_stop_interval=1)
    # `has_state` looks all the time; the labels are set on the way.
    await sandbox.set_labels({"seen": "yes"})
    await has_state(quick, "stopped", sandbox.id)


async def last_activity(quick: Trivial, sandbox: AsyncSandbox) -> str:
    _, shown = await quick.api.ask("GET", f"/api/sandbox/{sandbox.id}")
    return str(shown["lastActivityAt"])


async def test_a_toolbox_request_is_activity_when_it_begins_and_while_it_is_open(quick: Trivial) -> None:
    sandbox = await create(quick, auto_stop_interval=0)
    at_rest = await last_activity(quick, sandbox)

    execute = asyncio.create_task(sandbox.process.exec(f"sleep {4 * MINUTE_S}"))
    seen = set()
    while not execute.done():
        seen.add(await last_activity(quick, sandbox))
        await asyncio.sleep(0.02)

    assert (await execute).result == sandbox.id
    assert len(seen - {at_rest}) >= 2


async def test_a_toolbox_request_may_say_that_it_is_no_activity(quick: Trivial) -> None:
    sandbox = await create(quick, auto_stop_interval=0)
    at_rest = await last_activity(quick, sandbox)

    status, _ = await quick.api.ask(
        "POST",
        f"/toolbox/{sandbox.id}/process/execute",
        json={"command": f"sleep {MINUTE_S}"},
        headers={"X-Daytona-Skip-Last-Activity-Update": "true"},
    )

    assert status == 200
    assert await last_activity(quick, sandbox) == at_rest


async def test_a_new_interval_counts_from_the_last_activity(quick: Trivial) -> None:
    sandbox = await create(quick, auto_stop_interval=0)
    await sandbox.set_autostop_interval(1)
    await has_state(quick, "stopped", sandbox.id)


async def test_a_stopped_sandbox_is_archived(quick: Trivial) -> None:
    sandbox = await create(quick, auto_archive_interval=1)
    await sandbox.stop()
    await has_state(quick, "archived", sandbox.id)


@pytest.mark.parametrize("archived", [False, True])
async def test_a_stopped_or_archived_sandbox_is_deleted_after_its_interval(quick: Trivial, archived: bool) -> None:
    sandbox = await create(quick)
    await sandbox.stop()
    if archived:
        await sandbox.archive()
        await has_state(quick, "archived", sandbox.id)
    await sandbox.set_auto_delete_interval(1)
    await is_gone(quick, sandbox.id)


async def test_a_running_sandbox_is_never_auto_deleted(quick: Trivial) -> None:
    sandbox = await create(quick, auto_delete_interval=1, auto_stop_interval=0)
    await some_minutes(3)
    await has_state(quick, "started", sandbox.id)


async def test_an_idle_ephemeral_sandbox_is_deleted(quick: Trivial) -> None:
    sandbox = await create(quick, ephemeral=True, auto_stop_interval=1)
    await is_gone(quick, sandbox.id)


@pytest.mark.parametrize("state", ["started", "stopped", "archived", "error"])
async def test_the_end_of_the_time_to_live_destroys_whatever_the_state(quick: Trivial, state: str) -> None:
    if state == "error":
        await quick.faults.add(effect="start_error")
    _, shown = await quick.api.ask("POST", "/api/sandbox", json={"autoStopInterval": 0})
    path = f"/api/sandbox/{shown['id']}"
    if state in ("stopped", "archived"):
        await quick.api.ask("POST", f"{path}/stop")
        await has_state(quick, "stopped", shown["id"])
    if state == "archived":
        await quick.api.ask("POST", f"{path}/archive")
    await has_state(quick, state, shown["id"])

    await quick.api.ask("POST", f"{path}/ttl/1")

    await is_gone(quick, shown["id"])


async def test_activity_does_not_prolong_the_time_to_live(quick: Trivial) -> None:
    sandbox = await create(quick, ttl_minutes=2)

    async def keep_active() -> None:
        while True:
            await quick.api.ask("POST", f"/api/sandbox/{sandbox.id}/last-activity")
            await asyncio.sleep(0.05)

    active = asyncio.create_task(keep_active())
    try:
        await is_gone(quick, sandbox.id)
    finally:
        active.cancel()


async def test_a_timer_that_is_due_in_the_middle_of_a_change_waits_for_its_end(quick: Trivial) -> None:
    await quick.faults.add(effect="start_delay", seconds=3 * MINUTE_S)

    _, shown = await quick.api.ask("POST", "/api/sandbox", json={"ttlMinutes": 1})

    await is_gone(quick, shown["id"])
    assert quick.runtime.starts == [shown["id"]]


async def test_a_failure_of_one_sandbox_does_not_stop_the_care_for_others(
    quick: Trivial, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = await create(quick, auto_stop_interval=1)
    healthy = await create(quick, auto_stop_interval=1)
    save = quick.folder.save

    async def full_for_one(record: Any) -> None:
        if record.id == broken.id:
            raise OSError("no space left on device")
        await save(record)

    with monkeypatch.context() as patch:
        patch.setattr(quick.folder, "save", full_for_one)
        await has_state(quick, "stopped", healthy.id)
    await has_state(quick, "stopped", broken.id)
