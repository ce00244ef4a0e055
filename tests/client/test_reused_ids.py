"""A session id whose storage is still kept: Temporal has forgotten the session, but it stays that session's."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from sandhold.client import Sandhold, Session, SessionEnded
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.storage import SessionStorage
from sandhold.storage.remains import EndMark, Remains
from tests.stack import RING, Stack


async def left_by_alice(stack: Stack) -> str:
    """The id of a session of Alice's that ended five days ago, and that Temporal does not know."""
    session_id = f"team-build-{uuid.uuid4().hex[:8]}"
    storage = SessionStorage.open(stack.settings.storage_location, RING)
    await storage.put_bytes(session_id, "files/secret", b"alice's")
    await storage.put_bytes(session_id, f"calls/old/stdout/{0:020}", b"alice's output")
    ended_at = datetime.now(UTC) - timedelta(days=5)
    mark = EndMark(deployment=stack.deployment, ended_at=ended_at, keep_days=30, owner="alice")
    await Remains(storage.objects, session_id).put_mark(mark)
    return session_id


async def opened_all_the_same(stack: Stack, session_id: str, monkeypatch: pytest.MonkeyPatch) -> Session:
    """The session as a client opens it that does not look at storage first, as earlier ones did not."""

    async def does_not_look(*args: object) -> bool:
        return False

    with monkeypatch.context() as patched:
        patched.setattr(Sandhold, "_is_left_over", does_not_look)
        session = await stack.sandhold.open_session(session_id, owner="bob", policy={"end_grace_s": 0.5})
    stack.opened.append(session)
    return session


async def test_an_id_of_which_storage_holds_something_is_not_opened_again(stack: Stack) -> None:
    session_id = await left_by_alice(stack)
    for owner in ("bob", "alice"):
        with pytest.raises(SessionEnded, match="another id"):
            await stack.sandhold.open_session(session_id, owner=owner)
    assert await stack.sandhold.session(session_id).files.read("secret") == b"alice's"


async def test_an_open_session_is_attached_to_whatever_it_has_stored(stack: Stack) -> None:
    session = await stack.open()
    await session.files.write("mine", b"1")
    again = await Sandhold(stack.temporal, stack.settings).open_session(session.session_id, owner="tests")
    assert await again.files.read("mine") == b"1"


async def test_a_session_over_anothers_storage_gets_nothing_of_it(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await opened_all_the_same(stack, await left_by_alice(stack), monkeypatch)
    files = session.files
    for work in (files.read("secret"), files.find("secret"), files.write("mine", b"1"), files.delete_folder()):
        with pytest.raises(ToolFailure) as failure:
            await work
        assert failure.value.error.code is ErrorCode.CONFLICT
    with pytest.raises(ToolFailure):
        _ = [each async for each in files.list()]
    box = await session.create_sandbox(sandbox_id="box", upload_files=[("secret", "stolen")])
    [failed] = box.files_failed
    assert (box.files_uploaded, failed.error.code) == (0, ErrorCode.CONFLICT)
    large = "x" * 20_000
    envelope = await session.call("daytona_write_file", {"sandbox_id": "box", "path": "a", "content": large})
    assert envelope.error is not None
    assert envelope.error.code is ErrorCode.CONFLICT
    with pytest.raises(ToolFailure):
        _ = [each async for each in session.command("box", "old").output(follow=False)]


async def test_a_result_that_another_sessions_storage_would_have_to_hold_is_a_typed_error(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await opened_all_the_same(stack, await left_by_alice(stack), monkeypatch)
    await session.create_sandbox(sandbox_id="box")
    assert (await session.exec("box", "echo small")).stdout == "small\n"
    envelope = await session.call("daytona_exec", {"sandbox_id": "box", "command": "seq 1 2000", "output": "full"})
    assert envelope.error is not None
    assert (envelope.error.ambiguous, envelope.error.retryable) == (True, False)
    assert "earlier session" in envelope.error.message
    storage = SessionStorage.open(stack.settings.storage_location, RING)
    left = [each.path async for each in storage.objects.list(session.session_id)]
    assert left == [f"calls/old/stdout/{0:020}", "ended.json", "files/secret"]


async def test_a_call_to_no_session_leaves_nothing_in_storage(stack: Stack) -> None:
    session_id = f"nobody-{uuid.uuid4().hex[:8]}"
    envelope = await stack.sandhold.session(session_id).call(
        "daytona_write_file", {"sandbox_id": "box", "path": "a", "content": "x" * 20_000}
    )
    assert envelope.error is not None
    assert envelope.error.code is ErrorCode.SESSION_NOT_FOUND
    assert session_id not in await SessionStorage.open(stack.settings.storage_location, RING).objects.sessions()
