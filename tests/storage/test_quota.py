"""Quotas: what does not fit is refused before it is written, whoever else writes, and nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator

import pytest

from sandhold.contracts.errors import ErrorCode
from sandhold.storage import FileStore, Quota, QuotaExceeded, SegmentReader, SegmentWriter, SessionStorage
from sandhold.storage import quota as quota_module
from sandhold.storage.objects import PART_BYTES
from sandhold.storage.quota import RESERVATIONS, UNCOUNTED_BYTES
from tests.storage.conftest import SESSION, Place, stream

MIB = 1024 * 1024


def quota(session_mib: float, file_mib: float = 1000) -> Quota:
    return Quota(session_bytes=int(session_mib * MIB), file_bytes=int(file_mib * MIB))


async def pieces(mib: int) -> AsyncIterator[bytes]:
    for _ in range(mib):
        yield b"x" * MIB
        await asyncio.sleep(0)


async def held(place: Place) -> int:
    """What the session holds, in the eyes of a process that knows nothing yet; nothing that is unfinished is left."""
    assert place.unfinished() == 0
    fresh = place.open()
    assert [each async for each in fresh.objects.list(SESSION, RESERVATIONS)] == []
    return await fresh.usage.held(SESSION)


async def test_a_file_beyond_its_quota_is_refused_at_once_when_its_length_is_known(
    place: Place, files: FileStore
) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    with pytest.raises(QuotaExceeded) as failure:
        await files.write("f", never(), quota(100, 2), size=2 * MIB + 1)
    assert failure.value.error.code is ErrorCode.QUOTA_EXCEEDED
    with pytest.raises(QuotaExceeded):
        await files.write("f", b"x" * (2 * MIB + 1), quota(100, 2))
    with pytest.raises(QuotaExceeded):
        await files.write("f", never(), quota(5), size=100 * MIB)
    assert await held(place) == 0


@pytest.mark.parametrize("allowed", [2, 12])
async def test_a_stream_of_unknown_length_is_refused_as_soon_as_it_is_too_long(
    place: Place, files: FileStore, allowed: int
) -> None:
    read = 0

    async def long() -> AsyncIterator[bytes]:
        nonlocal read
        async for piece in pieces(200):
            read += len(piece)
            yield piece

    await files.write("f", b"before", quota(100))
    for limits in (quota(1000, allowed), quota(allowed, 1000)):
        read = 0
        with pytest.raises(QuotaExceeded):
            await files.write("f", long(), limits)
        assert read <= allowed * MIB + 2 * PART_BYTES
    assert await held(place) == len(b"before")


async def test_what_fits_exactly_is_taken_and_room_is_found_again(place: Place, files: FileStore) -> None:
    limits = quota(20)
    await files.write("large", pieces(12), limits)
    await files.write("small", b"x" * 8 * MIB, limits)
    for size in (1, 9 * MIB):
        with pytest.raises(QuotaExceeded):
            await files.write("more", b"x" * size, limits)
    await files.write("large", pieces(12), limits, size=12 * MIB)  # in place of itself
    await files.write("small", b"x", limits)
    await files.write("small", stream(b"x" * 8 * MIB), limits)
    await files.delete("large")
    await files.write("other", pieces(12), limits)
    assert await held(place) == 20 * MIB


async def test_a_session_that_is_over_its_quota_can_still_be_made_smaller(files: FileStore) -> None:
    await files.write("f", b"x" * 8 * MIB, quota(100))
    await files.write("f", b"x" * 7 * MIB, quota(1))
    await files.write("f", b"x", quota(1))
    await files.write("g", b"x", quota(1))


async def test_of_two_large_writers_at_once_none_slips_past(place: Place) -> None:
    """Each is a process of its own, and both have begun before either is done."""
    both = asyncio.Barrier(2)

    async def meeting() -> AsyncIterator[bytes]:
        async for piece in pieces(8):
            yield piece
        await both.wait()
        async for piece in pieces(4):
            yield piece

    async def writes(name: str, data: AsyncIterator[bytes], size: int | None) -> bool:
        try:
            await place.open().files(SESSION).write(name, data, quota(20), size=size)
        except QuotaExceeded:
            await both.abort()
            return False
        except asyncio.BrokenBarrierError:
            return False
        return True

    for size in (12 * MIB, None):
        both = asyncio.Barrier(2)
        done = await asyncio.gather(writes("one", meeting(), size), writes("two", meeting(), size))
        assert sum(done) <= 1
        assert await held(place) <= 20 * MIB


async def test_small_writers_slip_past_by_a_bounded_amount(place: Place) -> None:
    processes = [place.open() for _ in range(3)]

    async def writes(number: int, process: SessionStorage) -> None:
        files = process.files(SESSION)
        for name in range(60):
            try:
                await files.write(f"{number}/{name}", b"x" * MIB, quota(40))
            except QuotaExceeded:
                return

    await asyncio.gather(*(writes(number, process) for number, process in enumerate(processes)))
    assert 40 * MIB <= await held(place) <= 40 * MIB + (len(processes) - 1) * UNCOUNTED_BYTES


async def test_a_writer_that_died_gives_its_room_back_after_a_while(
    place: Place, storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.put_bytes(SESSION, f"{RESERVATIONS}/dead.{15 * MIB}", b"")
    files = place.open().files(SESSION)
    with pytest.raises(QuotaExceeded):
        await files.write("f", pieces(10), quota(20))
    if place.server is None:
        long_ago = time.time() - quota_module.RESERVED_FOR_S - 10
        os.utime(place.folder() / "sessions" / SESSION / RESERVATIONS / f"dead.{15 * MIB}", (long_ago, long_ago))
    else:
        await asyncio.sleep(1.1)  # its times are full seconds
        monkeypatch.setattr(quota_module, "RESERVED_FOR_S", 1.0)
    await files.write("f", pieces(10), quota(20))


async def test_a_slow_writer_keeps_its_room(
    place: Place, storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_module, "RENEW_AFTER_S", 0.0)
    laid: list[str] = []
    put = storage.objects.put

    async def noted(session_id: str, path: str, data: bytes) -> None:
        laid.append(path)
        await put(session_id, path, data)

    monkeypatch.setattr(storage.objects, "put", noted)
    await storage.files(SESSION).write("f", pieces(8), quota(20), size=8 * MIB)
    reservations = [path for path in laid if path.startswith(RESERVATIONS)]
    assert len(reservations) > 2
    assert len(set(reservations)) == 1
    assert await held(place) == 8 * MIB


async def test_all_that_a_session_keeps_counts(storage: SessionStorage, files: FileStore) -> None:
    await storage.put_json(SESSION, "calls/c/result.json", "x" * MIB)
    with pytest.raises(QuotaExceeded):
        await files.write("f", b"x" * MIB, quota(2))
    with pytest.raises(QuotaExceeded):
        await storage.put_json(SESSION, "calls/c/arguments.json", "x" * MIB, quota=2 * MIB)


async def test_output_beyond_the_quota_is_cut_where_readers_saw_its_end(storage: SessionStorage) -> None:
    data = random.Random(1).randbytes(6 * MIB)
    writer = SegmentWriter(storage, SESSION, "c", "stdout", quota=int(3.5 * MIB))
    for start in range(0, len(data), MIB // 2):
        await writer.take(data[start : start + MIB // 2])
        await writer.flush()
        assert writer.offset == start + MIB // 2
    await writer.finish()
    assert not writer.whole
    reader = SegmentReader(storage)
    kept = b"".join([window.data async for window in reader.windows(SESSION, "c", "stdout")])
    assert kept == data[: len(kept)]
    assert 3 * MIB <= len(kept) <= 3.5 * MIB
    assert (await reader.extent(SESSION, "c", "stdout")).size == len(kept)
    again = SegmentWriter(storage, SESSION, "c", "stdout", writer.full_bytes, quota=int(3.5 * MIB))
    await again.take(data[again.offset :])
    await again.finish()
    assert not again.whole
    assert b"".join([window.data async for window in reader.windows(SESSION, "c", "stdout")]) == kept


async def test_a_session_whose_counting_takes_long_is_counted_less_often(
    storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = 0
    count = storage.usage.held
    takes_s = 0.0

    async def held(session_id: str) -> int:
        nonlocal counts
        counts += 1
        await asyncio.sleep(takes_s)
        return await count(session_id)

    monkeypatch.setattr(quota_module, "COUNTED_FOR_S", 0.0)
    monkeypatch.setattr(quota_module, "COUNTING_SHARE", 0.0)
    monkeypatch.setattr(storage.usage, "held", held)
    files = storage.files(SESSION)
    for name in ("a", "b", "c"):
        await files.write(name, b"1", quota(20))
    assert counts == 3
    monkeypatch.setattr(quota_module, "COUNTING_SHARE", 1000.0)
    takes_s = 0.1
    for name in ("a", "b", "c"):
        await files.write(name, b"1", quota(20))
    assert counts == 4


async def test_a_large_quota_takes_more_small_files_between_two_counts(
    storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = 0
    count = storage.usage.held

    async def held(session_id: str) -> int:
        nonlocal counts
        counts += 1
        return await count(session_id)

    monkeypatch.setattr(storage.usage, "held", held)
    monkeypatch.setattr(quota_module, "COUNTED_FOR_S", 3600.0)
    files = storage.files(SESSION)
    for number in range(40):
        await files.write(f"{number}", b"x" * MIB, quota(5 * 1024))
    assert counts == 1
    for number in range(40):
        await files.write(f"{number}", b"x" * MIB, quota(100))
    assert counts > 2
