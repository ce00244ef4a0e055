"""What is left of a session is removed whole, also by whoever goes on after an interruption."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

import pytest

from sandhold.storage import SessionStorage, remains
from sandhold.storage.remains import EndMark, Remains
from tests.storage.conftest import SESSION, Place

MARK = EndMark(deployment="d", ended_at=datetime(2026, 1, 2, tzinfo=UTC), keep_days=1.5)


async def filled(storage: SessionStorage) -> Remains:
    for number in range(7):
        await storage.put_bytes(SESSION, f"files/{number}/x", b"12345")
    await storage.put_bytes("s-2", "files/x", b"other")
    left = Remains(storage.objects, SESSION)
    await left.put_mark(MARK)
    return left


async def test_the_mark_tells_how_long_to_keep(storage: SessionStorage) -> None:
    left = Remains(storage.objects, SESSION)
    assert await left.mark() is None
    assert await left.last_written_at() is None
    await left.put_mark(MARK)
    assert await left.mark() == MARK
    assert MARK.kept_until == datetime(2026, 1, 3, 12, tzinfo=UTC)
    written_at = await left.last_written_at()
    assert written_at is not None
    assert abs((datetime.now(UTC) - written_at).total_seconds()) < 300


async def test_everything_goes_in_batches_and_the_mark_last(
    storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remains, "_AT_ONCE", 3)
    left = await filled(storage)
    removing = left.remove(dry_run=False)
    first = await anext(removing)
    assert (first.objects, first.bytes) == (3, 15)
    await removing.aclose()  # interrupted
    assert await left.mark() == MARK
    assert sum([batch.objects async for batch in left.remove(dry_run=False)]) == 4
    assert await left.mark() is None
    assert await storage.objects.sessions() == ["s-2"]
    assert sum([batch.objects async for batch in left.remove(dry_run=False)]) == 0


async def test_a_dry_run_counts_and_leaves(storage: SessionStorage) -> None:
    left = await filled(storage)
    assert sum([batch.bytes async for batch in left.remove(dry_run=True)]) == 35
    assert len([each async for each in storage.objects.list(SESSION)]) == 8


async def test_a_storage_belongs_to_the_deployment_that_came_first(place: Place) -> None:
    assert await place.open().objects.claimed_by() is None
    assert await place.open().objects.claim("one") == "one"
    assert await place.open().objects.claim("two") == "one"
    assert await place.open().objects.claimed_by() == "one"
    assert await place.open().objects.sessions() == []


async def test_what_a_killed_writer_left_is_removed_after_a_while(place: Place, storage: SessionStorage) -> None:
    await storage.put_bytes(SESSION, "files/x", b"1")
    if place.server is not None:
        assert await storage.objects.remove_unfinished(0.0) == 0
        return
    folder = place.folder() / "sessions" / SESSION / "files"
    for name, age_s in (("x#1", 100.0), ("y#12", 100.0), ("z#3", 1.0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age_s, time.time() - age_s))
    assert [each.path async for each in storage.objects.list(SESSION)] == ["files/x"]
    assert await storage.usage.held(SESSION) == 1
    assert await storage.objects.remove_unfinished(50.0) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["x", "z#3"]
