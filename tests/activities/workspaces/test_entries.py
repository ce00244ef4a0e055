"""What becomes of an entry, whatever a stream makes of itself: these come from no tar that means well."""

from __future__ import annotations

import random

import pytest

from activities.tar import EntryKind, TarEntry
from activities.workspaces import names as names_module
from activities.workspaces.entries import LONGEST_NAME_BYTES, EntryRules, Format, Report, clean, complaints
from activities.workspaces.names import SeenNames
from activities.workspaces.selection import Selection
from activities.workspaces.single_files import FileWriter, Whole
from sandhold.contracts.errors import ErrorCode, ToolFailure


def entry(name: bytes, kind: EntryKind = EntryKind.FILE, link: bytes = b"", size: int = 0) -> TarEntry:
    return TarEntry(name, kind, 0o644, 0, size, link)


def told(*entries: TarEntry, form: Format = "archive") -> tuple[list[bytes], dict[str, str]]:
    """The names that are taken, and why others are not."""
    report = Report()
    rules = EntryRules(Selection("/workspace"), form, 1000, report)
    taken = [each.name for each in entries if rules.takes(each)]
    return taken, {each.path: each.reason for each in report.skipped}


@pytest.mark.parametrize(
    "name",
    [b"/etc/passwd", b"../up", b"./../up", b"a/../../up", b"a/..", b"..", b"a//b", b"a/./b", b"a\0b", b"//", b"./a/.."],
)
def test_names_that_lead_elsewhere_are_refused(name: bytes) -> None:
    taken, reasons = told(entry(name))
    assert taken == []
    assert list(reasons.values()) == ["unsafe_name"]


def test_names_are_relative_to_the_directory() -> None:
    for name in (b"./a", b"a", b"././a", b".//a", b"a/"):
        assert clean(name) == b"a"
    for name in (b".", b"./", b"", b"././"):
        assert clean(name) == b""


def test_lookalikes_of_dots_are_names() -> None:
    names = [b"...", b"..a", b"a..", b". .", b".. ", b"\xe2\x80\xa5"]
    assert told(*map(entry, names)) == (names, {})


def test_no_name_is_longer_or_deeper_than_any_that_somebody_works_with() -> None:
    longest = b"/".join([b"d" * 255] * 15 + [b"f" * 255])
    deepest = b"d/" * 256 + b"f"
    too_long, too_deep = longest + b"f", b"d/" + deepest
    taken, reasons = told(
        entry(longest), entry(b"./" + deepest), entry(too_long), entry(too_deep), entry(b"x" * 60_000)
    )
    assert taken == [longest, deepest]
    assert list(reasons.values()) == ["unsafe_name"] * 3
    assert max(map(len, reasons)) == LONGEST_NAME_BYTES
    assert complaints(b"tar: ./%b: Cannot open: Permission denied\n" % (b"\\303" * 16_000)) == []


def test_nothing_comes_below_a_link() -> None:
    taken, reasons = told(
        entry(b"before/x"),
        entry(b"link", EntryKind.SYMLINK, b"/etc"),
        entry(b"link/passwd"),
        entry(b"link/deep/er"),
        entry(b"other", EntryKind.HARD_LINK, b"link"),
        entry(b"other/passwd"),
        entry(b"before", EntryKind.SYMLINK, b"/"),
        entry(b"before/y"),
        entry(b"linked/fine"),
    )
    assert taken == [b"before/x", b"link", b"other", b"before", b"linked/fine"]
    assert reasons == dict.fromkeys(["link/passwd", "link/deep/er", "other/passwd", "before/y"], "below_a_link")


def test_a_name_comes_once() -> None:
    taken, reasons = told(entry(b"a"), entry(b"./a"), entry(b"a", EntryKind.SYMLINK, b"/etc"), entry(b"a/b"))
    assert (taken, reasons) == ([b"a", b"a/b"], {"a": "duplicate_name"})


