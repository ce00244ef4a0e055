"""The users' files: any bytes under any name come back, and nothing else is ever there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.session_paths import InvalidSessionPath, session_path
from sandhold.storage import FileStore, Quota, SessionStorage
from sandhold.storage.objects import PART_BYTES
from tests.storage.conftest import SESSION, Place, stream

MIB = 1024 * 1024
PLENTY = Quota(session_bytes=1024 * MIB, file_bytes=512 * MIB)


def data_of(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def content(files: FileStore, path: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in files.read(path, start, end)])


async def paths(files: FileStore, folder: str = "", after: str = "") -> list[str]:
    return [each.path async for each in files.list(folder, after)]


def refused(failure: pytest.ExceptionInfo[ToolFailure]) -> str:
    return failure.value.error.code


async def test_a_file_comes_back_as_it_was_given(files: FileStore) -> None:
    before = datetime.now(UTC)
    for size in (0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 7):
        data = data_of(size)
        stored = await files.write("a/file", data, PLENTY)
        assert (stored.path, stored.size) == ("a/file", size)
        assert abs(stored.modified_at - before) < timedelta(minutes=5)
        assert await content(files, "a/file") == data
        pieces = [data[start : start + 700_001] for start in range(0, size, 700_001)]
        streamed = await files.write("/a/streamed", stream(*pieces), PLENTY)
        assert (streamed.size, await content(files, "a/streamed")) == (size, data)


async def test_any_range_is_read(files: FileStore) -> None:
    data = data_of(2 * MIB + 5)
    await files.write("f", data, PLENTY)
    for start, end in ((0, 1), (5, 5), (7, 3), (MIB, None), (MIB - 1, MIB + 1), (len(data) - 1, None), (1, 10**9)):
        assert await content(files, "f", start, end) == data[start:end]
    for start in (len(data), len(data) + 1, 2**53):
        assert await content(files, "f", start) == b""
    await files.write("empty", b"", PLENTY)
    assert (
        await content(files, "empty") == await content(files, "empty", 0, 9) == await content(files, "empty", 4) == b""
    )


async def test_files_are_listed_in_order_from_any_place(files: FileStore) -> None:
    names = ["a", "b-c", "b/c", "b/d/e", "b0", "c#1", "c#1~", "d#2/x", "é", "日本/x"]
    for name in reversed(names):
        await files.write(name, b"1", PLENTY)
    assert await paths(files) == names
    for place, name in enumerate(names):
        assert await paths(files, after=name) == names[place + 1 :]
    assert await paths(files, after="b/d") == names[3:]
    assert await paths(files, "b") == await paths(files, "/b/") == ["b/c", "b/d/e"]
    assert await paths(files, "b", after="b/c") == ["b/d/e"]
    assert await paths(files, "nothing") == await paths(files, "a") == []


async def test_a_listing_of_many_pages_misses_none(storage: SessionStorage, files: FileStore) -> None:
    names = [f"files/{number:04}" for number in range(1010)]
    for start in range(0, len(names), 50):
        await asyncio.gather(*(storage.objects.put(SESSION, name, b"") for name in names[start : start + 50]))
    assert [f"files/{each}" for each in await paths(files)] == names
    assert await files.delete_folder() == len(names)
    assert await paths(files) == []


async def test_what_is_not_there_is_a_typed_error(files: FileStore) -> None:
    await files.write("folder/file", b"1", PLENTY)
    for path in ("nothing", "folder", "folder/file/deeper"):
        for work in (files.find(path), content(files, path), content(files, path, 5), files.delete(path)):
            with pytest.raises(ToolFailure) as failure:
                await work
            assert refused(failure) == ErrorCode.PATH_NOT_FOUND
    assert await files.is_folder("folder")
    assert await files.is_folder("/")
    assert not await files.is_folder("folder/file")
    assert not await files.is_folder("nothing")


async def test_a_name_is_a_file_or_a_folder(files: FileStore) -> None:
    await files.write("notes/plan", b"1", PLENTY)
    for path in ("notes", "notes/plan/x", "notes/plan/x/y"):
        for data in (b"2", stream(data_of(PART_BYTES), b"2")):
            with pytest.raises(ToolFailure) as failure:
                await files.write(path, data, PLENTY)
            assert refused(failure) == ErrorCode.INVALID_ARGUMENTS
    assert await content(files, "notes/plan") == b"1"
    await files.delete("notes/plan")
    await files.write("notes", b"3", PLENTY)
    assert await paths(files) == ["notes"]


async def test_folders_are_deleted_with_all_that_lies_in_them(files: FileStore) -> None:
    for name in ("a/1", "a/b/2", "a/b/c/3", "ab"):
        await files.write(name, b"1", PLENTY)
    assert await files.delete_folder("a") == 3
    assert await files.delete_folder("a") == 0
    assert await paths(files) == ["ab"]
    assert await files.delete_folder() == 1
    assert await paths(files) == []


async def test_names_that_differ_by_normal_form_only_are_the_same(files: FileStore) -> None:
    await files.write("cafe\u0301", b"1", PLENTY)
    assert await content(files, "caf\u00e9") == b"1"
    assert await paths(files) == ["caf\u00e9"]
    await files.write("Caf\u00e9", b"2", PLENTY)
    assert len(await paths(files)) == 2


@pytest.mark.parametrize("size", [10, PART_BYTES + 10])
async def test_a_stream_that_breaks_off_leaves_what_was_there(place: Place, files: FileStore, size: int) -> None:
    await files.write("f", b"before", PLENTY)
    for path in ("f", "new"):
        with pytest.raises(OSError, match="the disk was pulled"):
            await files.write(path, stream(data_of(size), fails=OSError("the disk was pulled")), PLENTY)
    assert await paths(files) == ["f"]
    assert await content(files, "f") == b"before"
    assert await place.open().usage.held(SESSION) == len(b"before")
    assert place.unfinished() == 0


@pytest.mark.parametrize("pieces", [1, 20])
async def test_a_write_that_is_cancelled_leaves_nothing(place: Place, files: FileStore, pieces: int) -> None:
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield data_of(MIB)
        reached.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(files.write("f", endless(), PLENTY))
    await reached.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await paths(files) == []
    assert await place.open().usage.held(SESSION) == 0
    assert place.unfinished() == 0


async def test_a_stream_must_be_as_long_as_was_announced(files: FileStore) -> None:
    for size in (5, PART_BYTES + 5):
        data = data_of(size)
        for announced in (size - 1, size + 1):
            with pytest.raises(ToolFailure, match="announced") as failure:
                await files.write("f", stream(data), PLENTY, size=announced)
            assert refused(failure) == ErrorCode.INVALID_ARGUMENTS
        assert await paths(files) == []
        await files.write("g", stream(data), PLENTY, size=size)
        assert await content(files, "g") == data
        await files.delete("g")


async def test_progress_is_told_to_the_last_byte(files: FileStore) -> None:
    for size in (0, 10, 2 * PART_BYTES + 10):
        told: list[int] = []
        await files.write("f", data_of(size), PLENTY, progress=told.append)
        assert told == sorted(told)
        assert told[-1] == size


async def test_sessions_do_not_see_each_other(storage: SessionStorage, files: FileStore) -> None:
    await files.write("f", b"1", PLENTY)
    assert await paths(storage.files("s-2")) == []
    assert await paths(storage.files("s")) == []
    assert await storage.objects.sessions() == [SESSION]


async def test_files_are_apart_from_what_else_the_session_keeps(storage: SessionStorage, files: FileStore) -> None:
    await storage.put_bytes(SESSION, "calls/c/result.json", b"1")
    assert await paths(files) == []
    with pytest.raises(InvalidSessionPath):
        await content(files, "../calls/c/result.json")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
PARTS = st.one_of(
    TEXT, st.from_regex(r"\A[a.~]{0,3}#[0-9]{1,3}~{0,3}\Z"), st.sampled_from(["CON", " ", "~", "%2E", "%", "a\\b", "+"])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.lists(PARTS, min_size=1, max_size=4).map("/".join), st.binary(max_size=200), max_size=5))
async def test_any_bytes_come_back_under_any_name(files: FileStore, given_files: dict[str, bytes]) -> None:
    await files.delete_folder()  # of the example before
    stored: dict[str, bytes] = {}
    for name, data in given_files.items():
        try:
            path = session_path(name)
        except InvalidSessionPath:
            with pytest.raises(InvalidSessionPath):
                await files.write(name, data, PLENTY)
            continue
        meets = any(path.startswith(f"{each}/") or each.startswith(f"{path}/") for each in stored)
        if meets:
            with pytest.raises(ToolFailure):
                await files.write(name, data, PLENTY)
            continue
        await files.write(name, data, PLENTY)
        stored[path] = data
    assert {path: await content(files, path) for path in await paths(files)} == stored
    assert await files.delete_folder() == len(stored)


async def test_a_folder_is_free_while_nothing_is_in_it_or_in_its_way(files: FileStore) -> None:
    assert await files.is_free("/a/b")
    await files.write("a/bc", b"beside", PLENTY)
    assert await files.is_free("a/b")
    for size in (5, 2 * PART_BYTES):
        written = await files.write("a/b/c", data_of(size), PLENTY, is_fresh=True)
        assert (written.path, written.size) == ("a/b/c", size)
        assert await content(files, "a/b/c") == data_of(size)
    for folder in ("a/b", "a/b/c", "a/b/c/d", ""):
        assert not await files.is_free(folder), folder
