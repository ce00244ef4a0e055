"""`daytona_download_workspace` as a session makes it: it starts the sandbox, keeps it up, and ends with it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import subprocess
import tarfile
from typing import Any

import pytest

from sandhold.client import Session
from sandhold.contracts.errors import ErrorCode
from tests.stack import Stack
from tests.workflows.calls import creates, error_of_call, exec_ok
from tests.workflows.waiting import eventually

pytestmark = pytest.mark.storage("folder", "s3")

TOOL = "daytona_download_workspace"
DOWNLOAD = {"method": "POST", "route": "/toolbox/{sandbox_id}/files/bulk-download"}
MIB = 1024 * 1024


async def workspace(session: Session, **policy: Any) -> str:
    """A sandbox with a little work in it."""
    box = await creates(session, sandbox_id="box", **policy)
    await exec_ok(session, box, "mkdir -p src; echo one >src/a; ln -s a src/link")
    return box


async def slow_download(stack: Stack, session: Session, seconds: float = 600.0) -> asyncio.Task[Any]:
    """A download that is under way, and stands still for so long."""
    [held] = await stack.provider_sandboxes(session)
    rule = await stack.faults.add(**DOWNLOAD, effect="delay", seconds=seconds, sandbox=held.id)
    calling = asyncio.create_task(session.call(TOOL, {"sandbox_id": "box", "format": "archive"}, "slow"))
    await eventually(lambda: stack.faults.hits(rule), lambda hits: hits > 0, "the download of a part")
    return calling


async def test_a_workspace_is_saved_from_a_sandbox_that_was_stopped(stack: Stack) -> None:
    session = await stack.open()
    box = await workspace(session)
    await session.manage_sandbox(box, "stop")
    result = await session.download_workspace(box, session_path="/saved")
    assert (result.files_downloaded, [each.reason for each in result.files_skipped]) == (1, ["symlink"])
    archive = await session.download_workspace(box, "src", session_path="/saved/all", format="archive", include=["a"])
    assert await session.files.read("saved/src/a") == b"one\n"
    data = await session.files.read(archive.session_path)
    assert hashlib.sha256(data).hexdigest() == archive.sha256
    assert names_in(data) == ["a"]
    assert (await session.end()).sandboxes[0].outcome == "deleted"
    assert await session.files.read("saved/src/a") == b"one\n", "what is saved outlives the sandbox"


def names_in(archive: bytes) -> list[str]:
    plain = subprocess.run(["zstd", "-dc"], input=archive, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        return sorted(name.removeprefix("./") for name in tar.getnames() if name != ".")


async def test_a_repeated_call_gives_the_same_answer_and_moves_nothing(stack: Stack) -> None:
    session = await stack.open()
    await workspace(session)
    first = await session.call(TOOL, {"sandbox_id": "box"}, "save")
    await session.files.delete("workspace/src/a")
    assert (await session.call(TOOL, {"sandbox_id": "box"}, "save")).result == first.result
    assert [each.path async for each in session.files.list()] == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"format": "zip"},
        {"session_path": "../up"},
        {"session_path": "/", "format": "archive"},
        {"include": ["a\nb"]},
        {"exclude": ["x" * 2000]},
        {"include": "src"},
        {"sandbox_path": ""},
    ],
)
async def test_arguments_that_make_no_sense_are_refused(stack: Stack, arguments: dict[str, Any]) -> None:
    session = await stack.open()
    assert (await error_of_call(session, TOOL, {"sandbox_id": "box", **arguments})).code in {
        ErrorCode.INVALID_ARGUMENTS,
        ErrorCode.SANDBOX_NOT_FOUND,
    }
    box = await creates(session, sandbox_id="box")
    error = await error_of_call(session, TOOL, {"sandbox_id": box, **arguments})
    assert error.code == ErrorCode.INVALID_ARGUMENTS, error


async def test_a_download_is_use_of_its_sandbox(stack: Stack) -> None:
    session = await stack.open(idle_stop_s=0.5)
    await workspace(session)
    calling = await slow_download(stack, session, seconds=3.0)
    await asyncio.sleep(1.5)
    status = await stack.status(session, "box")
    assert (status.state, status.stops_at, status.calls) == ("started", None, ["slow"])
    assert (await calling).ok


async def test_a_stop_ends_a_download_and_nothing_starts_the_sandbox_again(stack: Stack) -> None:
    session = await stack.open()
    await workspace(session)
    calling = await slow_download(stack, session)
    await session.manage_sandbox("box", "stop")
    envelope = await calling
    assert envelope.error is not None
    assert envelope.error.code == ErrorCode.CANCELLED
    await stack.faults.clear()
    await asyncio.sleep(2.0)
    assert (await stack.status(session, "box")).state == "stopped"
    assert [each.path async for each in session.files.list()] == []
    assert (await session.download_workspace("box", format="archive")).files_downloaded == 2


async def test_the_end_of_a_session_ends_a_download(stack: Stack) -> None:
    session = await stack.open(end_grace_s=0.2)
    await workspace(session)
    calling = await slow_download(stack, session)
    outcome = await session.end()
    assert [row.outcome for row in outcome.sandboxes] == ["deleted"]
    assert (await calling).error.code == ErrorCode.CANCELLED
    assert await stack.provider_sandboxes(session) == []


async def test_a_quota_that_is_full_is_told_and_the_session_goes_on(stack: Stack) -> None:
    session = await stack.open(file_quota_bytes=MIB)
    box = await creates(session, sandbox_id="box")
    await exec_ok(session, box, "for n in 1 2 3; do head -c 600000 /dev/urandom >$n; done")
    error = await error_of_call(session, TOOL, {"sandbox_id": box, "format": "archive"})
    assert error.code == ErrorCode.QUOTA_EXCEEDED
    assert [each.path async for each in session.files.list()] == []
    assert (await session.download_workspace(box)).files_downloaded == 3