def test_a_hard_link_is_to_what_was_taken() -> None:
    taken, reasons = told(
        entry(b"a"),
        entry(b"b", EntryKind.HARD_LINK, b"./a"),
        entry(b"c", EntryKind.HARD_LINK, b"../a"),
        entry(b"d", EntryKind.HARD_LINK, b"/etc/passwd"),
        entry(b"e", EntryKind.HARD_LINK, b"never"),
        entry(b"node_modules/f"),
        entry(b"f", EntryKind.HARD_LINK, b"node_modules/f"),
    )
    assert taken == [b"a", b"b"]
    assert reasons == dict.fromkeys("cdef", "hard_link_target_left_out")


def test_what_is_no_file_has_no_place() -> None:
    taken, reasons = told(
        entry(b"a", EntryKind.FIFO), entry(b"b", EntryKind.DEVICE), entry(b"c", EntryKind.OTHER), entry(b"d", size=1001)
    )
    assert taken == []
    assert reasons == {"a": "fifo", "b": "device", "c": "unknown_type", "d": "too_large"}
    assert told(entry(b"a", EntryKind.SYMLINK, b"b"), form="files") == ([], {"a": "symlink"})


def test_tars_complaints_name_their_entries() -> None:
    gnu = (
        b"tar: ./a\\: b\\nc\\303\\251\\\\: Cannot open: Permission denied\n"
        b"tar: ./sock: socket ignored\n"
        b"tar: ./gone: File removed before we read it\n"
        b"tar: ./grew: file changed as we read it\n"
        b"tar: ./less: File shrank by 5 bytes; padding with zeros\n"
        b"tar: Exiting with failure status due to previous errors\n"
    )
    assert complaints(gnu) == [
        (b"./a: b\nc\xc3\xa9\\", "unreadable"),
        (b"./sock", "socket"),
        (b"./gone", "vanished"),
        (b"./grew", "changed"),
        (b"./less", "changed"),
    ]
    busybox = b"tar: can't open './a b': Permission denied\ntar: ./x: No such file or directory\ntar: short read\n"
    assert complaints(busybox) == [(b"./a b", "unreadable"), (b"./x", "vanished")]


def test_what_tar_could_not_finish_saying_is_not_guessed() -> None:
    said = b"tar: ./a: Cannot open: Permission denied\ntar: ./b: Cannot open: Permission denied\n"
    for is_cut, words in ((False, said), (True, said), (True, said + b"tar: ./c: file chang"), (True, b"")):
        report = Report()
        EntryRules(Selection("/workspace"), "archive", 1000, report).finish(words, is_cut=is_cut)
        assert [each.path for each in report.skipped] == ["a", "b"][: 2 * bool(words)]
        assert report.more_skipped == is_cut


def test_only_the_first_200_are_named_and_all_are_counted() -> None:
    report = Report()
    for number in range(1000):
        report.skip(b"%d" % number, "fifo")
        report.change(b"%d" % number)
    assert (len(report.skipped), report.skipped_count) == (200, 1000)
    assert (len(report.changed), report.changed_count) == (200, 1000)


def test_seen_names_are_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = random.Random(1)
    seen, known = SeenNames(), set()
    for _ in range(20_000):
        name = b"%d" % numbers.randrange(15_000)
        assert seen.add(name) == (name not in known)
        known.add(name)
    assert all((b"%d" % number in seen) == (b"%d" % number in known) for number in range(16_000))
    monkeypatch.setattr(names_module, "NAMES_LIMIT", len(known))
    with pytest.raises(ToolFailure) as failure:
        seen.add(b"one more")
    assert failure.value.error.code is ErrorCode.TOO_LARGE


def test_single_files_are_neither_below_a_file_nor_in_the_place_of_a_folder() -> None:
    """A bucket would hold both, and no folder either."""
    report = Report()
    writer = FileWriter(EntryRules(Selection("/workspace"), "files", 1000, report), report, "saved")
    for name in (b"a", b"a/b", b"c/d/e", b"c", b"c/d", b"c/d/f"):
        if writer.begin(entry(name)):
            writer.finish()
    stored = [order.path for order in writer.take() if isinstance(order, Whole)]
    assert stored == ["saved/a", "saved/c/d/e", "saved/c/d/f"]
    assert {each.path: each.reason for each in report.skipped} == dict.fromkeys(["a/b", "c", "c/d"], "duplicate_name")
