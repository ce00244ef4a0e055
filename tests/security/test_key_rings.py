"""Key rings: what a file may be and what not, changes by many and by the killed, documents that were tampered with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandhold.security import (
    Envelope,
    KeyRing,
    KeyRingMissing,
    KeyRingUnusable,
    KeyUnknown,
    Place,
    Tampered,
    WrappedKey,
    new_data_key,
)
from sandhold.security import key_rings as rings
from sandhold.security.key_document import KeyDocument, RingKey
from sandhold.security.key_rings import EnvironmentKeyRing, FileKeyRing
from tests.security.service_ring import KeyService, ServiceKeyRing

PLACE = Place("connection", "alice", "17", "api_key")
CONTEXT = b"a place"


def add(document: KeyDocument) -> KeyDocument:
    return document.added(RingKey.new("decrypt_only"))


def rotated(document: KeyDocument) -> KeyDocument:
    return document.added(RingKey.new("primary"))


@pytest.fixture
def ring(tmp_path: Path) -> FileKeyRing:
    ring = FileKeyRing(tmp_path / "ring.json")
    assert ring.create()
    return ring


def new_service() -> ServiceKeyRing:
    return ServiceKeyRing(KeyService())


def new_environment() -> EnvironmentKeyRing:
    return EnvironmentKeyRing(KeyDocument.new().dump())


# What every ring keeps to.


@pytest.mark.parametrize("make", [new_service, new_environment])
async def test_a_ring_gives_a_data_key_back_for_its_context_and_no_other(make: Callable[[], KeyRing]) -> None:
    ring = make()
    data_key = new_data_key()
    wrapped = await ring.wrap(data_key, CONTEXT)
    assert wrapped.key_id == await ring.primary()
    assert data_key not in wrapped.wrapped
    assert await ring.unwrap(wrapped, CONTEXT) == data_key
    with pytest.raises(Tampered):
        await ring.unwrap(wrapped, b"another place")
    with pytest.raises(KeyUnknown):
        await ring.unwrap(WrappedKey("key-of-nobody", wrapped.wrapped), CONTEXT)
    for at in range(len(wrapped.wrapped)):
        flipped = bytearray(wrapped.wrapped)
        flipped[at] ^= 1
        with pytest.raises(Tampered):
            await ring.unwrap(WrappedKey(wrapped.key_id, bytes(flipped)), CONTEXT)


async def test_values_under_a_service_go_over_to_its_next_key() -> None:
    """The service wraps and unwraps, and never gives a key away; values are sealed and opened as under any ring."""
    service = KeyService()
    envelope = Envelope(ServiceKeyRing(service))
    sealed = await envelope.seal(b"the secret", PLACE)
    before = service.primary
    service.turn()
    rewrapped = await envelope.rewrap(sealed, PLACE)
    assert rewrapped != sealed
    service.disable(before)
    assert await envelope.open(rewrapped, PLACE) == b"the secret"
    with pytest.raises(KeyUnknown):
        await envelope.open(sealed, PLACE)
    service.away = True
    with pytest.raises(KeyRingUnusable):
        await envelope.open(rewrapped, PLACE)


async def test_a_key_id_is_bound_to_what_it_wrapped() -> None:
    document = rotated(KeyDocument.new())
    old, new = document.keys
    wrapped = document.wrap(new_data_key(), CONTEXT)
    assert wrapped.key_id == new.id
    with pytest.raises(Tampered):
        document.unwrap(WrappedKey(old.id, wrapped.wrapped), CONTEXT)


# The life of a key, in the document.


def test_a_promoted_key_retires_the_one_before_and_a_removed_one_keeps_its_dates_only() -> None:
    first = KeyDocument.new()
    second = add(first)
    assert [key.state for key in second.keys] == ["primary", "decrypt_only"]
    old, new = second.keys
    third = second.promoted(new.id)
    assert [key.state for key in third.keys] == ["decrypt_only", "primary"]
    retired = third.find(old.id)
    assert retired is not None
    assert retired.retired_at is not None
    wrapped = first.wrap(b"k" * 32, CONTEXT)
    assert third.unwrap(wrapped, CONTEXT) == b"k" * 32
    fourth = third.removed(old.id)
    removed = fourth.find(old.id)
    assert removed is not None
    assert (removed.state, removed.material, removed.created_at, removed.retired_at) == (
        "removed",
        None,
        old.created_at,
        retired.retired_at,
    )
    assert old.material is not None
    assert old.material.get_secret_value() not in fourth.dump()
    with pytest.raises(KeyUnknown, match="removed"):
        fourth.unwrap(wrapped, CONTEXT)
    with pytest.raises(KeyUnknown):
        fourth.promoted(old.id)
    with pytest.raises(ValueError, match="primary"):
        fourth.removed(new.id)
    assert KeyDocument.parse(fourth.dump(), "here") == fourth


def test_no_text_of_a_ring_shows_a_key(ring: FileKeyRing) -> None:
    document = ring.document()
    material = document.primary.key_bytes()
    assert document.primary.material is not None
    text = document.primary.material.get_secret_value()
    for shown in (repr(document), str(document), document.model_dump_json(), repr(ring), str(document.model_dump())):
        assert text not in shown
        assert repr(material) not in shown


# Documents that were tampered with.


def altered(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["keys"][0].update(changes)


def twice(document: dict[str, Any]) -> None:
    document["keys"].append(document["keys"][0] | {"state": "decrypt_only"})


MATERIAL = "bm90IHRoaXJ0eS10d28gYnl0ZXM="
WRONG: dict[str, Callable[[dict[str, Any]], None]] = {
    "no primary key": altered(state="decrypt_only"),
    "an unknown state": altered(state="spare"),
    "a removed key with material": altered(state="removed"),
    "no material": altered(material=None),
    "short material": altered(material=MATERIAL),
    "material that is no base64": altered(material="*" * 44),
    "an id that is none": altered(id="no id"),
    "a time without its zone": altered(created_at="2026-01-01T00:00:00"),
    "an unknown field": altered(comment="mine"),
    "the same key twice": twice,
    "no keys": lambda document: document.update(keys=[]),
    "no version that there was": lambda document: document.update(version=0),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_document_that_is_wrong_is_refused_and_not_shown(
    ring: FileKeyRing, change: Callable[[dict[str, Any]], None]
) -> None:
    document = json.loads(ring.path.read_text())
    material = document["keys"][0]["material"]
    change(document)
    ring.path.write_text(json.dumps(document))
    with pytest.raises(KeyRingUnusable) as refused:
        ring.document()
    assert str(ring.path) in str(refused.value)
    assert material not in str(refused.value)
    assert MATERIAL not in str(refused.value)
    with pytest.raises(KeyRingUnusable, match="SANDHOLD_KEYRING"):
        EnvironmentKeyRing(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 1}', "\x00", "[" * 100_000])
def test_what_is_no_document_is_refused(ring: FileKeyRing, text: str) -> None:
    ring.path.write_text(text)
    with pytest.raises(KeyRingUnusable):
        ring.document()


def test_a_newer_document_is_told_as_such(ring: FileKeyRing) -> None:
    ring.path.write_text(json.dumps({"version": 2, "anything": "else"}))
    with pytest.raises(KeyRingUnusable, match="of version 2: a newer Sandhold"):
        ring.document()
    with pytest.raises(KeyRingUnusable, match="newer"):
        ring.change(add)


# What lies where the file should.


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_file_that_others_may_touch_is_refused(ring: FileKeyRing, mode: int) -> None:
    ring.path.chmod(mode)
    with pytest.raises(KeyRingUnusable, match="chmod 600"):
        ring.document()
    ring.path.chmod(0o400)
    assert ring.document()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").write_bytes(b" " * 2_000_000)
    (tmp_path / "binary").write_bytes(b"\xff\xfe{")
    for name in ("large", "binary"):
        (tmp_path / name).chmod(0o600)
    for name in ("folder", "pipe", "loop", "large", "binary", "binary/below"):
        ring = FileKeyRing(tmp_path / name)
        with pytest.raises(KeyRingUnusable):
            ring.document()
        with pytest.raises((KeyRingUnusable, KeyRingMissing)):
            ring.change(add)
    with pytest.raises(KeyRingMissing, match="keys create"):
        FileKeyRing(tmp_path / "nothing").document()


async def test_a_link_is_followed_and_stays_a_link(ring: FileKeyRing, tmp_path: Path) -> None:
    link = tmp_path / "links" / "ring.json"
    link.parent.mkdir()
    link.symlink_to(ring.path)
    linked = FileKeyRing(link)
    changed = linked.change(rotated)
    assert link.is_symlink()
    assert ring.document() == changed == linked.document()
    assert [each.name for each in link.parent.iterdir()] == ["ring.json"]


# Changes.


async def test_a_change_is_seen_soon_and_a_new_key_at_once(ring: FileKeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    other = FileKeyRing(ring.path)
    old = await other.primary()
    ring.change(rotated)
    assert await other.primary() == old, "it has not looked again yet"
    wrapped = await ring.wrap(b"k" * 32, CONTEXT)
    assert await other.unwrap(wrapped, CONTEXT) == b"k" * 32
    assert await other.primary() == wrapped.key_id
    ring.change(rotated)
    monkeypatch.setattr(rings, "LOOK_AGAIN_S", 0.0)
    assert await other.primary() == ring.document().primary.id


async def test_many_that_look_at_once_read_the_file_once(ring: FileKeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    real = rings._read
    monkeypatch.setattr(rings, "_read", lambda path: reads.append(path) or real(path))
    await asyncio.gather(*(ring.wrap(b"k" * 32, CONTEXT) for _ in range(200)))
    assert len(reads) == 1


CHANGER = """
import sys
from pathlib import Path
from sandhold.security.key_document import RingKey
from sandhold.security.key_rings import FileKeyRing
ring = FileKeyRing(Path(sys.argv[1]))
print("ready", flush=True)
while sys.argv[2] == "-" or int(sys.argv[2]) > 0:
    ring.change(lambda document: document.added(RingKey.new("primary")))
    print("changed", flush=True)
    if sys.argv[2] != "-":
        sys.argv[2] = str(int(sys.argv[2]) - 1)
