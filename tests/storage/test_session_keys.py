"""The key of a session's storage: one per session, laid before anything else, never replaced by another, gone last."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from sandhold.contracts.errors import ToolFailure
from sandhold.security import Envelope, KeyRingUnusable, WrappedKey
from sandhold.security import Place as SealedPlace
from sandhold.security.envelope import key_id_of
from sandhold.security.holders import SealedHolder, SealedRow
from sandhold.security.key_document import KeyDocument, RingKey
from sandhold.security.key_rings import EnvironmentKeyRing
from sandhold.storage import Quota, SessionStorage, session_keys
from sandhold.storage.errors import KeyRingAway, StorageError, StorageLocked, StorageRefused
from sandhold.storage.objects import SessionObjects
from sandhold.storage.remains import EndMark, Remains
from sandhold.storage.session_keys import SESSION_KEY, SessionKeys
from tests.stack import RING
from tests.storage.conftest import SESSION, Place, stream

MANY = Quota(2**40, 2**40)
MIB = 1024 * 1024
OLD = KeyDocument.new()
MARK = EndMark(deployment="d", ended_at=datetime(2026, 1, 2, tzinfo=UTC), keep_days=1.5)


def ring_of(*keys: RingKey) -> EnvironmentKeyRing:
    return EnvironmentKeyRing(KeyDocument(keys=list(keys)).dump())


def rotated() -> EnvironmentKeyRing:
    """A ring with a new primary key, which still has the old one."""
    return ring_of(OLD.primary.model_copy(update={"state": "decrypt_only"}), RingKey.new("primary"))


async def is_locked(storage: SessionStorage) -> StorageLocked:
    """Nothing of the session can be read or written, by any way, and each says so by the same error."""
    files = storage.files(SESSION)
    for work in (
        storage.get_bytes(SESSION, "files/a"),
        storage.put_new(SESSION, "files/b", b"2"),
        storage.objects.write(SESSION, "files/b", stream(bytes(6 * MIB))),
    ):
        with pytest.raises(StorageLocked):
            await work
    with pytest.raises(ToolFailure) as told:
        await files.write("a", b"2", MANY)
    assert not told.value.error.retryable
    assert "key ring" in str(told.value.error.hint)
    with pytest.raises(StorageLocked) as failure:
        await storage.put_bytes(SESSION, "files/a", b"2")
    # So a clean-up, and whoever keeps a workspace, deal with it as with wrong credentials.
    assert isinstance(failure.value, StorageRefused)
    return failure.value


async def test_the_key_is_none_of_the_sessions_objects(place: Place, storage: SessionStorage) -> None:
    await storage.put_bytes(SESSION, "files/a", b"1")
    assert [each.path async for each in storage.objects.list(SESSION)] == ["files/a"]
    assert await storage.usage.held(SESSION) == 1
    assert sorted(await place.keys()) == [f"sessions/{SESSION}/files/a", f"sessions/{SESSION}/{SESSION_KEY}"]
    for work in (
        storage.get_bytes(SESSION, SESSION_KEY),
        storage.put_bytes(SESSION, SESSION_KEY, b""),
        storage.put_new(SESSION, SESSION_KEY, b""),
        storage.delete(SESSION, SESSION_KEY),
    ):
        with pytest.raises(StorageError, match="not a path"):
            await work
    await storage.files(SESSION).write(SESSION_KEY, b"a user's file may be called so", MANY)
    assert await storage.files(SESSION).delete_folder() == 2
    assert await place.open().objects.key_laid_at(SESSION) is not None


async def test_reading_lays_no_key(place: Place, storage: SessionStorage) -> None:
    assert await storage.get_bytes(SESSION, "a") is None
    assert await storage.objects.find(SESSION, "a") is None
    assert [each async for each in storage.objects.list(SESSION)] == []
    await storage.delete(SESSION, "a")
    assert await place.keys() == []


async def test_all_first_writers_at_once_write_under_one_key(place: Place) -> None:
    processes = [place.open() for _ in range(8)]
    await asyncio.gather(
        *(process.put_bytes(SESSION, f"files/{n}-{m}", b"1") for n, process in enumerate(processes) for m in range(3))
    )
    fresh = place.open()
    for n in range(len(processes)):
        for m in range(3):
            assert await fresh.get_bytes(SESSION, f"files/{n}-{m}") == b"1"


async def test_a_writer_that_is_overtaken_between_its_looks_takes_the_others_key(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds no key, then the other one's first object: that is no object without a key."""
    late, found, overtaken = place.open(), session_keys.SessionKeys._found, False

    async def found_late(keys: session_keys.SessionKeys, session_id: str) -> object:
        nonlocal overtaken
        known = await found(keys, session_id)
        if not overtaken:
            overtaken = True
            await place.open().put_bytes(SESSION, "files/a", b"1")
        return known

    monkeypatch.setattr(session_keys.SessionKeys, "_found", found_late)
    await late.put_bytes(SESSION, "files/b", b"2")
    assert [await place.open().get_bytes(SESSION, f"files/{name}") for name in "ab"] == [b"1", b"2"]


