"""Rotation brings every value under the primary key, whatever comes between; and no value is forgotten."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandhold.security import Envelope, Place
from sandhold.security import holders as holding
from sandhold.security.envelope import key_id_of
from sandhold.security.holders import SealedHolder, SealedRow, Step
from sandhold.security.key_document import KeyDocument, RingKey
from sandhold.security.key_rings import EnvironmentKeyRing, FileKeyRing
from sandhold.security.rotation import rewrap, unfinished, verify, with_fresh_primary
from tests.security.holding import MemoryValues, SqliteValues, place, value

Values = MemoryValues | SqliteValues


@pytest.fixture
def ring(tmp_path: Path) -> FileKeyRing:
    ring = FileKeyRing(tmp_path / "ring.json")
    ring.create()
    return ring


@pytest.fixture(params=["memory", "sqlite"])
def values(request: pytest.FixtureRequest, tmp_path: Path) -> Values:
    return MemoryValues() if request.param == "memory" else SqliteValues(tmp_path / "held.db")


async def all_open(values: Values, envelope: Envelope, count: int) -> None:
    rows = await values.sealed_batch("", 100_000)
    assert [await envelope.open(row.sealed, row.place) for row in rows] == [value(number) for number in range(count)]


async def keys_of(values: Values) -> set[str]:
    return {key_id_of(row.sealed) for row in await values.sealed_batch("", 100_000)}


def turn(ring: FileKeyRing) -> KeyDocument:
    return ring.change(with_fresh_primary(ring.document()))


async def test_all_values_come_under_the_new_key_and_open(ring: FileKeyRing, values: Values) -> None:
    envelope = Envelope(ring)
    await values.fill(envelope, 450)
    holder = SealedHolder("held", values, envelope)
    old = ring.document().primary.id
    document = turn(ring)
    assert unfinished(document, [await holder.survey()]) == 450
    steps: list[Step] = []
    [report] = await rewrap([holder], lambda name, step: steps.append(step))
    assert (report.done, report.already, report.overtaken, report.faults) == (450, 0, 0, [])
    assert [step.values for step in steps] == [200, 200, 50]
    assert await keys_of(values) == {document.primary.id} != {old}
    assert unfinished(document, [await holder.survey()]) == 0
    ring.change(lambda now: now.removed(old))
    await all_open(values, Envelope(FileKeyRing(ring.path)), 450)
    [again] = await rewrap([holder])
    assert (again.done, again.already) == (0, 450)


async def test_two_processes_with_different_primary_keys_read_each_others_values(values: Values) -> None:
    """As during a roll-out: one already encrypts under the new key, which the other only decrypts with."""
    before = KeyDocument.new().added(RingKey.new("decrypt_only"))
    old, new = before.keys
    early, late = EnvironmentKeyRing(before.dump()), EnvironmentKeyRing(before.promoted(new.id).dump())
    for number in range(10):
        writer = Envelope(early if number % 2 else late)
        await values.put(number, await writer.seal(value(number), place(number)))
    assert await keys_of(values) == {old.id, new.id}
    await all_open(values, Envelope(early), 10)
    await all_open(values, Envelope(late), 10)
    [report] = await rewrap([SealedHolder("held", values, Envelope(late))])
    assert (report.done, report.already) == (5, 5)
    await all_open(values, Envelope(early), 10)


@pytest.mark.parametrize("fails_after", [0, 1, 7, 199, 200, 201, 449])
async def test_what_was_cut_off_anywhere_is_gone_on_with(ring: FileKeyRing, fails_after: int) -> None:
    values, envelope = MemoryValues(), Envelope(ring)
    await values.fill(envelope, 450)
    turn(ring)
    values.fails_after = fails_after
    holder = SealedHolder("held", values, envelope)
    with pytest.raises(ConnectionError):
        await rewrap([holder])
    await all_open(values, envelope, 450)
    document = ring.document()
    assert unfinished(document, [await holder.survey()]) == 450 - fails_after
    values.fails_after = None
    [report] = await rewrap([holder])
    assert (report.done, report.already) == (450 - fails_after, fails_after)
    assert await keys_of(values) == {document.primary.id}


ROTATOR = """
import asyncio, sys
from pathlib import Path
from sandhold.security import Envelope
from sandhold.security.holders import SealedHolder
from sandhold.security.key_rings import FileKeyRing
from sandhold.security.rotation import rewrap, with_fresh_primary
from tests.security.holding import SqliteValues
folder = Path(sys.argv[1])
ring = FileKeyRing(folder / "ring.json")
values = SqliteValues(folder / "held.db")
class Slow:
    sealed_batch = values.sealed_batch
    async def replace_sealed(self, row, new):
        print("replacing", flush=True)
        sys.stdin.readline()
        return await values.replace_sealed(row, new)
