"""The provider's faults: no second sandbox, no lost one, no empty one in the place of a lost one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from daytona import CreateSandboxFromSnapshotParams

from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.names import provider_name
from tests.stack import Stack
from tests.workflows.calls import call_ok, creates, error_of_call, exec_ok
from tests.workflows.waiting import eventually

CREATE = {"method": "POST", "route": "/api/sandbox"}
GET = {"method": "GET", "route": "/api/sandbox/{id}"}
START = {"method": "POST", "route": "/api/sandbox/{id}/start"}
STOP = {"method": "POST", "route": "/api/sandbox/{id}/stop"}
ARCHIVE = {"method": "POST", "route": "/api/sandbox/{id}/archive"}
DELETE = {"method": "DELETE", "route": "/api/sandbox/{id}"}
LIST = {"method": "GET", "route": "/api/sandbox"}
EXECUTE = {"method": "POST", "route": "/toolbox/{id}/process/execute"}
UPLOAD = {"method": "POST", "route": "/toolbox/{id}/files/bulk-upload"}


@pytest.mark.parametrize("effect", ["answer_lost", "reset_before", "reset_during"])
async def test_a_lost_create_answer_gives_one_sandbox(stack: Stack, effect: str) -> None:
    session = await stack.open()
    rule = await stack.faults.add(**CREATE, effect=effect, times=1)
    box = await creates(session)
    assert await stack.faults.hits(rule) == 1
    assert len(await stack.provider_sandboxes(session)) == 1
    await exec_ok(session, box, "true")
    await session.end()
    assert await stack.provider_sandboxes(session) == []


@pytest.mark.parametrize("status", [429, 503])
async def test_429_and_5xx_on_every_request_of_every_step_are_waited_out(stack: Stack, status: int) -> None:
    session = await stack.open()
    # As a proxy on the way answers: nothing says that it came from inside the sandbox.
    answer = {"status": status, "body": {"statusCode": status, "message": "Come back later"}}
    if status == 429:
        answer["headers"] = {"Retry-After": "0"}

    @contextlib.asynccontextmanager
    async def each_refused_once(*routes: dict[str, str]) -> AsyncIterator[None]:
        """Every one of these routes is refused once while the block runs, and none is left unasked."""
        rules = [await stack.faults.add(**route, effect="status", **answer, times=1) for route in routes]
        yield
        hits = [await stack.faults.hits(rule) for rule in rules]
        assert hits == [1] * len(rules), dict(zip([str(route) for route in routes], hits, strict=True))

    async def manage(action: str) -> str:
        result = await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": "box", "action": action})
        return str(result["state"])

    large = "x" * 100_000 + "\n"
    async with each_refused_once(CREATE, GET):
        await creates(session, sandbox_id="box")
    async with each_refused_once(EXECUTE, GET):
        await exec_ok(session, "box", "echo kept > file")
    async with each_refused_once(UPLOAD, EXECUTE, GET):  # A large script is uploaded first, and so is a large file.
        await exec_ok(session, "box", f"#{large}echo once >> runs")
    async with each_refused_once(UPLOAD, EXECUTE, GET):
        await call_ok(session, "daytona_write_file", {"sandbox_id": "box", "path": "large", "content": large})
    async with each_refused_once(EXECUTE, GET):
        read = await call_ok(session, "daytona_read_file", {"sandbox_id": "box", "path": "runs"})
        assert read["content"] == "once\n"
    async with each_refused_once(STOP, GET):
        assert await manage("stop") == "stopped"
    async with each_refused_once(START, GET, EXECUTE):  # A call starts it.
        assert (await exec_ok(session, "box", "cat file; wc -c <large"))["stdout"].split() == ["kept", "100001"]
    async with each_refused_once(STOP, ARCHIVE, GET):
        assert await manage("archive") == "archived"
    async with each_refused_once(START, GET):
        assert await manage("start") == "started"
    asked = await stack.faults.requests(**LIST)
    assert asked == [], "the provider's list lags behind, so no step looks there"
    async with each_refused_once(DELETE, GET):
        outcome = await session.end()
    assert [row.outcome for row in outcome.sandboxes] == ["deleted"]
    assert await stack.provider_sandboxes(session) == []


async def test_a_foreign_sandbox_of_our_name_is_never_touched(stack: Stack) -> None:
    session = await stack.open()
    name = provider_name(stack.deployment, session.session_id, "box", 1)
    foreign = await stack.provider.create(CreateSandboxFromSnapshotParams(name=name, labels={"whose": "theirs"}))
    error = await error_of_call(session, "daytona_create_sandbox", {"sandbox_id": "box"})
    assert error.code is ErrorCode.CONFLICT
    await session.end()
    assert (await stack.provider.get(name)).id == foreign.id
    await foreign.delete()


async def test_a_sandbox_that_fails_to_start_is_reported_and_deleted(stack: Stack) -> None:
    session = await stack.open()
    await stack.faults.add(**CREATE, effect="start_error", reason="no runner", times=1)
    error = await error_of_call(session, "daytona_create_sandbox", {"sandbox_id": "box"})
    assert error.code is ErrorCode.SANDBOX_FAILED
    assert "no runner" in error.message

    async def ended() -> str | None:
        return (await session.status()).sandboxes[0].ended

    await eventually(ended, lambda outcome: outcome == "failed", "the failed sandbox's deletion")
    assert await stack.provider_sandboxes(session) == []
    error = await error_of_call(session, "daytona_exec", {"sandbox_id": "box", "command": "true"})
    assert error.code is ErrorCode.SANDBOX_FAILED
    await session.end()


async def test_a_stopped_sandbox_that_fails_to_start_again_says_so_and_can_still_be_deleted(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"})
    await stack.faults.add(**START, effect="start_error", reason="disk gone", recoverable=False, times=1)
    error = await error_of_call(session, "daytona_exec", {"sandbox_id": box, "command": "true"})
    assert error.code is ErrorCode.SANDBOX_FAILED
    assert (await stack.status(session, box)).state == "failed"
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "delete"})
    assert await stack.provider_sandboxes(session) == []
    await session.end()


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_sandbox_deleted_behind_our_back_is_lost_and_nothing_takes_its_place(
    stack: Stack, stopped: bool
) -> None:
    session = await stack.open()
    box = await creates(session)
    if stopped:
        await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"})
    [held] = await stack.provider_sandboxes(session)
    await held.delete()
    for _ in range(2):
        error = await error_of_call(session, "daytona_exec", {"sandbox_id": box, "command": "true"})
        assert error.code is ErrorCode.SANDBOX_LOST
    assert await stack.provider_sandboxes(session) == []
    outcome = await session.end()
    assert [row.outcome for row in outcome.sandboxes] == ["lost"]


async def test_a_provider_that_does_not_answer_is_not_taken_for_a_lost_sandbox(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await exec_ok(session, box, "echo kept > file")
    for route in (GET, EXECUTE):
        await stack.faults.add(**route, effect="status", status=503, times=5)
    assert (await exec_ok(session, box, "cat file"))["stdout"].strip() == "kept"
    await session.end()


async def test_a_delete_that_hangs_keeps_the_session_ending_until_it_is_confirmed(stack: Stack) -> None:
    session = await stack.open()
    await creates(session, sandbox_id="box")
    rule = await stack.faults.add(**DELETE, effect="delete_hangs", times=1)
    ending = asyncio.create_task(session.end())
    await eventually(lambda: stack.status(session, "box"), lambda status: status.state == "deleting", "the deletion")
    await asyncio.sleep(1.0)
    assert not ending.done()
    assert (await session.status()).state == "ending"
    assert len(await stack.provider_sandboxes(session)) == 1
    await stack.faults.remove(rule)
    assert [row.outcome for row in (await ending).sandboxes] == ["deleted"]
    assert await stack.provider_sandboxes(session) == []


async def test_a_delete_without_an_answer_is_looked_at_again(stack: Stack) -> None:
    session = await stack.open()
    await creates(session)
    await stack.faults.add(**DELETE, effect="answer_lost", times=2)
    outcome = await session.end()
    assert [row.outcome for row in outcome.sandboxes] == ["deleted"]
    assert await stack.provider_sandboxes(session) == []


async def test_a_short_command_whose_answer_is_lost_runs_once(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    for effect in ("answer_lost", "reset_during", "reset_before"):
        await stack.faults.add(**EXECUTE, effect=effect, times=1)
        await exec_ok(session, box, "echo x >> count")
    ran: dict[str, Any] = await exec_ok(session, box, "wc -l < count", output="normal")
    assert ran["stdout"].strip() == "3"
    await session.end()
