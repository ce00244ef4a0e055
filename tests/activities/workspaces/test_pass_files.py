"""Files that are taken many at once: nothing may come of it that one by one had not come of the same stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from activities.tar import END_OF_ARCHIVE, EntryKind, TarBroken, TarReader, header, padding
from activities.tar.entries import checksum
from activities.workspaces.archive import ArchiveChecker, WrittenOtherwise
from activities.workspaces.entries import EntryRules, Report
from activities.workspaces.plain import PlainWriter
from activities.workspaces.selection import Selection

LIMIT_BYTES = 1000
_PARTS = st.sampled_from(
    [b"a", b"b", b"c", b".", b"..", b"...", b".x", b"", b".sandhold", b"node_modules", b"a\xff\n", b"d" * 98]
)
_NAMES = st.lists(_PARTS, min_size=1, max_size=4).map(b"/".join)
_PREFIXES = st.sampled_from([b"./", b"./", b"./", b"./", b"", b"/", b"././", b".//"])


@dataclass(frozen=True)
class Made:
    """An entry of a stream, and how its header is damaged or another tar's."""

    name: bytes
    kind: EntryKind = EntryKind.FILE
    link: bytes = b""
    size: int = 0
    mode: int = 0o644
    changed: tuple[int, int] | None = None

    def blocks(self) -> bytes:
        made = bytearray(header(self.name, self.kind, self.mode, 1_700_000_000, self.size, self.link))
        if self.changed is not None:
            at, value = self.changed
            block = made[-512:]
            block[at] = value
            block[148:156] = b"%06o\0 " % checksum(bytes(block[:148]), bytes(block[156:]))
            made[-512:] = block
        return bytes(made) + b"x" * self.size + padding(self.size)


_FILES = st.builds(
    Made,
    st.builds(bytes.__add__, _PREFIXES, _NAMES),
    size=st.sampled_from([0, 1, 511, 512, 1000, 1001]),
    mode=st.sampled_from([0o644, 0o4755]),
    changed=st.none()
    | st.none()
    | st.tuples(st.sampled_from([0, 2, 99, 108, 156, 157, 300, 511]), st.integers(0, 255)),
)
_OTHERS = st.builds(
    Made,
    st.builds(bytes.__add__, _PREFIXES, _NAMES),
    st.sampled_from([EntryKind.SYMLINK, EntryKind.HARD_LINK, EntryKind.DIRECTORY]),
    link=st.builds(bytes.__add__, _PREFIXES, _NAMES),
)
_STREAMS = st.lists(_FILES | _FILES | _OTHERS, max_size=12)
_SELECTIONS = st.sampled_from(
    [
        Selection("/workspace"),
        Selection("/", defaults=()),
        Selection("/workspace", include=["/a"]),
        Selection("/workspace", exclude=["*b", "!a/b"]),
    ]
)


class OneByOne(PlainWriter):
    def pass_files(self, data: bytes, at: int) -> int:
        return at


class CheckedOneByOne(ArchiveChecker):
    def pass_files(self, data: bytes, at: int) -> int:
        return at


def told(kind: Any, selection: Selection, stream: bytes, step: int) -> dict[str, Any]:
    """What comes of a stream."""
    report = Report()
    rules = EntryRules(selection, "archive", LIMIT_BYTES, report)
    writer = kind(rules, report)
    reader = TarReader(writer)
    try:
        for at in range(0, len(stream), step):
            reader.feed(stream[at : at + step])
        reader.close()
        rules.finish(b"", is_cut=False)
    except (TarBroken, WrittenOtherwise) as error:
        return {"error": repr(error)}
    return {"out": b"".join(writer.take()), **vars(report)}


@settings(deadline=None, max_examples=400)
@given(_STREAMS, _SELECTIONS, st.sampled_from([512, 700, 4096, 1 << 20]))
@example([Made(b"./a/a"), Made(b"./a", EntryKind.SYMLINK, b"/etc"), Made(b"./a/b")], Selection("/workspace"), 1 << 20)
@example([Made(b"./a"), Made(b"./.sandhold"), Made(b"./b")], Selection("/workspace"), 1 << 20)
@example([Made(b"./a"), Made(b"./b"), Made(b"./..")], Selection("/workspace"), 1 << 20)
@example([Made(b"./a"), Made(b"./b", size=1001)], Selection("/workspace"), 1 << 20)
@example([Made(b"./a/a"), Made(b"../ab")], Selection("/workspace"), 1 << 20)
def test_what_becomes_of_a_stream_is_the_same_as_one_by_one(made: list[Made], selection: Selection, step: int) -> None:
    stream = b"".join(each.blocks() for each in made) + END_OF_ARCHIVE
    assert told(PlainWriter, selection, stream, step) == told(OneByOne, selection, stream, step)
    assert told(ArchiveChecker, selection, stream, step) == told(CheckedOneByOne, selection, stream, step)


def test_files_beside_each_other_are_not_shown_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    takes = EntryRules.takes
    monkeypatch.setattr(EntryRules, "takes", lambda rules, entry: shown.append(entry.name) or takes(rules, entry))
    made = [Made(b".", EntryKind.DIRECTORY), *(Made(b"./%d" % number, size=700) for number in range(50))]
    made += [Made(b"./d", EntryKind.DIRECTORY), *(Made(b"./d/%d" % number) for number in range(50))]
    result = told(
        ArchiveChecker, Selection("/workspace"), b"".join(each.blocks() for each in made) + END_OF_ARCHIVE, 1 << 20
    )
    assert shown == [b"./", b"./0", b"./d/", b"./d/0"]
    assert (result["files"], result["bytes"], result["empty_directories"]) == (100, 35_000, 0)
