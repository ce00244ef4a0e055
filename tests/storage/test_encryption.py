"""What lies in the store is read by nobody without the key ring, and changed by nobody unnoticed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.storage import Quota, SegmentWriter, SessionStorage
from sandhold.storage import objects as objects_module
from sandhold.storage.errors import ObjectChanged, StorageDamaged, StorageFault, StoredInTheClear
from sandhold.storage.sealing import CHUNK_BYTES, HEADER_BYTES, SEALED_CHUNK_BYTES, chunk_at, sealed_size, size_of
from tests.stack import RING
from tests.storage.conftest import SESSION, Place, stream

MANY = Quota(2**40, 2**40)
CANARY = b"canary-7f3a-of-what-is-stored"
SIZE = 2 * CHUNK_BYTES + 1000
"""Of an object of three chunks."""


def data_of(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def content(storage: SessionStorage, path: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in storage.objects.read(SESSION, path, start, end)])


async def refused(storage: SessionStorage, path: str) -> StorageDamaged:
    """Whoever reads the object in any way is told that it is damaged, and by the same error."""
    with pytest.raises(StorageDamaged) as failure:
        await storage.get_bytes(SESSION, path)
    with pytest.raises(StorageDamaged) as other:
        await content(storage, path)
    assert type(failure.value) is type(other.value)
    assert not failure.value.retryable
    return failure.value


async def test_the_store_holds_no_byte_of_what_is_stored_in_it(place: Place, storage: SessionStorage) -> None:
    await storage.files(SESSION).write("large", stream(*[CANARY * 40_000] * 8), MANY)
    await storage.files(SESSION).write("small", CANARY, MANY)
    await storage.put_json(SESSION, "calls/c/result.json", {"is": CANARY.decode()})
    assert await storage.put_new(SESSION, "session.json", CANARY)
    writer = SegmentWriter(storage, SESSION, "c", "stdout")
    await writer.take(CANARY * 40_000)
    await writer.finish()
    names = await place.keys()
    assert len(names) >= 7
    for name in names:
        stored = await place.stored(name.removeprefix(f"sessions/{SESSION}/"))
        assert CANARY[:8] not in stored
        assert stored[:3] == (b"SHE" if name.endswith("/session.key") else b"SHO")


async def test_equal_contents_do_not_look_equal(place: Place, storage: SessionStorage) -> None:
    seen = []
    for path in ("a", "a", "b"):
        await storage.put_bytes(SESSION, path, CANARY)
        seen.append((await place.stored(path))[HEADER_BYTES:])
    assert len(set(seen)) == 3


@given(st.integers(0, 5 * CHUNK_BYTES))
def test_the_size_follows_from_what_is_stored(size: int) -> None:
    assert size_of(sealed_size(size)) == size


async def test_sizes_are_those_of_what_was_given(place: Place, storage: SessionStorage) -> None:
    sizes = [0, 1, *(chunks * CHUNK_BYTES + by for chunks in (1, 5, 10, 12) for by in (-1, 0, 1))]
    for size in sizes:
        await storage.objects.write(SESSION, f"{size:010}", stream(bytes(size)))
        found = await storage.objects.find(SESSION, f"{size:010}")
        assert found is not None
        assert found.size == size
        assert len(await place.stored(f"{size:010}")) == sealed_size(size)
    assert [each.size async for each in storage.objects.list(SESSION)] == sizes
    assert await storage.usage.held(SESSION) == sum(sizes)


async def test_any_range_of_an_object_of_many_chunks_is_read(storage: SessionStorage) -> None:
    data = data_of(SIZE)
    await storage.put_bytes(SESSION, "f", data)
    edges = [edge + by for edge in (0, CHUNK_BYTES, 2 * CHUNK_BYTES, SIZE) for by in (-1, 0, 1) if edge + by >= 0]
    chance = random.Random(1)
    edges += [chance.randrange(SIZE) for _ in range(3)]
    for start in edges:
        for end in [None, *edges]:
            assert await content(storage, "f", start, end) == data[start:end]


async def test_a_range_reads_no_more_than_the_chunks_that_it_needs(
    place: Place, storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.put_bytes(SESSION, "f", data_of(SIZE))
    await place.store("f", tampered(await place.stored("f"), chunk_at(0) + 5))
    assert await content(storage, "f", CHUNK_BYTES) == data_of(SIZE)[CHUNK_BYTES:]
    with pytest.raises(StorageDamaged):
        await content(storage, "f", CHUNK_BYTES - 1)


def tampered(stored: bytes, at: int) -> bytes:
    return stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :]


async def test_no_byte_of_a_small_object_can_be_changed(place: Place, storage: SessionStorage) -> None:
    await storage.put_bytes(SESSION, "f", b"12345")
    stored = await place.stored("f")
    # A bucket is asked for each byte of the header, and some of the others.
    for at in range(0, len(stored), 1 if place.server is None else 7):
        await place.store("f", tampered(stored, at))
        error = await refused(storage, "f")
        assert isinstance(error, StoredInTheClear) == (at < 3)
    for length in range(0, len(stored), 1 if place.server is None else 7):
        await place.store("f", stored[:length])
        await refused(storage, "f")
    await place.store("f", stored)
    assert await storage.get_bytes(SESSION, "f") == b"12345"


TAMPERED: dict[str, Callable[[bytes, bytes], bytes]] = {
    "the first byte of a chunk": lambda stored, _: tampered(stored, chunk_at(1)),
    "the tag of a chunk": lambda stored, _: tampered(stored, chunk_at(1) - 1),
    "the last byte": lambda stored, _: tampered(stored, len(stored) - 1),
    "a byte more": lambda stored, _: stored + b"x",
    "an empty chunk more": lambda stored, _: stored + bytes(16),
    "the last chunk missing": lambda stored, _: stored[: chunk_at(2)],
    "the first chunk missing": lambda stored, _: stored[:HEADER_BYTES] + stored[chunk_at(1) :],
    "the middle chunk missing": lambda stored, _: stored[: chunk_at(1)] + stored[chunk_at(2) :],
    "a byte missing": lambda stored, _: stored[:-1],
    "nothing but the header": lambda stored, _: stored[:HEADER_BYTES],
    "half a chunk": lambda stored, _: stored[: chunk_at(1) + 1000],
    "two chunks swapped": lambda stored, _: (
        stored[: chunk_at(0)]
        + stored[chunk_at(1) : chunk_at(2)]
        + stored[chunk_at(0) : chunk_at(1)]
        + stored[chunk_at(2) :]
    ),
    "a chunk repeated": lambda stored, _: stored[: chunk_at(1)] + stored[chunk_at(0) :],
    "the last chunk first": lambda stored, _: stored[:HEADER_BYTES] + stored[chunk_at(2) :],
    "the header of another": lambda stored, other: other[:HEADER_BYTES] + stored[HEADER_BYTES:],
    "a chunk of another": lambda stored, other: (
        stored[: chunk_at(1)] + other[chunk_at(1) : chunk_at(2)] + stored[chunk_at(2) :]
    ),
    "another": lambda _, other: other,
    "nothing": lambda _, __: b"",
    "what was given": lambda _, __: data_of(SIZE),
}


@pytest.mark.parametrize("how", TAMPERED)
async def test_what_was_changed_or_moved_is_refused(place: Place, storage: SessionStorage, how: str) -> None:
    await storage.put_bytes(SESSION, "f", data_of(SIZE))
    await storage.put_bytes(SESSION, "g", data_of(SIZE, seed=2))
    stored = await place.stored("f")
    changed = TAMPERED[how](stored, await place.stored("g"))
    await place.store("f", changed)
    await refused(storage, "f")
    if len(changed) != len(stored):
        # Where it ends is not told either, to whoever asks for what lies there or behind.
        for start in (SIZE - 1, SIZE, SIZE + 10 * CHUNK_BYTES):
            with pytest.raises(StorageDamaged):
                await content(storage, "f", start)


async def test_what_is_appended_to_a_full_chunk_is_noticed(place: Place, storage: SessionStorage) -> None:
    await storage.put_bytes(SESSION, "f", bytes(CHUNK_BYTES))
    stored = await place.stored("f")
    assert len(stored) == HEADER_BYTES + SEALED_CHUNK_BYTES
    for more in (1, 15, 16, 17):
        await place.store("f", stored + bytes(more))
        await refused(storage, "f")


async def test_an_object_opens_under_its_own_session_and_path_only(place: Place, storage: SessionStorage) -> None:
    await storage.put_bytes(SESSION, "files/a", b"1")
    await storage.put_bytes("s-2", "files/a", b"2")
    mine, theirs = await place.stored("files/a"), await place.stored("files/a", "s-2")
    await place.store("files/b", mine)
    await refused(storage, "files/b")
    await place.store("files/a", theirs)
    await refused(storage, "files/a")
    # With the key of the other session beside it as well.
    await place.store("session.key", await place.stored("session.key", "s-2"))
    with pytest.raises(StorageFault):
        await place.open().get_bytes(SESSION, "files/a")


async def test_a_chunk_is_given_out_only_once_it_has_been_verified(place: Place, storage: SessionStorage) -> None:
    data = data_of(SIZE)
    await storage.put_bytes(SESSION, "f", data)
    await place.store("f", tampered(await place.stored("f"), chunk_at(2) - 1))
    reading = storage.objects.read(SESSION, "f")
    assert await anext(reading) == data[:CHUNK_BYTES]
    with pytest.raises(StorageDamaged):
        await anext(reading)


async def test_who_asks_for_a_file_is_told_by_a_typed_error(place: Place, storage: SessionStorage) -> None:
    files = storage.files(SESSION)
    await files.write("a", b"1", MANY)
    await place.store("files/a", tampered(await place.stored("files/a"), HEADER_BYTES))
    with pytest.raises(ToolFailure) as failure:
        _ = [piece async for piece in files.read("a")]
    assert (failure.value.error.code, failure.value.error.retryable) == (ErrorCode.INTERNAL, False)
    assert "damaged" in failure.value.error.message
    # It can be removed, and written again.
    await files.write("a", b"2", MANY)
    assert [piece async for piece in files.read("a")] == [b"2"]
    await place.store("files/a", b"plain")
    assert [each.path async for each in files.list()] == ["a"]
    await files.delete("a")


async def test_an_object_of_a_newer_format_is_told_as_such(place: Place, storage: SessionStorage) -> None:
    await storage.put_bytes(SESSION, "f", b"1")
    stored = await place.stored("f")
    await place.store("f", stored[:3] + b"\x02" + stored[4:])
    assert "format" in str(await refused(storage, "f"))


async def test_what_was_stored_before_encryption_is_refused_and_says_what_helps(
    place: Place, storage: SessionStorage
) -> None:
    for data in (b"", b"plain", data_of(SIZE)):
        await place.store("f", data)
        error = await refused(storage, "f")
        assert isinstance(error, StoredInTheClear)
        assert "sandhold storage encrypt" in str(error.hint)
        for work in (
            storage.put_bytes(SESSION, "g", b"1"),
            storage.put_new(SESSION, "g", b"1"),
            storage.objects.write(SESSION, "g", stream(bytes(6 * CHUNK_BYTES))),
        ):
            with pytest.raises(StoredInTheClear):
                await work
    assert await place.keys() == [f"sessions/{SESSION}/f"]
    assert place.unfinished() == 0


async def test_a_read_from_the_middle_begins_anew_when_the_object_is_replaced_before_it_began(
    place: Place, storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = data_of(SIZE), data_of(SIZE, seed=2)
    await storage.put_bytes(SESSION, "f", old)
    all_of = objects_module._all_of
    replacements = 1

    async def replaced_meanwhile(reading: objects_module.Reading) -> bytes:
        nonlocal replacements
        header = await all_of(reading)
        if replacements:
            replacements -= 1
            await place.open().put_bytes(SESSION, "f", new)
        return header

    monkeypatch.setattr(objects_module, "_all_of", replaced_meanwhile)
    assert await content(storage, "f", CHUNK_BYTES + 1) == new[CHUNK_BYTES + 1 :]
    replacements = 100
    with pytest.raises(ObjectChanged):
        await content(storage, "f", CHUNK_BYTES + 1)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 3 * CHUNK_BYTES), data=st.data())
async def test_any_pieces_in_and_any_range_out(
    tmp_path_factory: pytest.TempPathFactory, size: int, data: st.DataObject
) -> None:
    storage = SessionStorage.open(tmp_path_factory.mktemp("store").as_uri(), RING)
    whole = os.urandom(size)
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=4)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, size], strict=True)]
    assert await storage.objects.write(SESSION, "f", stream(*pieces)) == size
    start, end = data.draw(st.integers(0, size + 10)), data.draw(st.integers(0, size + 10))
    assert await content(storage, "f", start, end) == whole[start:end]
    assert await storage.get_bytes(SESSION, "f") == whole
