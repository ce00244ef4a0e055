"""Tar streams: read as `tarfile` and the tars of this machine write them, written so that both read them back."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.tar import (
    END_OF_ARCHIVE,
    EntryKind,
    TarBroken,
    TarEntry,
    TarReader,
    header,
    padding,
    plain_file,
)
from activities.tar.entries import checksum
from activities.tar.reader import GLOBAL_LIMIT_BYTES, _Filler, _records

NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and not name.endswith(b"/"))


@dataclass
class Seen:
    """A visitor that keeps everything it wants."""

    wanted: bool = True
    entries: list[TarEntry] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    holes: int = 0
    open: bytearray | None = None

    def pass_files(self, data: bytes, at: int) -> int:
        return at

    def begin(self, entry: TarEntry) -> bool:
        assert self.open is None
        self.entries.append(entry)
        if entry.kind is EntryKind.FILE and self.wanted:
            self.open = bytearray()
            return True
        return False

    def content(self, piece: memoryview) -> None:
        assert self.open is not None
        self.open += piece

    def hole(self, size: int) -> None:
        assert self.open is not None
        self.open += bytes(size)
        self.holes += size

    def finish(self) -> None:
        assert self.open is not None
        self.contents.append(bytes(self.open))
        self.open = None


def seen(data: bytes, step: int = 1 << 20, *, wanted: bool = True) -> Seen:
    visitor = Seen(wanted)
    reader = TarReader(visitor)
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
    reader.close()
    return visitor


@settings(deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=2000)), max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(1, 3000),
)
def test_what_tarfile_writes_is_read_in_pieces_of_any_size(
    files: list[tuple[bytes, bytes]], form: int, step: int
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in files:
            member = tarfile.TarInfo(os.fsdecode(name))
            member.size, member.mtime = len(data), 1_700_000_000
            tar.addfile(member, io.BytesIO(data))
    found = seen(buffer.getvalue(), step)
    assert [(entry.name, entry.size) for entry in found.entries] == [(name, len(data)) for name, data in files]
    assert found.contents == [data for _, data in files]
    unwanted = seen(buffer.getvalue(), step, wanted=False)
    assert [entry.name for entry in unwanted.entries] == [name for name, _ in files]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            NAMES,
            st.sampled_from([EntryKind.FILE, EntryKind.DIRECTORY, EntryKind.SYMLINK, EntryKind.HARD_LINK]),
            st.integers(0, 0o7777),
            st.integers(0, 2**40),
            NAMES,
            st.binary(max_size=1500),
        ),
        max_size=6,
        unique_by=lambda entry: entry[0],
    )
)
def test_what_is_written_is_read_by_tarfile_byte_for_byte(
    given_entries: list[tuple[bytes, EntryKind, int, int, bytes, bytes]],
) -> None:
    data = b""
    for name, kind, mode, mtime, link, content in given_entries:
        is_file = kind is EntryKind.FILE
        is_link = kind in {EntryKind.SYMLINK, EntryKind.HARD_LINK}
        data += header(name, kind, mode, mtime, len(content) if is_file else 0, link if is_link else b"")
        data += content + padding(len(content)) if is_file else b""
    with tarfile.open(fileobj=io.BytesIO(data + END_OF_ARCHIVE)) as tar:
        members = tar.getmembers()
        assert [os.fsencode(member.name) for member in members] == [entry[0] for entry in given_entries]
        for member, (_, kind, mode, mtime, link, content) in zip(members, given_entries, strict=True):
            assert (member.mode, member.uid, member.gid) == (mode & 0o777, 0, 0)
            assert member.mtime == min(mtime, 8**11 - 1)
            if kind is EntryKind.FILE:
                file = tar.extractfile(member)
                assert file is not None
                assert file.read() == content
            elif kind is not EntryKind.DIRECTORY:
                assert os.fsencode(member.linkname) == link


def test_sizes_beyond_what_octal_digits_hold_go_both_ways() -> None:
    size = 2**36
    blocks = header(b"huge", EntryKind.FILE, 0o644, 0, size)
    visitor = Seen(wanted=False)
    TarReader(visitor).feed(blocks)
    assert visitor.entries == [TarEntry(b"huge", EntryKind.FILE, 0o644, 0, size, b"", blocks)]


TARS = {"gnu": ["tar", "--format=gnu", "--sparse"], "busybox": ["busybox", "tar"], "pax": ["tar", "--format=pax"]}


@pytest.mark.parametrize("tar", [name for name, command in TARS.items() if shutil.which(command[0])])
def test_the_tars_of_this_machine_are_understood(tar: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    long = "n" * 200
    (tree / long).write_bytes(b"long")
    (tree / "target").write_bytes(bytes(range(256)) * 5)
    (tree / "hard").hardlink_to(tree / "target")
    (tree / "link").symlink_to("t" * 150)
    os.mkfifo(tree / "fifo")
    (tree / "folder").mkdir()
    with (tree / "sparse").open("wb") as file:
        for at in range(0, 40_000_000, 1_000_000):
            file.seek(at)
            file.write(b"x" * 5000)
        file.truncate(41_000_000)
    packed = subprocess.run([*TARS[tar], "-cf", "-", "-C", str(tree), "."], stdout=subprocess.PIPE, check=True).stdout
    found = seen(packed, 4000)
    kinds = {entry.name.removeprefix(b"./").rstrip(b"/"): entry.kind for entry in found.entries}
    assert {kinds.pop(b"target"), kinds.pop(b"hard")} == {EntryKind.FILE, EntryKind.HARD_LINK}
    assert kinds == {
        b"": EntryKind.DIRECTORY,
        long.encode(): EntryKind.FILE,
        b"link": EntryKind.SYMLINK,
        b"fifo": EntryKind.FIFO,
        b"folder": EntryKind.DIRECTORY,
        b"sparse": EntryKind.FILE,
    }
    contents = {len(content): content for content in found.contents}
    assert contents[4] == b"long"
    assert contents[1280] == bytes(range(256)) * 5
    assert contents[41_000_000] == (tree / "sparse").read_bytes()
    assert (found.holes > 39_000_000) == (tar == "gnu")
    assert next(entry for entry in found.entries if entry.kind is EntryKind.SYMLINK).link == b"t" * 150


GOOD = header(b"name", EntryKind.FILE, 0o644, 0, 5) + b"12345" + padding(5) + END_OF_ARCHIVE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 2048,
        GOOD[:100],
        GOOD[:514],
        GOOD[:1024],
        GOOD[:20] + b"!" + GOOD[21:],
        GOOD[:124] + b"zzz" + GOOD[127:],
        header(b"a" * 70_000, EntryKind.FILE, 0, 0) + END_OF_ARCHIVE,
        GOOD + b"more",
        GOOD[:1024] + END_OF_ARCHIVE + GOOD,
    ],
    ids=[
        "nothing",
        "noise",
        "half a header",
        "half a file",
        "no end",
        "damaged",
        "no number",
        "endless name",
        "more",
        "two",
    ],
)
def test_what_is_no_whole_archive_is_noticed(data: bytes) -> None:
    with pytest.raises(TarBroken):
        seen(data)


def extended(kind: bytes, data: bytes) -> bytes:
    """A header that is about the next entry, or about all."""
    block = bytearray(header(b"././@LongLink", EntryKind.FILE, 0o644, 0, len(data)))
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % checksum(bytes(block[:148]), bytes(block[156:]))
    return bytes(block) + data + padding(len(data))


def record(name: bytes, value: bytes) -> bytes:
    rest = b" " + name + b"=" + value + b"\n"
    digits = len(str(len(rest)))
    return b"%d" % (len(rest) + len(str(len(rest) + digits))) + rest


def test_each_extended_header_comes_once_before_an_entry() -> None:
    before = extended(b"L", b"long\0") + extended(b"K", b"to\0") + extended(b"x", record(b"mtime", b"7"))
    found = seen(before + GOOD[:1024] + before + GOOD)
    assert [(entry.name, entry.link, entry.mtime) for entry in found.entries] == [(b"long", b"to", 7)] * 2
    for kind in (b"L", b"K", b"x"):
        with pytest.raises(TarBroken, match="two extended headers"):
            seen(extended(kind, b"") + extended(kind, b"") + GOOD)


@pytest.mark.parametrize("data", [b"", record(b"comment", b"c" * 60_000), record(b"path", b"p" * 60_000)])
def test_headers_for_all_entries_are_bounded_together(data: bytes) -> None:
    """A compressed kilobyte may stand for any number of them, and none has to become an entry."""
    reader = TarReader(Seen())
    block = extended(b"g", data)
    for _ in range(GLOBAL_LIMIT_BYTES // len(block)):
        reader.feed(block)
    with pytest.raises(TarBroken, match="global headers are too long"):
        reader.feed(2 * block)


def test_global_records_hold_for_every_entry() -> None:
    found = seen(extended(b"g", record(b"mtime", b"7") + record(b"comment", b"a commit")) + GOOD[:1024] + GOOD)
    assert [(entry.name, entry.mtime) for entry in found.entries] == [(b"name", 7)] * 2


class Counted(bytes):
    """Bytes that know how many of them were copied."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if isinstance(found, bytes):
            Counted.copied += len(found)
            return Counted(found)
        return found


