"""Every state a sandbox can be in, every way from one to the next, and every way that is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from daytona import AsyncDaytona, AsyncSandbox, CreateSandboxFromSnapshotParams
from daytona.common.errors import (
    DaytonaBadRequestError,
    DaytonaConflictError,
    DaytonaError,
    DaytonaNotFoundError,
)

from tests.local_daytona.conftest import Trivial

NAME = "subject"


async def create(trivial: Trivial, **more: Any) -> AsyncSandbox:
    return await trivial.daytona.create(CreateSandboxFromSnapshotParams(name=NAME, **more))


async def has_state(trivial: Trivial, state: str, key: str = NAME) -> dict[str, Any]:
    """The sandbox once it is in `state`."""
    async with asyncio.timeout(20):
        while True:
            status, shown = await trivial.api.ask("GET", f"/api/sandbox/{key}")
            if status == 200 and shown["state"] == state:
                assert isinstance(shown, dict)
                return shown
            await asyncio.sleep(0.01)


async def is_gone(trivial: Trivial, key: str) -> None:
    """Returns when the sandbox is not found any more."""
    async with asyncio.timeout(20):
        while (await trivial.api.ask("GET", f"/api/sandbox/{key}"))[0] != 404:
            await asyncio.sleep(0.01)


# The way there: what brings a sandbox into each state and holds it there.


async def creating(trivial: Trivial) -> None:
    await trivial.faults.add(effect="start_delay", seconds=600)
    trivial.later(trivial.api.ask("POST", "/api/sandbox", json={"name": NAME}))


async def started(trivial: Trivial) -> None:
    await create(trivial)


async def stopping(trivial: Trivial) -> None:
    await create(trivial)
    trivial.runtime.kills.clear()
    await trivial.api.ask("POST", f"/api/sandbox/{NAME}/stop")


async def stopped(trivial: Trivial) -> None:
    await (await create(trivial)).stop()


async def starting(trivial: Trivial) -> None:
    await stopped(trivial)
    await trivial.faults.add(effect="start_delay", seconds=600)
    await trivial.api.ask("POST", f"/api/sandbox/{NAME}/start")


async def archived(trivial: Trivial) -> None:
    await stopped(trivial)
    await trivial.api.ask("POST", f"/api/sandbox/{NAME}/archive")


async def restoring(trivial: Trivial) -> None:
    await archived(trivial)
    await has_state(trivial, "archived")
    await trivial.faults.add(effect="start_delay", seconds=600)
    await trivial.api.ask("POST", f"/api/sandbox/{NAME}/start")


async def error(trivial: Trivial) -> None:
    await trivial.faults.add(effect="start_error", times=1)
    await trivial.api.ask("POST", "/api/sandbox", json={"name": NAME})


async def recoverable_error(trivial: Trivial) -> None:
    await trivial.faults.add(effect="start_error", recoverable=True, times=1)
    await trivial.api.ask("POST", "/api/sandbox", json={"name": NAME})


async def destroying(trivial: Trivial) -> None:
    await create(trivial)
    await trivial.faults.add(effect="delete_hangs")
    await trivial.api.ask("DELETE", f"/api/sandbox/{NAME}")


# What each state answers to each operation. 200 is accepted; the sandbox is then in the state named.

IN_PROGRESS = (409, "Sandbox state change in progress")
NOT_STARTABLE = (400, "not in valid state")
NOT_STOPPABLE = (400, "not in a stoppable state")
NOT_STOPPED = (400, "not stopped")
NOT_RECOVERABLE = (400, "not in a recoverable error state")

TRANSITIONS: dict[Callable[[Trivial], Awaitable[None]], dict[str, tuple[int, str]]] = {
    creating: {
        "start": IN_PROGRESS,
        "stop": IN_PROGRESS,
        "archive": IN_PROGRESS,
        "recover": IN_PROGRESS,
        "delete": IN_PROGRESS,
    },
    started: {
        "start": (200, "started"),
        "stop": (200, "stopped"),
        "archive": NOT_STOPPED,
        "recover": NOT_RECOVERABLE,
        "delete": (200, "destroyed"),
    },
    stopping: {
        "start": IN_PROGRESS,
        "stop": IN_PROGRESS,
        "archive": IN_PROGRESS,
        "recover": IN_PROGRESS,
        "delete": IN_PROGRESS,
    },
    stopped: {
        "start": (200, "started"),
        "stop": NOT_STOPPABLE,
        "archive": (200, "archived"),
        "recover": NOT_RECOVERABLE,
        "delete": (200, "destroyed"),
    },
    starting: {
        "start": IN_PROGRESS,
        "stop": IN_PROGRESS,
        "archive": IN_PROGRESS,
        "recover": IN_PROGRESS,
        "delete": IN_PROGRESS,
    },
    archived: {
        "start": (200, "started"),
        "stop": NOT_STOPPABLE,
        "archive": NOT_STOPPED,
        "recover": NOT_RECOVERABLE,
        "delete": (200, "destroyed"),
    },
    restoring: {
        "start": IN_PROGRESS,
        "stop": IN_PROGRESS,
        "archive": IN_PROGRESS,
        "recover": IN_PROGRESS,
        "delete": IN_PROGRESS,
    },
    error: {
        "start": NOT_STARTABLE,
        "stop": NOT_STOPPABLE,
        "archive": NOT_STOPPED,
        "recover": NOT_RECOVERABLE,
        "delete": (200, "destroyed"),
    },
    recoverable_error: {
        "start": NOT_STARTABLE,
        "stop": NOT_STOPPABLE,
        "archive": NOT_STOPPED,
        "recover": (200, "started"),
        "delete": (200, "destroyed"),
    },
    destroying: {
        "start": IN_PROGRESS,
        "stop": IN_PROGRESS,
        "archive": IN_PROGRESS,
        "recover": IN_PROGRESS,
        "delete": IN_PROGRESS,
    },
}


@pytest.mark.parametrize(
    ("reach", "operation", "status", "outcome"),
    [
        pytest.param(reach, operation, *expected, id=f"{reach.__name__}-{operation}")
        for reach, operations in TRANSITIONS.items()
        for operation, expected in operations.items()
    ],
)
async def test_an_operation_in_a_state_is_accepted_or_refused_as_at_the_provider(
    trivial: Trivial,
    reach: Callable[[Trivial], Awaitable[None]],
    operation: str,
    status: int,
    outcome: str,
) -> None:
    await reach(trivial)
    state = reach.__name__.removeprefix("recoverable_")
    sandbox_id = await trivial.only_id()
    await has_state(trivial, state, sandbox_id)

    method, path = ("DELETE", "") if operation == "delete" else ("POST", f"/{operation}")
    answered, answer = await trivial.api.ask(method, f"/api/sandbox/{sandbox_id}{path}")

    assert answered == status, answer
    if status != 200:
        assert outcome in answer["message"]
        assert (await has_state(trivial, state, sandbox_id))["id"] == sandbox_id
    elif outcome == "destroyed":
        await is_gone(trivial, sandbox_id)
    else:
        await has_state(trivial, outcome, sandbox_id)


async def test_the_client_sees_a_whole_life(daytona: AsyncDaytona) -> None:
    sandbox = await daytona.create(CreateSandboxFromSnapshotParams(name=NAME))
    await sandbox.fs.upload_file(b"kept", "/home/daytona/note")
    await sandbox.stop()
    assert sandbox.state == "stopped"
    await sandbox.start()
    assert await sandbox.fs.download_file("/home/daytona/note") == b"kept"
    await sandbox.stop()
    await sandbox.archive()
    await sandbox.start()
    assert sandbox.state == "started"
    assert (await sandbox.process.exec("cat note")).result == "kept"
    await sandbox.delete(wait=True)
    assert sandbox.state == "destroyed"


async def test_the_toolbox_of_a_sandbox_that_does_not_run_is_a_400(daytona: AsyncDaytona) -> None:
    sandbox = await daytona.create()
    await sandbox.stop()

    with pytest.raises(DaytonaBadRequestError, match=r"Is the Sandbox started\?"):
        await sandbox.process.exec("true")
    await sandbox.delete(wait=True)
    with pytest.raises(DaytonaNotFoundError):
        await sandbox.process.exec("true")


async def test_a_stop_of_a_stopped_sandbox_is_a_400(trivial: Trivial) -> None:
    sandbox = await create(trivial)
    await sandbox.stop()

    with pytest.raises(DaytonaBadRequestError, match="not in a stoppable state"):
        await sandbox.stop()


async def test_of_many_stops_at_once_exactly_one_is_accepted(trivial: Trivial) -> None:
    await create(trivial)

    answers = await asyncio.gather(*(trivial.api.ask("POST", f"/api/sandbox/{NAME}/stop") for _ in range(10)))

    assert sorted(status for status, _ in answers).count(200) == 1
    assert {status for status, _ in answers} <= {200, 400, 409}


async def test_many_starts_at_once_start_it_once(trivial: Trivial) -> None:
    sandbox = await create(trivial)
    await sandbox.stop()
    trivial.runtime.starts.clear()

    answers = await asyncio.gather(*(trivial.api.ask("POST", f"/api/sandbox/{NAME}/start") for _ in range(10)))
    await has_state(trivial, "started")

    assert trivial.runtime.starts == [sandbox.id]
    assert {status for status, _ in answers} <= {200, 409}


async def test_a_forced_stop_stops_too(trivial: Trivial) -> None:
    sandbox = await create(trivial)
    await sandbox.stop(force=True)
    assert sandbox.state == "stopped"


async def test_a_stopped_ephemeral_sandbox_is_deleted_and_its_name_free(trivial: Trivial) -> None:
    first = await create(trivial, ephemeral=True)
    assert first.auto_delete_interval == 0

    await first.stop()

    assert first.state == "destroyed"
    second = await create(trivial)
    assert second.id != first.id


async def test_an_ephemeral_sandbox_cannot_be_archived(trivial: Trivial) -> None:
    sandbox = await create(trivial, ephemeral=True)
    with pytest.raises(DaytonaBadRequestError, match="Ephemeral"):
        await sandbox.archive()


async def test_a_start_that_fails_ends_in_a_recoverable_error_with_its_reason(trivial: Trivial) -> None:
    trivial.runtime.fail_next_start("no room for another sandbox")
    with pytest.raises(DaytonaError, match="no room for another sandbox"):
        await create(trivial)

    sandbox = await trivial.daytona.get(NAME)
    assert (sandbox.state, sandbox.recoverable) == ("error", True)
    await sandbox.recover()
    assert (sandbox.state, sandbox.error_reason) == ("started", None)


async def test_a_start_that_crashes_ends_in_error_too(trivial: Trivial) -> None:
    trivial.runtime.fail_next_start(RuntimeError("unforeseen"))
    with pytest.raises(DaytonaError, match="unforeseen"):
        await create(trivial)

    assert (await trivial.daytona.get(NAME)).state == "error"


async def test_a_stop_that_crashes_ends_in_an_error_that_can_be_recovered_or_deleted(trivial: Trivial) -> None:
    sandbox = await create(trivial)
    trivial.runtime.started[sandbox.id].next_kill_failure = RuntimeError("unforeseen")
    with pytest.raises(DaytonaError, match="stopping failed: unforeseen"):
        await sandbox.stop()

    await sandbox.recover()
    await sandbox.delete(wait=True)
    assert sandbox.state == "destroyed"


async def test_a_sandbox_that_dies_is_stopped_with_the_reason_and_starts_again(trivial: Trivial) -> None:
    sandbox = await create(trivial)
    trivial.runtime.started[sandbox.id].die("out of memory")

    await sandbox.wait_for_sandbox_stop()
    await sandbox.refresh_data()

    assert sandbox.state == "stopped"
    assert sandbox.error_reason == "The sandbox ended by itself: out of memory"
    await sandbox.start()
    assert (sandbox.state, sandbox.error_reason) == ("started", None)


async def test_an_ephemeral_sandbox_that_dies_is_deleted(trivial: Trivial) -> None:
    sandbox = await create(trivial, ephemeral=True)
    trivial.runtime.started[sandbox.id].die("crashed")
    await is_gone(trivial, sandbox.id)


async def test_a_deleted_sandbox_leaves_nothing_in_the_data_folder(trivial: Trivial) -> None:
    sandbox = await create(trivial)
    deep = trivial.data_dir / "sandboxes" / sandbox.id / "home"
    (deep / "plain").write_text("x")
    (deep / "dangling").symlink_to("/nowhere")
    (deep / "outside").symlink_to(trivial.data_dir)
    (deep / "locked").mkdir(mode=0o000)
    await sandbox.delete(wait=True)

    assert list((trivial.data_dir / "sandboxes").iterdir()) == []
    assert list((trivial.data_dir / "records").iterdir()) == []
    assert trivial.data_dir.exists()


async def test_a_home_without_rights_or_bottom_is_deleted_too(daytona: AsyncDaytona) -> None:
    sandbox = await daytona.create()
    nested = 'python3 -c \'import os; [(os.mkdir("d"), os.chdir("d")) for _ in range(1100)]\''
    made = await sandbox.process.exec(f"mkdir -p shut/in && touch shut/in/f && chmod 000 shut/in shut; {nested}")
    assert made.exit_code == 0, made.result

    await sandbox.delete(wait=True)

    assert sandbox.state == "destroyed"


async def test_a_failed_write_of_a_change_changes_nothing(trivial: Trivial, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = await create(trivial)

    async def full(record: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trivial.folder, "save", full)
        status, _ = await trivial.api.ask("POST", f"/api/sandbox/{NAME}/stop")
        assert status == 500
        status, _ = await trivial.api.ask("DELETE", f"/api/sandbox/{NAME}")
        assert status == 500
        status, _ = await trivial.api.ask("POST", "/api/sandbox", json={"name": "second"})
        assert status == 500

    assert (await trivial.daytona.get(NAME)).state == "started"
    assert [row.id async for row in trivial.daytona.list()] == [sandbox.id]
    await sandbox.stop()
    assert sandbox.state == "stopped"


async def test_a_name_conflict_and_a_change_in_progress_are_told_apart_by_their_messages(trivial: Trivial) -> None:
    await starting(trivial)
    sandbox = await trivial.daytona.get(NAME)

    with pytest.raises(DaytonaConflictError, match="already exists"):
        await create(trivial)
    with pytest.raises(DaytonaConflictError, match="state change in progress"):
        await sandbox.stop()
