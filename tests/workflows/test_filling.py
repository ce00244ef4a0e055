"""What a create call brings into its sandbox, and files that are pushed into one that runs."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from sandhold.client import Session
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.tools import CreateSandboxResult
from sandhold.contracts.transfers import RestoreFrom
from tests.stack import Stack
from tests.workflows.calls import call_ok, creates, exec_ok
from tests.workflows.waiting import eventually

pytestmark = pytest.mark.storage("folder", "s3")

SLOWLY = {"method": "POST", "path": r"/toolbox/[^/]+/files/.*upload.*", "effect": "delay"}


async def ended_session_with_saved_work(stack: Stack) -> Session:
    session = await stack.open(on_end="download")
    await creates(session, sandbox_id="box")
    await exec_ok(session, "box", "mkdir -p repo/.git && echo work >repo/file && echo main >repo/.git/HEAD")
    await session.end()
    return session


async def shell(session: Session, command: str) -> str:
    return str((await exec_ok(session, "box", command, output="normal"))["stdout"])


async def test_work_that_a_session_saved_goes_on_in_another_one_of_the_same_owner(stack: Stack) -> None:
    before = await ended_session_with_saved_work(stack)
    session = await stack.open()
    await session.files.write("data/in.csv", b"1,2\n")
    await session.files.write("script", b"echo hello\n")
    created = await session.create_sandbox(
        sandbox_id="box",
        restore_from=RestoreFrom(session_path="/workspaces/box-g1.tar.zst", session_id=before.session_id),
        upload_files=[("data", "inputs"), ("/script", "/home/daytona/bin/"), ("none", "x")],
    )
    assert created.restored is not None
    assert (created.restored.session_id, created.restored.error) == (before.session_id, None)
    assert created.restored.files >= 2
    assert created.files_uploaded == 2
    assert [(failed.session_path, failed.error.code) for failed in created.files_failed] == [
        ("none", ErrorCode.PATH_NOT_FOUND)
    ]
    told = await shell(session, "cat repo/file repo/.git/HEAD inputs/in.csv; sh bin/script")
    assert told == "work\nmain\n1,2\nhello\n"
    assert (await stack.status(session, "box")).state == "started"


async def test_nobody_restores_from_a_session_of_another_owner_or_one_that_nobody_knows(stack: Stack) -> None:
    theirs = await stack.sandhold.open_session(owner="somebody-else")
    await theirs.files.write("workspaces/box-g1.tar", b"secret")
    session = await stack.open()
    answers = []
    for other in (theirs.session_id, "never-was"):
        created = await session.create_sandbox(
            restore_from=RestoreFrom(session_path="workspaces/box-g1.tar", session_id=other)
        )
        assert created.restored is not None
        assert created.restored.error is not None
        assert created.restored.error.code is ErrorCode.SESSION_NOT_FOUND
        answers.append(created.restored.error.message.replace(other, "it"))
        await exec_ok(session, created.sandbox_id, "true")
    assert answers[0] == answers[1], "whether others have such a session is not told"
    await theirs.end()


async def test_whoever_calls_meets_a_filled_sandbox(stack: Stack) -> None:
    session = await stack.open()
    await session.files.write("data", random.Random(1).randbytes(9 * 1024 * 1024))
    await stack.faults.add(**SLOWLY, seconds=1.0, times=1)
    creating = asyncio.create_task(session.create_sandbox(sandbox_id="box", upload_files=[("data", "data")]))
    await eventually(session.status, lambda status: len(status.sandboxes) == 1, "the sandbox on the books")
    assert await shell(session, "wc -c <data") == "9437184\n"
    assert (await creating).files_uploaded == 1


async def test_a_create_that_takes_long_answers_running_and_is_no_idle_time(stack: Stack) -> None:
    session = await stack.open(idle_stop_s=0.5)
    await session.files.write("data", b"x")
    await stack.faults.add(**SLOWLY, seconds=2.0, times=1)
    call = {"sandbox_id": "box", "upload_files": [{"session_path": "data", "sandbox_path": "data"}]}
    first = await session.call("daytona_create_sandbox", call, call_id="create", wait=False)
    assert (first.status, first.sandbox_id) == ("running", "box")
    status = await eventually(lambda: stack.status(session, "box"), lambda seen: bool(seen.provider_id), "the fill")
    assert (status.state, status.next, status.stops_at) == ("creating", "create under way", None)
    done = await session.call("daytona_create_sandbox", call, call_id="create")
    assert isinstance(done.result, dict)
    assert (done.result["files_uploaded"], done.result["files_failed"]) == (1, [])


async def test_a_session_that_ends_while_a_sandbox_is_filled_leaves_neither(stack: Stack) -> None:
    session = await stack.open(on_end="download")
    await session.files.write("data", bytes(20 * 1024 * 1024))
    rule = await stack.faults.add(**SLOWLY, seconds=3.0)
    creating = asyncio.create_task(
        session.call(
            "daytona_create_sandbox",
            {"sandbox_id": "box", "upload_files": [{"session_path": "data", "sandbox_path": "data"}]},
        )
    )
    await eventually(lambda: stack.faults.hits(rule), lambda hits: hits > 0, "the upload under way")
    outcome = await session.end()
    assert [(each.outcome, each.saved) for each in outcome.sandboxes] == [("deleted", None)]
    envelope = await creating
    assert envelope.error is not None
    assert envelope.error.code in {ErrorCode.SESSION_ENDING, ErrorCode.SESSION_ENDED}
    assert await stack.provider_sandboxes(session) == []


async def being_filled(stack: Stack, session: Session) -> tuple[asyncio.Task[CreateSandboxResult], Any]:
    """A create whose upload of 20 MiB is under way, and what the provider holds."""
    await session.files.write("data", bytes(20 * 1024 * 1024))
    rule = await stack.faults.add(**SLOWLY, seconds=1.5, times=2)
    creating = asyncio.create_task(session.create_sandbox(sandbox_id="box", upload_files=[("data", "data")]))
    await eventually(lambda: stack.faults.hits(rule), lambda hits: hits > 0, "the upload under way")
    [held] = await stack.provider_sandboxes(session)
    return creating, held


async def test_a_sandbox_that_stops_while_it_is_filled_is_started_again(stack: Stack) -> None:
    session = await stack.open()
    creating, held = await being_filled(stack, session)
    await held.stop()
    created = await creating
    assert (created.files_uploaded, created.files_failed) == (1, [])
    assert await shell(session, "wc -c <data; ls -A .sandhold/streams") == "20971520\n"


async def test_a_sandbox_that_is_lost_while_it_is_filled_is_a_create_that_failed(stack: Stack) -> None:
    session = await stack.open()
    creating, held = await being_filled(stack, session)
    await held.delete()
    with pytest.raises(ToolFailure) as failure:
        await creating
    assert failure.value.error.code is ErrorCode.SANDBOX_LOST
    [row] = (await session.end()).sandboxes
    assert (row.outcome, await stack.provider_sandboxes(session)) == ("deleted", [])


async def test_files_are_pushed_into_a_sandbox_also_when_it_was_stopped(stack: Stack, tmp_path: Path) -> None:
    session = await stack.open()
    await creates(session, sandbox_id="box")
    await session.files.write("a", b"one\n")
    await session.files.write("folder/b", b"two\n")
    pushed = await session.push_files("box", [("a", "a"), ("folder", "dir"), ("none", "none")], call_id="push")
    assert (pushed.files_uploaded, pushed.bytes) == (2, 8)
    assert [failed.error.code for failed in pushed.files_failed] == [ErrorCode.PATH_NOT_FOUND]
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": "box", "action": "stop"})
    assert (await session.push_files("box", [("a", "again")])).files_uploaded == 1
    assert await shell(session, "cat a dir/b again") == "one\ntwo\none\n"
    again = await session.push_files("box", [("a", "a"), ("folder", "dir"), ("none", "none")], call_id="push")
    assert again == pushed, "the same call tells the same, and does nothing"
    with pytest.raises(ToolFailure) as failure:
        await session.push_files("box", [("../a", "a")])
    assert failure.value.error.code is ErrorCode.INVALID_ARGUMENTS