def test_as_much_is_copied_of_pax_records_as_there_is() -> None:
    data = Counted(record(b"path", b"name") + record(b"k", b"") * 10_000 + record(b"GNU.sparse.major", b"1"))
    assert _records(data) == {b"path": b"name", b"GNU.sparse.": b""}
    assert Counted.copied <= 2 * len(data)


def test_a_file_of_many_holes_takes_16_bytes_for_each() -> None:
    count = 100_000
    stretches = array("q", (value for number in range(count) for value in (2 * number, 1)))
    tracemalloc.start()
    filler = _Filler(Seen(wanted=False), 2 * count, stretches, count)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < count, "the map itself was made before"
    visitor = Seen(open=bytearray())
    filler._visitor = visitor
    for at in range(0, count, 1000):
        filler.payload(memoryview(b"x" * min(1000, count - at)))
    filler.finish()
    assert visitor.contents == [b"x\0" * count]
    assert held < count


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(1, 600))
def test_a_damaged_stream_breaks_in_no_other_way(at: int, byte: int, step: int) -> None:
    with contextlib.suppress(TarBroken):
        seen(GOOD[:at] + bytes([byte]) + GOOD[at + 1 :], step)


_MODES, _NUMBERS = st.integers(0, 0o7777), st.sampled_from([0, 1, 1023, 8**11 - 1, 8**11])


