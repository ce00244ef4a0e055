"""Secrets in stored output: none is readable from any offset, and the stored bytes do not depend on how they came."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandhold.security.redaction import Redactor
from sandhold.storage import OutputWindow, SegmentReader, SegmentWriter, SessionStorage
from sandhold.storage import segment_format as format_module
from sandhold.storage import segments as segments_module
from sandhold.storage.quota import Usage
from sandhold.storage.segment_format import MAGIC
from sandhold.storage.segments import SEGMENT_BYTES, segment_path
from tests.storage.conftest import SESSION

SECRET = b"correct-horse-baccarat"
LABEL = b"[redacted:PHRASE]"
REDACTOR = Redactor({"PHRASE": SECRET.decode(), "OTHER": "carat-staple-42"})
"""The ends of one may be the beginnings of the other."""
ALONE = Redactor({"PHRASE": SECRET.decode()})
SMALL = 64


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flush counts, however soon it comes."""
    monkeypatch.setattr(segments_module, "REWRITE_S", 0.0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that a secret crosses the borders of again and again."""
    monkeypatch.setattr(segments_module, "SEGMENT_BYTES", SMALL)
    monkeypatch.setattr(format_module, "SEGMENT_BYTES", SMALL)


class Kept:
    """Objects in memory, for tests of many streams."""

    usage: Usage

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    async def put_bytes(self, session_id: str, path: str, data: bytes) -> None:
        self.objects[path] = data

    async def get_bytes(self, session_id: str, path: str) -> bytes | None:
        return self.objects.get(path)

    async def delete(self, session_id: str, path: str) -> None:
        self.objects.pop(path, None)

    async def list(self, session_id: str, folder: str) -> AsyncIterator[tuple[str, int]]:
        for path in sorted(self.objects):
            if path.startswith(f"{folder}/"):
                yield path.removeprefix(f"{folder}/"), len(self.objects[path])


def writer(storage: SessionStorage | Kept, offset: int = 0, redactor: Redactor = REDACTOR) -> SegmentWriter:
    return SegmentWriter(storage, SESSION, "c", "stdout", offset, redactor=redactor)


async def stored(storage: SessionStorage | Kept, data: bytes, redactor: Redactor = REDACTOR) -> SegmentWriter:
    new = writer(storage, redactor=redactor)
    await new.take(data)
    await new.finish()
    return new


async def whole(storage: SessionStorage | Kept) -> bytes:
    return b"".join([each.data async for each in SegmentReader(storage).windows(SESSION, "c", "stdout")])


async def read(storage: SessionStorage | Kept, offset: int, limit: int) -> OutputWindow:
    return await SegmentReader(storage).read(SESSION, "c", "stdout", offset, limit)


def shows_no_part(data: bytes, secret: bytes = SECRET) -> bool:
    """Whether no four bytes of the secret stand anywhere."""
    return not any(secret[at : at + 4] in data.replace(LABEL, b"|") for at in range(len(secret) - 3))


@pytest.mark.parametrize("before", [1, 10, len(SECRET) - 1, len(SECRET)])
async def test_a_secret_across_a_border_belongs_to_the_segment_in_which_it_begins(
    storage: SessionStorage, before: int
) -> None:
    filling = b"o" * (SEGMENT_BYTES - before)
    new = await stored(storage, filling + SECRET + b" and more\n")
    assert (new.offset, new.full_bytes, new.redactions) == (len(filling) + len(SECRET) + 10, SEGMENT_BYTES, 1)
    assert await whole(storage) == filling + LABEL + b" and more\n"
    for path in (0, SEGMENT_BYTES):
        raw = await storage.get_bytes(SESSION, segment_path("c", "stdout", path))
        assert raw is not None
        assert shows_no_part(raw)
    begin, end = len(filling), len(filling) + len(SECRET)
    for offset in range(begin - 3, end + 3):
        window = await read(storage, offset, 100)
        assert window.offset == (offset if offset <= begin or offset >= end else end)
        assert shows_no_part(window.data)
        assert window.end == new.offset
        assert window.redactions == (offset <= begin)
    extent = await SegmentReader(storage).extent(SESSION, "c", "stdout")
    assert (extent.size, extent.redactions) == (new.offset, 1)


async def test_whoever_goes_on_behind_a_secret_across_a_border_begins_at_its_end(storage: SessionStorage) -> None:
    filling = b"o" * (SEGMENT_BYTES - 5)
    crashed = writer(storage, redactor=ALONE)
    await crashed.take(filling + SECRET)
    for offset in (0, SEGMENT_BYTES):
        new = writer(storage, offset, ALONE)
        await new.go_on()
        assert (new.offset, new.full_bytes, new.redactions) == (len(filling) + len(SECRET), SEGMENT_BYTES, 1)
    await new.take(b" end\n")
    await new.finish()
    assert await whole(storage) == filling + LABEL + b" end\n"


async def test_a_reader_that_is_in_the_middle_of_the_last_secret_gets_to_the_end(storage: SessionStorage) -> None:
    """The secret goes on beyond the last segment there is."""
    await stored(storage, b"o" * (SEGMENT_BYTES - 5) + SECRET)
    end = SEGMENT_BYTES - 5 + len(SECRET)
    for offset in (SEGMENT_BYTES - 4, SEGMENT_BYTES, SEGMENT_BYTES + 3, end):
        assert await read(storage, offset, 10) == OutputWindow(end, 0, b"")
    assert (await SegmentReader(storage).extent(SESSION, "c", "stdout")).size == end


async def test_what_may_be_the_beginning_of_a_secret_is_not_seen_before_that_is_known(storage: SessionStorage) -> None:
    new = writer(storage, redactor=ALONE)
    for at in range(len(SECRET)):
        await new.take(SECRET[at : at + 1])
        await new.flush()
        assert await whole(storage) == (LABEL if at == len(SECRET) - 1 else b"")
    for byte in b"correct-hot correct":
        await new.take(bytes([byte]))
        await new.flush()
    assert await whole(storage) == LABEL + b"correct-hot "
    await new.finish()
    assert await whole(storage) == LABEL + b"correct-hot correct"
    assert new.redactions == 1


async def test_a_stream_that_was_cut_in_a_secret_does_not_end_in_half_of_it(storage: SessionStorage) -> None:
    new = writer(storage)
    await new.take(b"so far " + SECRET[:12])
    await new.finish(cut=True)
    kept = await whole(storage)
    assert kept.startswith(b"so far ")
    assert shows_no_part(kept)
    assert (await SegmentReader(storage).extent(SESSION, "c", "stdout")).size == new.offset == 19


async def test_a_secret_that_becomes_known_is_redacted_from_then_on(storage: SessionStorage) -> None:
    new = writer(storage)
    await new.take(b"new-secret-1 new-secret-1 correct-h")
    await new.use(Redactor({"PHRASE": SECRET.decode(), "NEW": "new-secret-1"}))
    await new.take(b"orse-baccarat new-secret-1")
    await new.finish()
    assert await whole(storage) == b"new-secret-1 new-secret-1 " + LABEL + b" [redacted:NEW]"


async def test_segments_of_the_time_before_redaction_are_read_as_they_are_and_gone_on_behind(
    storage: SessionStorage,
) -> None:
    data = random.Random(1).randbytes(SEGMENT_BYTES) + b"the rest " + SECRET + b" of it"
    await storage.put_bytes(SESSION, segment_path("c", "stdout", 0), data[:SEGMENT_BYTES])
    part = segment_path("c", "stdout", SEGMENT_BYTES) + ".part"
    await storage.put_bytes(SESSION, part, data[SEGMENT_BYTES:])
    assert await whole(storage) == data
    assert (await SegmentReader(storage).extent(SESSION, "c", "stdout")).size == len(data)
    assert (await read(storage, SEGMENT_BYTES - 3, 6)).data == data[SEGMENT_BYTES - 3 :][:6]
    new = writer(storage)
    await new.go_on()
    assert (new.offset, new.full_bytes) == (len(data), SEGMENT_BYTES)
    await new.take(b"\n")
    await new.finish()
    assert await whole(storage) == data.replace(SECRET, LABEL) + b"\n"
    assert new.redactions == 1


async def test_output_that_looks_like_a_segment_is_output(storage: SessionStorage) -> None:
    data = MAGIC + b"whatever\n"
    await stored(storage, data)
    assert await whole(storage) == data
    await storage.put_bytes(SESSION, segment_path("c", "stdout", 0), data)
    assert await whole(storage) == data, "of the time before redaction"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([SECRET, SECRET[:9], SECRET[5:], b"carat-staple-42", b"correct-", b"x", b"\n", b"o" * 40])
        | st.binary(max_size=30),
        max_size=20,
    ),
    st.randoms(use_true_random=False),
)
@pytest.mark.usefixtures("small")
async def test_however_the_output_came_and_whoever_crashed_the_same_is_stored(
    words: list[bytes], chance: random.Random
) -> None:
    data = b"".join(words)
    told, expected = Kept(), Kept()
    at_once = await stored(expected, data)
    new = writer(told)
    while new.offset < len(data):
        await new.take(data[new.offset :][: chance.choice([1, 3, 20, 200])])
        if chance.random() < 0.5:
            await new.flush()
        if chance.random() < 0.3:
            full = new.full_bytes // SMALL
            new = writer(told, chance.randint(0, full) * SMALL)
            await new.go_on()
    await new.finish()
    finals = {path: kept for path, kept in told.objects.items() if not path.endswith(".part")}
    assert finals == expected.objects
    assert await whole(told) == REDACTOR.redact(data)
    assert new.redactions == at_once.redactions == sum(p.name is not None for p in REDACTOR.pieces(data))
    assert (await SegmentReader(told).extent(SESSION, "c", "stdout")).redactions == new.redactions


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([SECRET, b"carat-staple-42", b"\n", b"some words ", b"o" * 40]), max_size=12),
    st.integers(1, 150),
)
@pytest.mark.usefixtures("small")
async def test_windows_from_any_offset_join_to_the_rest_of_the_output(words: list[bytes], limit: int) -> None:
    data = b"".join(words)
    kept = Kept()
    await stored(kept, data)
    places: list[tuple[int, int]] = []
    at = 0
    for piece in REDACTOR.pieces(data):
        places += [(at, at + piece.size)] if piece.name is not None else []
        at += piece.size
    for offset in range(len(data) + 3):
        begin = next((end for start, end in places if start < offset < end), offset)
        shown, at, redactions = b"", offset, 0
        while (window := await read(kept, at, limit)).size:
            assert window.offset == (begin if at == offset else at)
            assert not any(start < window.end < end for start, end in places)
            shown, at, redactions = shown + window.data, window.end, redactions + window.redactions
        assert shown == REDACTOR.redact(data[begin:])
        assert max(at, window.offset) == max(offset, len(data))
        assert redactions == sum(start >= begin for start, _ in places)