print("ready", flush=True)
ring.change(with_fresh_primary(ring.document()))
asyncio.run(rewrap([SealedHolder("held", Slow(), Envelope(ring))]))
print("end", flush=True)
"""


async def test_a_rotation_that_is_killed_loses_nothing(ring: FileKeyRing, tmp_path: Path) -> None:
    values = SqliteValues(tmp_path / "held.db")
    await values.fill(Envelope(ring), 300)
    for lines in (1, 2, 30, 150):
        process = subprocess.Popen(
            [sys.executable, "-c", ROTATOR, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
            # It goes on by one, so that it is killed in the middle of that, and never gets to the end.
            process.stdin.write(b"\n")
            process.stdin.flush()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        await all_open(values, Envelope(FileKeyRing(ring.path)), 300)
    holder = SealedHolder("held", values, Envelope(ring))
    document = ring.document()
    assert unfinished(document, [await holder.survey()]) > 0
    [report] = await rewrap([holder])
    assert report.done > 0
    assert await keys_of(values) == {document.primary.id}
    await all_open(values, Envelope(ring), 300)


async def test_several_rotations_at_once_agree(ring: FileKeyRing, values: Values) -> None:
    envelope = Envelope(ring)
    await values.fill(envelope, 250)
    seen = ring.document()
    documents = await asyncio.gather(*(asyncio.to_thread(ring.change, with_fresh_primary(seen)) for _ in range(5)))
    assert len(documents[-1].keys) == 2, "they have all seen the same primary key, and put one in its place"
    holder = SealedHolder("held", values, envelope)
    reports = await asyncio.gather(*(rewrap([holder]) for _ in range(3)))
    assert sum(report.done for [report] in reports) == 250
    assert await keys_of(values) == {ring.document().primary.id}
    await all_open(values, envelope, 250)


async def test_a_value_that_is_replaced_meanwhile_keeps_what_was_put_there(ring: FileKeyRing) -> None:
    """By a process that has not seen the new key yet: the next pass finds it."""
    stale = Envelope(EnvironmentKeyRing(ring.document().dump()))
    values, envelope = MemoryValues(), Envelope(ring)
    await values.fill(envelope, 20)
    turn(ring)
    real, overtaken = values.replace_sealed, []

    async def replace(row: SealedRow, new: bytes) -> bool:
        if row.cursor in {"000003", "000011"} and row.cursor not in overtaken:
            overtaken.append(row.cursor)
            await values.put(int(row.cursor), await stale.seal(b"changed", row.place))
        return await real(row, new)

    values.replace_sealed = replace  # type: ignore[method-assign]
    [report] = await rewrap([SealedHolder("held", values, envelope)])
    assert (report.done, report.already, report.overtaken) == (20, 0, 0)
    assert await keys_of(values) == {ring.document().primary.id}
    assert await envelope.open(values.rows["000003"].sealed, place(3)) == b"changed"


async def test_values_that_do_not_open_are_left_and_named_by_their_place(ring: FileKeyRing, values: Values) -> None:
    envelope = Envelope(ring)
    await values.fill(envelope, 30)
    rows = await values.sealed_batch("", 100)
    foreign = Envelope(EnvironmentKeyRing(KeyDocument.new().dump()))
    bad = {
        3: b"in the clear",
        4: rows[5].sealed,
        6: rows[6].sealed[:40],
        7: await foreign.seal(b"theirs", place(7)),
        8: rows[8].sealed[:3] + b"\x63" + rows[8].sealed[4:],
    }
    for number, sealed in bad.items():
        await values.put(number, sealed)
    turn(ring)
    holder = SealedHolder("held", values, envelope)
    survey = await holder.survey()
    assert {fault.place.record for fault in survey.faults} == {"3", "6", "8"}
    assert survey.values == 30
    for report in (*await rewrap([holder]), *await verify([holder])):
        assert report.done == 25
        assert {int(fault.place.record) for fault in report.faults} == set(bad)
        assert all("clear" not in fault.reason and "theirs" not in fault.reason for fault in report.faults)
    lies = {int(row.cursor): row.sealed for row in await values.sealed_batch("", 100)}
    assert {number: lies[number] for number in bad} == bad


async def test_a_flipped_body_is_found_by_verification(ring: FileKeyRing) -> None:
    values, envelope = MemoryValues(), Envelope(ring)
    await values.fill(envelope, 3)
    flipped = bytearray(values.rows["000001"].sealed)
    flipped[-1] ^= 1
    await values.put(1, bytes(flipped))
    [report] = await verify([SealedHolder("held", values, envelope)])
    assert (report.done, [fault.place for fault in report.faults]) == (2, [place(1)])


async def test_a_ring_that_fails_ends_a_rotation_instead_of_counting_values_as_broken(ring: FileKeyRing) -> None:
    values, envelope = MemoryValues(), Envelope(ring)
    await values.fill(envelope, 3)
    turn(ring)
    ring.path.chmod(0o644)
    ring._looked_at = -1000.0
    with pytest.raises(holding.SecurityError, match="chmod 600"):
        await rewrap([SealedHolder("held", values, envelope)])


async def test_a_row_shows_nothing_of_its_value() -> None:
    assert "secret" not in repr(SealedRow("1", Place("a", "b", "c"), b"secret"))
