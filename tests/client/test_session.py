"""The client against the real stack: sessions, the typed tools, repeated calls, and what listing costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sandhold import ErrorCode, OwnerMismatch, Sandhold, Session, SessionEnded, SessionNotFound, ToolFailure
from sandhold.client import InvalidRequest
from sandhold.contracts.calls import INLINE_LIMIT_BYTES
from sandhold.contracts.names import sandbox_workflow_id
from tests.stack import Stack


@pytest.fixture(scope="module")
async def session(shared_stack: Stack) -> AsyncIterator[Session]:
    """A session with one started sandbox, `box`."""
    session = await shared_stack.open()
    await session.create_sandbox(sandbox_id="box")
    yield session
    await session.end()


async def events(stack: Stack, workflow_id: str) -> int:
    description = await stack.temporal.get_workflow_handle(workflow_id).describe()
    return description.history_length


async def test_the_typed_tools_return_their_results_or_raise(session: Session) -> None:
    wrote = await session.write_file("box", "notes/a.txt", "one\ntwo\n", mode="600")
    assert wrote.bytes == 8
    read = await session.read_file("box", "notes/a.txt", offset=1)
    assert (read.content, read.total_lines) == ("two\n", 2)
    ran = await session.exec("box", "cat a.txt; exit 3", cwd="/home/daytona/notes", timeout_ms=5000)
    assert (ran.exit_code, ran.stdout) == (3, "one\ntwo\n")
    with pytest.raises(ToolFailure) as failure:
        await session.read_file("box", "nowhere")
    assert failure.value.error.code is ErrorCode.PATH_NOT_FOUND
    listed = await session.list_sandboxes()
    assert [(row.sandbox_id, row.state) for row in listed.sandboxes] == [("box", "started")]


async def test_a_repeated_call_id_returns_the_first_result_and_runs_once(session: Session) -> None:
    for _ in range(3):
        envelope = await session.call(
            "daytona_write_file", {"sandbox_id": "box", "path": "log", "content": "x", "append": True}, "append-1"
        )
        assert (envelope.call_id, envelope.ok) == ("append-1", True)
    assert (await session.read_file("box", "log")).content == "x"
    found = await session.result("append-1")
    assert found is not None
    assert found.result == envelope.result
    assert await session.result("append-2") is None


async def test_large_arguments_and_results_stay_out_of_the_history(stack: Stack, session: Session) -> None:
    content = "0123456789abcde\n" * 12_500
    assert len(content) > 10 * INLINE_LIMIT_BYTES
    wrote = await session.write_file("box", "large", content)
    assert wrote.bytes == len(content)
    envelope = await session.call(
        "daytona_read_file", {"sandbox_id": "box", "path": "large", "limit": 100_000}, "read-large"
    )
    assert isinstance(envelope.result, dict)
    assert envelope.result["content"] == content
    assert envelope.result_ref is None
    again = await session.result("read-large")
    assert again is not None
    assert again.result == envelope.result
    history = await stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, "box")).fetch_history()
    assert max(event.ByteSize() for event in history.events) < INLINE_LIMIT_BYTES


async def test_arguments_no_message_can_carry_are_refused_before_anything_is_sent(session: Session) -> None:
    for content in ("\ud800", float("nan"), b"bytes", {1: 2}):
        envelope = await session.call(
            "daytona_write_file",
            {"sandbox_id": "box", "path": "a", "content": content},  # type: ignore[dict-item]
        )
        assert envelope.error is not None
        assert envelope.error.code is ErrorCode.INVALID_ARGUMENTS


async def test_listing_and_showing_add_nothing_to_any_history(stack: Stack, session: Session) -> None:
    ids = (session.workflow_id, sandbox_workflow_id(session.session_id, "box"))
    before = [await events(stack, each) for each in ids]
    for _ in range(3):
        await session.list_sandboxes()
        shown = await session.show()
    assert [await events(stack, each) for each in ids] == before
    [row] = shown.sandboxes
    assert (row.generation, row.workflow_id, bool(row.provider_id)) == (1, ids[1], True)
    assert (shown.owner, shown.state) == ("tests", "open")


async def test_a_call_without_waiting_is_told_as_running_and_read_later(session: Session) -> None:
    envelope = await session.call(
        "daytona_exec", {"sandbox_id": "box", "command": "sleep 1; echo done"}, "later", wait=False
    )
    assert envelope.status == "running"
    finished = await session.call(
        "daytona_exec", {"sandbox_id": "box", "command": "sleep 1; echo done"}, "later", timeout=30
    )
    assert isinstance(finished.result, dict)
    assert finished.result["stdout"] == "done\n"


async def test_a_submitted_call_is_read_by_its_id(session: Session) -> None:
    call_id = await session.submit("daytona_exec", {"sandbox_id": "box", "command": "echo submitted"})
    wrong_id = await session.submit("daytona_exec", {"sandbox_id": "nobody", "command": "true"})
    with pytest.raises(ToolFailure):
        await session.submit("no_such_tool")
    async with asyncio.timeout(30):
        while (found := await session.result(call_id)) is None or found.status == "running":
            await asyncio.sleep(0.05)
        while (refused := await session.result(wrong_id)) is None:
            await asyncio.sleep(0.05)
    assert isinstance(found.result, dict)
    assert found.result["stdout"] == "submitted\n"
    assert refused.error is not None
    assert refused.error.code is ErrorCode.SANDBOX_NOT_FOUND


async def test_a_repeated_call_gets_its_result_after_its_sandbox_and_its_session_are_gone(stack: Stack) -> None:
    session = await stack.open()
    created = await session.call("daytona_create_sandbox", {"sandbox_id": "brief"}, "made")
    assert created.ok
    arguments = {"sandbox_id": "brief", "path": "a", "content": "x"}
    first = await session.call("daytona_write_file", arguments, "wrote")
    deleted = await session.manage_sandbox("brief", "delete", call_id="deleted")
    assert deleted.state == "deleted"
    assert await session.manage_sandbox("brief", "delete", call_id="deleted") == deleted
    assert await session.call("daytona_write_file", arguments, "wrote") == first
    outcome = await session.end("done with it")
    assert (outcome.reason, outcome.sandboxes[0].outcome) == ("done with it", "deleted")
    assert await session.end() == outcome
    assert await session.call("daytona_write_file", arguments, "wrote") == first
    refused = await session.call("daytona_write_file", arguments, "new")
    assert refused.error is not None
    assert refused.error.code is ErrorCode.SESSION_ENDED
    assert (await session.status()).state == "ended"
    with pytest.raises(SessionEnded):
        await stack.sandhold.open_session(session.session_id, "tests")
    with pytest.raises(SessionEnded):
        await session.submit("daytona_list_sandboxes")


async def test_opening_attaches_only_for_the_owner(stack: Stack) -> None:
    session = await stack.open()
    attached = await stack.sandhold.open_session(session.session_id, "tests")
    assert attached.workflow_id == session.workflow_id
    with pytest.raises(OwnerMismatch):
        await stack.sandhold.open_session(session.session_id, "somebody-else")
    for wrong in ({"session_id": "Not An Id"}, {"owner": "a b"}, {"policy": {"idle_stop_s": -1}}):
        with pytest.raises(InvalidRequest):
            await stack.sandhold.open_session(**wrong)  # type: ignore[arg-type]
    assert await session.end(wait=False) is not None
    assert (await session.wait_for_end(timeout=30)).sandboxes == []


async def test_a_terminated_session_ends_with_its_sandboxes_outcomes(stack: Stack) -> None:
    session = await stack.open()
    await session.create_sandbox(sandbox_id="orphan")
    await stack.temporal.get_workflow_handle(session.workflow_id).terminate("an operator did it")
    outcome = await session.end(timeout=60)
    assert (outcome.reason, outcome.sandboxes[0].outcome) == ("terminated", "deleted")
    assert await stack.provider_sandboxes(session) == []
    assert (await session.status()).state == "ended"


async def test_sessions_are_listed_by_owner_and_state(stack: Stack) -> None:
    ended = await stack.sandhold.open_session(owner="lister")
    await ended.end()
    open_session = await stack.sandhold.open_session(owner="lister")

    async def ids(sandhold: Sandhold, **filters: str) -> list[str]:
        rows = await sandhold.list_sessions(owner="lister", **filters)  # type: ignore[arg-type]
        return [row.session_id for row in rows]

    async with asyncio.timeout(30):  # the visibility store follows the histories
        while await ids(stack.sandhold, state="ended") != [ended.session_id]:
            await asyncio.sleep(0.1)
        while await ids(stack.sandhold, state="open") != [open_session.session_id]:
            await asyncio.sleep(0.1)
    assert await ids(stack.sandhold) == [open_session.session_id, ended.session_id]
    assert await stack.sandhold.list_sessions(owner="nobody'; --") == []
    row = await stack.sandhold.find_session(ended.session_id)
    assert (row.owner, row.state, row.ended_at is not None) == ("lister", "ended", True)
    with pytest.raises(SessionNotFound):
        await stack.sandhold.session("no-such-session").end()
    await open_session.end()
