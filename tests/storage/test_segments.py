"""Output in session storage: any bytes in any pieces, from any offset, whoever crashed in between."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandhold.contracts.names import call_folder
from sandhold.storage import SegmentReader, SegmentWriter, SessionStorage
from sandhold.storage import segments as segments_module
from sandhold.storage.segments import SEGMENT_BYTES, segment_path

SESSION = "s-1"


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flush counts, however soon it comes."""
    monkeypatch.setattr(segments_module, "REWRITE_S", 0.0)


def writer(storage: SessionStorage, offset: int = 0, call_id: str = "c") -> SegmentWriter:
    return SegmentWriter(storage, SESSION, call_id, "stdout", offset)


async def whole(storage: SessionStorage, call_id: str = "c", offset: int = 0) -> bytes:
    reader = SegmentReader(storage)
    return b"".join([window.data async for window in reader.windows(SESSION, call_id, "stdout", offset)])


async def size(storage: SessionStorage, call_id: str = "c") -> int:
    return (await SegmentReader(storage).extent(SESSION, call_id, "stdout")).size


async def names(storage: SessionStorage, call_id: str = "c") -> list[str]:
    return sorted([name async for name, _ in storage.list(SESSION, f"calls/{call_id}/stdout")])


async def test_nothing_costs_nothing(storage: SessionStorage) -> None:
    new = writer(storage)
    await new.take(b"")
    await new.flush()
    await new.finish()
    assert await names(storage) == []
    assert await whole(storage) == b""
    assert await size(storage) == 0


async def test_a_stream_is_seen_while_it_grows(storage: SessionStorage) -> None:
    new, data = writer(storage), random.Random(1).randbytes(SEGMENT_BYTES * 2 + 5)
    for end in (1, 700_000, SEGMENT_BYTES, SEGMENT_BYTES + 1, len(data)):
        await new.take(data[new.offset : end])
        await new.flush()
        assert await whole(storage) == data[:end]
        assert await size(storage) == end
    assert new.full_bytes == 2 * SEGMENT_BYTES
    await new.finish()
    assert await names(storage) == [f"{n * SEGMENT_BYTES:020d}" for n in range(3)]
    assert await whole(storage) == data


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=300), st.integers(1, 2_500_000)), max_size=6),
    st.integers(0, 4_000_000),
    st.integers(1, 2_000_000),
    st.data(),
)
async def test_any_bytes_come_back_from_any_offset(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes | int], offset: int, limit: int, data: st.DataObject
) -> None:
    storage = SessionStorage.open(tmp_path_factory.mktemp("store").as_uri())
    stream = b""
    new = writer(storage)
    for piece in pieces:
        added = piece if isinstance(piece, bytes) else random.Random(piece).randbytes(piece)
        stream += added
        await new.take(added)
        if data.draw(st.booleans(), "flush"):
            await new.flush()
        if data.draw(st.booleans(), "crash"):
            new = writer(storage, new.full_bytes)
            await new.take(stream[new.offset :])
    await new.finish()
    assert await whole(storage) == stream
    assert await size(storage) == len(stream)
    window = await SegmentReader(storage).read(SESSION, "c", "stdout", offset, limit)
    assert (window.offset, window.data) == (offset, stream[offset : offset + limit])
    assert window.size == len(window.data)


async def test_a_writer_that_goes_on_after_a_crash_writes_the_same_and_readers_lose_nothing(
    storage: SessionStorage,
) -> None:
    data = random.Random(2).randbytes(SEGMENT_BYTES * 2 + 600_000)
    first = writer(storage)
    await first.take(data)
    await first.flush()
    second = writer(storage, SEGMENT_BYTES)  # its heartbeat was late
    await second.take(data[SEGMENT_BYTES : SEGMENT_BYTES + 10])
    await second.flush()
    assert await whole(storage) == data
    await second.take(data[second.offset : 2 * SEGMENT_BYTES + 10])
    await second.flush()
    assert await whole(storage) == data
    await second.take(data[second.offset :])
    await second.finish()
    assert await whole(storage) == data


async def test_a_writer_that_comes_back_late_spoils_nothing(storage: SessionStorage) -> None:
    data = random.Random(3).randbytes(SEGMENT_BYTES + 1000)
    late = writer(storage)
    await late.take(data[:500])
    second = writer(storage)
    await second.take(data)
    await second.finish()
    await late.flush()
    late_too = writer(storage, SEGMENT_BYTES)
    await late_too.take(data[SEGMENT_BYTES:][:300])
    await late_too.flush()
    assert await whole(storage) == data
    assert await size(storage) == len(data)


async def test_an_offset_behind_the_end_reads_nothing(storage: SessionStorage) -> None:
    new = writer(storage)
    await new.take(b"x" * SEGMENT_BYTES)
    await new.finish()
    for offset in (SEGMENT_BYTES, SEGMENT_BYTES + 1, 2**53):
        assert await whole(storage, offset=offset) == b""


async def test_a_gap_ends_what_there_is(storage: SessionStorage) -> None:
    await storage.put_bytes(SESSION, segment_path("c", "stdout", SEGMENT_BYTES), b"far")
    assert await size(storage) == 0
    assert await whole(storage) == b""


@pytest.mark.parametrize("call_id", ["c", "..", "a:b"])
async def test_how_many_segments_of_both_streams_are_stored_is_found_by_one_list(
    storage: SessionStorage, monkeypatch: pytest.MonkeyPatch, call_id: str
) -> None:
    reader = SegmentReader(storage)
    assert await reader.segments(SESSION, call_id) == {"stdout": 0, "stderr": 0}
    new = writer(storage, call_id=call_id)
    await new.take(b"o" * (2 * SEGMENT_BYTES + 1))
    await new.flush()
    assert await reader.segments(SESSION, call_id) == {"stdout": 3, "stderr": 0}
    await new.finish()
    await storage.put_bytes(SESSION, segment_path(call_id, "stdout", 4 * SEGMENT_BYTES), b"x" * SEGMENT_BYTES)
    await storage.put_bytes(SESSION, segment_path(call_id, "stderr", SEGMENT_BYTES), b"x" * SEGMENT_BYTES)
    await storage.put_json(SESSION, f"calls/{call_folder(call_id)}/result.json", {})
    lists = 0
    listed = storage.list

    def counted(session_id: str, folder: str) -> AsyncIterator[tuple[str, int]]:
        nonlocal lists
        lists += 1
        return listed(session_id, folder)

    monkeypatch.setattr(storage, "list", counted)
    assert await reader.segments(SESSION, call_id) == {"stdout": 3, "stderr": 0}
    assert lists == 1


def test_a_writer_begins_where_a_segment_does(storage: SessionStorage) -> None:
    with pytest.raises(ValueError, match="no segment begins at 5"):
        writer(storage, 5)


async def test_streams_of_calls_with_any_id_are_apart(storage: SessionStorage) -> None:
    for call_id in ("..", ".", "a:b", "a.b"):
        new = writer(storage, call_id=call_id)
        await new.take(call_id.encode())
        await new.finish()
    for call_id in ("..", ".", "a:b", "a.b"):
        assert await whole(storage, call_id) == call_id.encode()
