"""A session's files through the client, and what a full storage means for calls and commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sandhold.client import Sandhold, Session, SessionEnded, SessionNotFound
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.storage.remains import EndMark, Remains
from sandhold.storage.session import SessionStorage
from tests.stack import RING, Stack

pytestmark = pytest.mark.storage("folder", "s3")

MIB = 1024 * 1024
LARGE = "0123456789abcde\n" * 1_280


async def paths(session: Session, folder: str = "", **bounds: object) -> list[str]:
    return [each.path async for each in session.files.list(folder, **bounds)]  # type: ignore[arg-type]


def code(failure: pytest.ExceptionInfo[ToolFailure]) -> ErrorCode:
    return failure.value.error.code


async def test_files_are_written_listed_read_and_deleted(stack: Stack) -> None:
    session = await stack.open()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield b"x" * MIB

    told: list[int] = []
    stored = await session.files.write("/large", pieces(), size=12 * MIB, progress=told.append)
    assert (stored.path, stored.size, told[-1]) == ("large", 12 * MIB, 12 * MIB)
    for name in ("notes/b", "notes/a", "notes/c"):
        await session.files.write(name, name.encode())
    assert await paths(session) == ["large", "notes/a", "notes/b", "notes/c"]
    assert await paths(session, "notes", limit=2) == ["notes/a", "notes/b"]
    assert await paths(session, "notes", after="notes/b", limit=2) == ["notes/c"]
    assert await paths(session, limit=0) == []
    read: list[int] = []
    assert await session.files.read("large", start=12 * MIB - 2, progress=read.append) == b"xx"
    assert read == [2]
    assert sum([len(piece) async for piece in session.files.stream("large")]) == 12 * MIB
    assert (await session.files.find("notes/a")).size == 7
    await session.files.delete("large")
    assert await session.files.delete_folder("notes") == 3
    assert await paths(session) == []
    with pytest.raises(ToolFailure) as failure:
        await session.files.read("large")
    assert code(failure) is ErrorCode.PATH_NOT_FOUND


async def test_after_the_end_files_are_read_and_deleted_and_none_is_written(stack: Stack) -> None:
    session = await stack.open()
    await session.files.write("kept", b"1")
    await session.end()
    later = stack.sandhold.session(session.session_id)
    assert await later.files.read("kept") == b"1"
    with pytest.raises(SessionEnded):
        await later.files.write("more", b"2")
    await later.files.delete("kept")
    assert await paths(later) == []


async def test_files_outlive_what_temporal_remembers_and_nothing_else_is_a_session(stack: Stack) -> None:
    forgotten = stack.sandhold.session("long-forgotten")
    for work in (paths(forgotten), forgotten.files.read("kept"), forgotten.files.write("a", b"1")):
        with pytest.raises(SessionNotFound):
            await work
    storage = SessionStorage.open(stack.settings.storage_location, RING)
    await storage.put_bytes("long-forgotten", "files/kept", b"1")
    session = await stack.open()
    status = await session.status()
    mark = EndMark(deployment=stack.deployment, ended_at=status.created_at, keep_days=1)
    await Remains(storage.objects, "long-forgotten").put_mark(mark)
    assert await forgotten.files.read("kept") == b"1"
    with pytest.raises(SessionEnded):
        await forgotten.files.write("a", b"1")


async def test_the_policy_bounds_files_and_arguments(stack: Stack) -> None:
    session = await stack.open(storage_quota_bytes=2 * MIB, file_quota_bytes=MIB)
    with pytest.raises(ToolFailure) as failure:
        await session.files.write("a", b"x" * (MIB + 1))
    assert code(failure) is ErrorCode.QUOTA_EXCEEDED
    await session.create_sandbox(sandbox_id="box")
    for name in ("a", "b"):
        await session.files.write(name, b"x" * MIB)
    with pytest.raises(ToolFailure) as failure:
        await session.files.write("c", b"x")
    assert code(failure) is ErrorCode.QUOTA_EXCEEDED
    with pytest.raises(ToolFailure) as failure:
        await session.write_file("box", "a.txt", LARGE)
    assert code(failure) is ErrorCode.QUOTA_EXCEEDED
    # The session itself is well: what needs no storage works, and all does once there is room.
    assert (await session.exec("box", "echo fine")).stdout == "fine\n"
    await session.files.delete("a")
    assert (await session.write_file("box", "a.txt", LARGE)).bytes == len(LARGE)
    assert (await session.read_file("box", "a.txt")).content == LARGE


async def test_a_command_goes_on_when_its_output_has_no_room(stack: Stack) -> None:
    session = await stack.open(storage_quota_bytes=3 * MIB)
    await session.create_sandbox(sandbox_id="box")
    command = await session.start("box", "yes 0123456789abcde | head -c 6000000; sleep 1; echo the end; touch done")
    result = await command.wait()
    assert (result.status, result.exit_code, result.stdout_bytes) == ("completed", 0, 6_000_008)
    assert result.stdout.endswith("the end\n")
    assert result.output_files is not None
    assert not result.output_files.whole
    assert "storage is full" in str(result.hint)
    kept = b"".join([chunk.data async for chunk in command.output()])
    assert kept == (b"0123456789abcde\n" * 400_000)[: len(kept)]
    assert MIB <= len(kept) <= 3 * MIB
    assert (await session.exec("box", "ls done")).exit_code == 0
    fresh = SessionStorage.open(stack.settings.storage_location, RING)
    assert await fresh.usage.held(session.session_id) <= 3 * MIB + 64 * 1024  # and the result beside


async def test_many_writers_of_one_name_leave_one_whole_file(stack: Stack) -> None:
    session = await stack.open()
    contents = [bytes([number]) * (7 * MIB) for number in range(4)]
    clients = [Sandhold(stack.temporal, stack.settings).session(session.session_id) for _ in contents]
    await asyncio.gather(*(client.files.write("same", data) for client, data in zip(clients, contents, strict=True)))
    assert await session.files.read("same") in contents


async def test_a_session_that_nobody_knows_is_not_told_as_missing_while_storage_is_away(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    away = stack.settings.model_copy(update={"storage_url": "s3://bucket/prefix"})
    mistyped = Sandhold(stack.temporal, away).session("mistyped")
    with pytest.raises(ToolFailure) as failure:
        await paths(mistyped)
    assert (failure.value.error.code, failure.value.error.retryable) == (ErrorCode.INTERNAL, True)
    assert "could not be reached" in failure.value.error.message


async def test_a_mark_that_nobody_can_read_tells_all_the_same_that_there_was_a_session(stack: Stack) -> None:
    storage = SessionStorage.open(stack.settings.storage_location, RING)
    await storage.put_bytes("marked-badly", "files/kept", b"1")
    await storage.put_bytes("marked-badly", "ended.json", b"")
    forgotten = stack.sandhold.session("marked-badly")
    assert await forgotten.files.read("kept") == b"1"
    with pytest.raises(SessionEnded):
        await forgotten.files.write("a", b"1")