@given(NAMES | st.binary(min_size=95, max_size=105), _MODES, _NUMBERS, _NUMBERS, st.binary(max_size=600))
def test_a_plain_file_is_read_at_a_glance(name: bytes, mode: int, mtime: int, size: int, before: bytes) -> None:
    block = header(name, EntryKind.FILE, mode, mtime, size)
    is_plain = len(name) <= 100 and b"\0" not in name and not name.endswith(b"/") and size < 8**11
    assert plain_file(before + block, len(before)) == ((name, size) if is_plain else None)


@given(st.data())
def test_a_header_that_is_not_ours_byte_for_byte_is_not_read_at_a_glance(data: st.DataObject) -> None:
    """Nor when its sum is right."""
    block = bytearray(header(b"./a/b", EntryKind.FILE, 0o644, 1_700_000_000, 5))
    for _ in range(data.draw(st.integers(1, 3))):
        block[data.draw(st.integers(0, 511))] = data.draw(st.sampled_from(b"\0 /.0178a\xff"))
    if data.draw(st.booleans()):
        block[148:156] = b"%06o\0 " % checksum(bytes(block[:148]), bytes(block[156:]))
    found = plain_file(bytes(block), 0)
    assert plain_file(bytes(block[:511]), 0) is None
    if found is not None:
        name, size = found
        numbers = int(block[100:107], 8), int(block[136:147], 8)
        assert header(name, EntryKind.FILE, *numbers, size) == block


@pytest.mark.parametrize("kind", [EntryKind.HARD_LINK, EntryKind.SYMLINK, EntryKind.DIRECTORY])
def test_only_files_are_read_at_a_glance(kind: EntryKind) -> None:
    assert plain_file(header(b"a", kind, 0o644, 0), 0) is None
    assert plain_file(bytes(1024), 0) is None