async def test_a_missing_key_is_never_replaced_by_another(place: Place, storage: SessionStorage) -> None:
    await storage.put_bytes(SESSION, "files/a", b"1")
    key = await place.stored(SESSION_KEY)
    await place.take_away(SESSION_KEY)
    assert "missing" in str(await is_locked(place.open()))
    assert await place.keys() == [f"sessions/{SESSION}/files/a"]
    await place.store(SESSION_KEY, key)
    assert await place.open().get_bytes(SESSION, "files/a") == b"1"


async def test_a_key_that_was_altered_opens_nothing(place: Place, storage: SessionStorage) -> None:
    await storage.put_bytes(SESSION, "files/a", b"1")
    key = await place.stored(SESSION_KEY)
    for at in range(0, len(key), 1 if place.server is None else 11):
        await place.store(SESSION_KEY, key[:at] + bytes([key[at] ^ 1]) + key[at + 1 :])
        with pytest.raises(StorageLocked):
            await place.open().get_bytes(SESSION, "files/a")
    for data in (b"", key[:-1], key + b"x", b"plain"):
        await place.store(SESSION_KEY, data)
        await is_locked(place.open())
    await storage.put_bytes("s-2", "files/a", b"1")
    await place.store(SESSION_KEY, await place.stored(SESSION_KEY, "s-2"))
    await is_locked(place.open())
    assert await place.stored(SESSION_KEY) == await place.stored(SESSION_KEY, "s-2")


async def test_a_key_ring_without_the_key_locks_the_storage_and_names_the_key(place: Place) -> None:
    await place.open(ring_of(*OLD.keys)).put_bytes(SESSION, "files/a", b"1")
    assert OLD.primary.id in str(await is_locked(place.open(RING)))
    assert await place.open(rotated()).get_bytes(SESSION, "files/a") == b"1"


async def test_a_key_ring_that_is_away_may_come_back(place: Place) -> None:
    class Away(EnvironmentKeyRing):
        is_away = True

        async def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
            if self.is_away:
                raise KeyRingUnusable("the key ring /secret/place cannot be read")
            return await super().wrap(data_key, context)

        async def unwrap(self, key: WrappedKey, context: bytes) -> bytes:
            if self.is_away:
                raise KeyRingUnusable("the key ring /secret/place cannot be read")
            return await super().unwrap(key, context)

    ring = Away(OLD.dump())
    storage = place.open(ring)
    with pytest.raises(KeyRingAway) as failure:
        await storage.put_bytes(SESSION, "files/a", b"1")
    assert failure.value.retryable
    assert "/secret/place" not in str(failure.value)
    assert failure.value.__cause__ is None
    ring.is_away = False
    await storage.put_bytes(SESSION, "files/a", b"1")
    ring.is_away = True
    assert await storage.get_bytes(SESSION, "files/a") == b"1", "a key that is known needs no ring"
    with pytest.raises(KeyRingAway):
        await place.open(ring).get_bytes(SESSION, "files/a")


async def test_the_storage_of_the_next_session_of_the_same_id_has_another_key(
    place: Place, storage: SessionStorage
) -> None:
    """A process that knew the earlier one finds the new one when it reads, and in time when it writes."""
    await storage.put_bytes(SESSION, "files/a", b"1")
    async for _ in Remains(place.open().objects, SESSION).remove(dry_run=False):
        pass
    assert await place.keys() == []
    await place.open().put_bytes(SESSION, "files/a", b"2")
    assert await storage.get_bytes(SESSION, "files/a") == b"2"
    assert [piece async for piece in storage.objects.read(SESSION, "files/a")] == [b"2"]
    await storage.put_bytes(SESSION, "files/b", b"3")
    assert await place.open().get_bytes(SESSION, "files/b") == b"3"


async def test_a_key_that_was_looked_up_long_ago_does_not_write(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_keys, "KNOWN_FOR_S", 0.0)
    storage = place.open()
    await storage.put_bytes(SESSION, "files/a", b"1")
    async for _ in Remains(place.open().objects, SESSION).remove(dry_run=False):
        pass
    await place.open().put_bytes(SESSION, "files/a", b"2")
    await storage.put_bytes(SESSION, "files/b", b"3")
    assert await place.open().get_bytes(SESSION, "files/b") == b"3"