"""


def changer(ring: FileKeyRing, times: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHANGER, str(ring.path), times],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


def test_changes_by_several_processes_are_all_kept(ring: FileKeyRing) -> None:
    processes = [changer(ring, "10") for _ in range(3)]
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out.count("changed")) == (0, 10)
    document = ring.document()
    assert len(document.keys) == 31
    assert [key.retired_at is None for key in document.keys] == [False] * 30 + [True]
    assert sorted(each.name for each in ring.path.parent.iterdir()) == ["ring.json", "ring.json.lock"]


def test_a_process_that_is_killed_while_it_changes_leaves_a_whole_document(ring: FileKeyRing) -> None:
    for delay in range(5):
        process = changer(ring, "-")
        assert process.stdout is not None
        for _ in range(2 + delay):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        before = ring.document()
        assert len(ring.change(add).keys) == len(before.keys) + 1
    assert sorted(each.name for each in ring.path.parent.iterdir()) == ["ring.json", "ring.json.lock"]


def test_keys_that_a_killed_process_left_half_written_are_removed_by_the_next_change(ring: FileKeyRing) -> None:
    left = ring.path.with_name("ring.json.unfinished")
    left.write_text(ring.path.read_text()[:100])
    ring.change(add)
    assert not left.exists()
    assert len(ring.document().keys) == 2


FILLER = """
import resource, sys
from pathlib import Path
from sandhold.security import KeyRingUnusable
from sandhold.security.key_document import RingKey
from sandhold.security.key_rings import FileKeyRing
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    FileKeyRing(Path(sys.argv[1])).change(lambda document: document.added(RingKey.new("primary")))
except KeyRingUnusable as error:
    print(error)
"""


def test_a_file_that_cannot_be_written_to_its_end_leaves_the_old_one(ring: FileKeyRing) -> None:
    before = ring.path.read_bytes()
    ran = subprocess.run(
        [sys.executable, "-c", FILLER, str(ring.path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        timeout=60,
        check=False,
    )
    assert "cannot be written" in ran.stdout, ran.stderr
    assert ring.path.read_bytes() == before
    assert sorted(each.name for each in ring.path.parent.iterdir()) == ["ring.json", "ring.json.lock"]


def test_a_change_that_is_refused_changes_nothing(ring: FileKeyRing) -> None:
    before = ring.path.read_bytes()
    with pytest.raises(KeyUnknown):
        ring.change(lambda document: document.promoted("key-of-nobody"))
    with pytest.raises(ValueError, match="primary"):
        ring.change(lambda document: document.removed(document.primary.id))
    assert ring.path.read_bytes() == before
    assert not ring.create()
    assert ring.path.stat().st_mode & 0o777 == 0o600