async def test_the_key_goes_last_and_a_removal_can_be_interrupted_anywhere(
    place: Place, storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def killed(*args: object) -> None:
        raise Killed

    left = Remains(storage.objects, SESSION)
    await storage.put_bytes(SESSION, "files/a", b"1")
    await left.put_mark(MARK)
    for step in ("delete", "remove_key"):
        with monkeypatch.context() as patch:
            patch.setattr(storage.objects, step, killed)
            with pytest.raises(Killed):
                _ = [batch async for batch in left.remove(dry_run=False)]
        assert f"sessions/{SESSION}/{SESSION_KEY}" in await place.keys()
        # Whoever goes on can read what is left, and knows how old it is.
        mark = await Remains(place.open().objects, SESSION).mark()
        assert mark == (MARK if step == "delete" else None)
        assert await Remains(place.open().objects, SESSION).last_written_at() is not None
        assert await place.open().objects.sessions() == [SESSION]
    assert await place.keys() == [f"sessions/{SESSION}/{SESSION_KEY}"]
    assert [batch.objects async for batch in Remains(place.open().objects, SESSION).remove(dry_run=False)] == [0]
    assert await place.keys() == []
    assert await left.last_written_at() is None


async def test_a_rotation_wraps_one_object_per_session_anew(place: Place) -> None:
    before = place.open(ring_of(*OLD.keys))
    for number in range(5):
        await before.put_bytes(f"s-{number}", "files/a", bytes(MIB + number))
    await before.objects.claim("here")
    await place.store("files/left", b"an object from before encryption", "s-8")
    await place.store("files/clear", b"an object from before encryption", "s-9")
    await place.store("files/left", await place.stored("files/a", "s-4"), "s-9")  # Its key is gone.
    untouched = await place.stored("files/a", "s-3")
    ring = rotated()
    after = place.open(ring).objects
    assert [row.cursor for row in await after.sealed_batch("", 3)] == ["s-0", "s-1", "s-2"]
    *_, keyless = await after.sealed_batch("s-2", 3)
    assert (keyless.cursor, keyless.sealed, "missing" in keyless.fault) == ("s-9", b"", True)
    assert await after.sealed_batch("s-9", 3) == []
    holder = SealedHolder("storage", after, Envelope(ring))
    steps = [step async for step in holder.rewrap()]
    assert sum(step.done for step in steps) == 5
    assert [fault.place.record for step in steps for fault in step.faults] == ["s-9"]
    assert sum([step.already async for step in holder.rewrap()]) == 5
    assert (await holder.survey()).by_key == {await ring.primary(): 5}
    assert await place.stored("files/a", "s-3") == untouched
    new_key_only = place.open(ring_of(*(key for key in ring.document().keys if key.state == "primary")))
    assert await new_key_only.get_bytes("s-3", "files/a") == bytes(MIB + 3)
    # A process that knows the key from before goes on with it.
    await before.put_bytes("s-3", "files/b", b"1")
    assert await new_key_only.get_bytes("s-3", "files/b") == b"1"
    assert place.unfinished() == 0


async def test_a_walk_over_all_keys_lists_the_sessions_once_and_asks_for_some_keys_at_a_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = place.open()
    for number in range(40):
        await storage.put_bytes(f"s-{number:02}", "files/a", b"1")
    listed, asked, most = 0, 0, 0
    sessions, sealed = SessionObjects.sessions, SessionKeys.sealed

    async def counted(self: SessionObjects) -> list[str]:
        nonlocal listed
        listed += 1
        return await sessions(self)

    async def watched(self: SessionKeys, session_id: str) -> SealedRow | None:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        try:
            return await sealed(self, session_id)
        finally:
            asked -= 1

    monkeypatch.setattr(SessionObjects, "sessions", counted)
    monkeypatch.setattr(SessionKeys, "sealed", watched)
    after, cursors = "", []
    while batch := await storage.objects.sealed_batch(after, 18):
        cursors += [row.cursor for row in batch]
        after = batch[-1].cursor
    assert cursors == [f"s-{number:02}" for number in range(40)]
    assert (listed, most) == (1, 16)
    # Who begins anew, or anywhere else, is not told of the past.
    await storage.put_bytes("s-99", "files/a", b"1")
    assert [row.cursor for row in await storage.objects.sealed_batch("s-38", 18)] == ["s-39", "s-99"]
    assert listed == 2


async def test_a_key_that_was_removed_or_replaced_meanwhile_is_not_wrapped_anew(place: Place) -> None:
    await place.open(ring_of(*OLD.keys)).put_bytes(SESSION, "files/a", b"1")
    ring = rotated()
    objects = place.open(ring).objects
    [row] = await objects.sealed_batch("", 10)
    assert row.place == SealedPlace("storage", "", SESSION, "key")
    new = await Envelope(ring).rewrap(row.sealed, row.place)
    assert await objects.replace_sealed(row, new)
    assert not await objects.replace_sealed(row, new), "what was read is not what lies there any more"
    assert key_id_of(await place.stored(SESSION_KEY)) == await ring.primary()
    [row] = await objects.sealed_batch("", 10)
    await objects.remove_key(SESSION)
    assert not await objects.replace_sealed(row, row.sealed)
    assert SESSION_KEY not in str(await place.keys())
