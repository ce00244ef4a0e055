"""What becomes of each entry of a workspace: taken, left out by a pattern, or skipped for a reason that is told."""

from __future__ import annotations

import re
from typing import Literal

from activities.tar import BLOCK, EntryKind, TarEntry, plain_file
from activities.workspaces.names import SeenNames
from activities.workspaces.selection import Selection
from sandhold.contracts.excerpts import beginning_of
from sandhold.contracts.workspaces import LISTED_ENTRIES, SkippedEntry, SkipReason

Format = Literal["files", "archive"]

LONGEST_NAME_BYTES = 4095
"""The longest path that Linux opens."""
MOST_FOLDERS = 256
"""One above the other; patterns are asked about each of them."""

_NO_NAMES = frozenset((b"", b".", b".."))
_NEVER_TAKEN: dict[EntryKind, SkipReason] = {
    EntryKind.FIFO: "fifo",
    EntryKind.DEVICE: "device",
    EntryKind.OTHER: "unknown_type",
}


class Report:
    """What came of a download so far."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0
        self.skipped: list[SkippedEntry] = []
        self.skipped_count = 0
        self.more_skipped = False
        self.changed: list[str] = []
        self.changed_count = 0
        self.empty_directories = 0

    def take_file(self, size: int) -> None:
        """A regular file has come as a whole."""
        self.take_files(1, size)

    def take_files(self, count: int, size: int) -> None:
        """So many regular files have come, with so many bytes in all."""
        self.files += count
        self.bytes += size

    def take_other(self, kind: EntryKind) -> None:
        """Something without content of its own has come. A directory is no file."""
        self.files += kind is not EntryKind.DIRECTORY

    def skip(self, name: bytes, reason: SkipReason) -> None:
        self.skipped_count += 1
        if len(self.skipped) < LISTED_ENTRIES:
            self.skipped.append(SkippedEntry(path=readable(name), reason=reason))

    def change(self, name: bytes) -> None:
        self.changed_count += 1
        if len(self.changed) < LISTED_ENTRIES:
            self.changed.append(readable(name))


class EntryRules:
    """Decides about the entries in the order in which they come. Their names are the sandbox's, so anything."""

    def __init__(self, selection: Selection, form: Format, file_limit_bytes: int, report: Report) -> None:
        self._selection = selection
        self._form = form
        self._file_limit_bytes = file_limit_bytes
        self._report = report
        self._taken = SeenNames()
        self._links = SeenNames()
        self._folder_before: bytes | None = None
        self._clear_folder = b""
        self._beside: tuple[bytes, frozenset[bytes]] | None = None
        """When the last entry is a file that was taken: what its name has before the last part of it, and which last
        parts are refused there."""
        self.only_name: bytes | None = None
        """For a single file: what it was called when it was asked for. Patterns are not for it then."""

    def takes(self, entry: TarEntry) -> bool:
        """Whether the entry is taken. Its names are then safe and relative to the directory, which itself is `.`."""
        came, self._beside = entry.name, None
        name = clean(came)
        if name is None:
            self._report.skip(entry.name, "unsafe_name")
            return False
        if not name:
            entry.name = b"."  # the directory itself
            return entry.kind is EntryKind.DIRECTORY and self._form == "archive" and self.only_name is None
        entry.name = name if self.only_name is None else self.only_name
        is_directory = entry.kind is EntryKind.DIRECTORY
        if self.only_name is None and not self._selection.takes(name, is_directory=is_directory):
            return False
        self._note_folder(name, is_directory=is_directory)
        reason = self._reason_against(entry)
        if reason is not None:
            self._report.skip(entry.name, reason)
            return False
        if not self._taken.add(entry.name):
            self._report.skip(entry.name, "duplicate_name")
            return False
        if entry.kind is EntryKind.SYMLINK or (entry.kind is EntryKind.HARD_LINK and entry.link in self._links):
            self._links.add(entry.name)
            self._clear_folder = b""
        elif entry.kind is EntryKind.FILE and came == b"./" + entry.name:
            refused = self._selection.refused_in(name.rpartition(b"/")[0])
            if refused is not None:
                self._beside = came[: came.rindex(b"/") + 1], refused | _NO_NAMES
        return True

    def pass_files(self, data: bytes, at: int) -> int:
        """Take the files from `at` on that lie beside the one before and come complete, with the headers that we would
        write. Where the first entry begins about which `takes` has to decide.

        Whatever `takes` looks at is the same for all of them, but for the size and the last part of the name.
        """
        if self._beside is None:
            return at
        folder, refused = self._beside
        count = taken = 0
        while (file := plain_file(data, at)) is not None:
            name, size = file
            last = name[len(folder) :]
            end = at + BLOCK + size + -size % BLOCK
            if (
                end > len(data)
                or size > self._file_limit_bytes
                or not name.startswith(folder)
                or b"/" in last
                or last in refused
                or not self._taken.add(name[2:])
            ):
                break
            count += 1
            taken += size
            at = end
        self._report.take_files(count, taken)
        return at

    def finish(self, said: bytes, *, is_cut: bool) -> None:
        """All entries have come, and this is what tar said about some; if it is cut, the beginning of it."""
        self._note_folder(b"", is_directory=False)
        if is_cut:
            said = said[: said.rfind(b"\n") + 1]
            self._report.more_skipped = True
        for name, what in complaints(said):
            path = clean(name)
            if not path or not self._selection.takes(path, is_directory=False):
                continue
            if what == "changed":
                self._report.change(path)
            else:
                self._report.skip(path, what)

    def _reason_against(self, entry: TarEntry) -> SkipReason | None:
        if self._is_below_a_link(entry.name):
            return "below_a_link"
        if entry.kind in _NEVER_TAKEN:
            return _NEVER_TAKEN[entry.kind]
        if entry.kind is EntryKind.SYMLINK and self._form == "files":
            return "symlink"
        if entry.kind is EntryKind.HARD_LINK:
            entry.link = clean(entry.link) or b""
            if entry.link not in self._taken:
                return "hard_link_target_left_out"
        if entry.size > self._file_limit_bytes:
            return "too_large"
        return None

    def _is_below_a_link(self, name: bytes) -> bool:
        folder = name.rpartition(b"/")[0]
        if folder == self._clear_folder:
            return False
        above = folder
        while above:
            if above in self._links:
                return True
            above = above.rpartition(b"/")[0]
        self._clear_folder = folder
        return False

    def _note_folder(self, name: bytes, *, is_directory: bool) -> None:
        """What tar found in a directory comes right behind it."""
        before = self._folder_before
        if before is not None and not name.startswith(before + b"/"):
            self._report.empty_directories += 1
        self._folder_before = name if is_directory else None


def clean(name: bytes) -> bytes | None:
    """The name relative to the directory, empty for the directory itself; None when it is no name to be taken: when it
    leads elsewhere, or is longer than LONGEST_NAME_BYTES or below more than MOST_FOLDERS."""
    relative = _relative(name)
    if relative is None or len(relative) > LONGEST_NAME_BYTES or relative.count(b"/") > MOST_FOLDERS:
        return None
    return relative


def _relative(name: bytes) -> bytes | None:
    if (
        name.startswith(b"./")
        and b"//" not in name
        and b"/." not in name[2:]
        and b"\0" not in name
        and name[2:3] != b"."
    ):
        return name[2:].rstrip(b"/")  # most of them
    if name.startswith(b"/") or b"\0" in name:
        return None
    name = name.rstrip(b"/")
    while name.startswith(b"./"):
        name = name[2:].lstrip(b"/")
    around = b"/" + name + b"/"
    if name in {b"", b"."}:
        return b""
    return None if b"//" in around or b"/../" in around or b"/./" in around else name


def readable(name: bytes) -> str:
    """A name for a person; bytes that are not UTF-8 as escapes, and cut when it is too long for a name."""
    shown = name.decode("utf-8", "backslashreplace")
    return shown if len(name) <= LONGEST_NAME_BYTES else beginning_of(shown, LONGEST_NAME_BYTES)


# GNU tar's names are escaped, colons among them; busybox's are as they are, some behind its own words.
_GNU = re.compile(rb"tar: ((?:\\.|[^:\\])*): (.*)")
_BUSYBOX = re.compile(rb"tar: can't (?:open|stat|read)[a-z ]* '(.*)': (.*)")
_LONGEST_COMPLAINT_BYTES = 4 * LONGEST_NAME_BYTES + 1000
"""Each byte of a name may be escaped, and then takes four."""
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_MEANINGS: tuple[tuple[bytes, SkipReason | Literal["changed"]], ...] = (
    (b"socket ignored", "socket"),
    (b"nknown file type", "unknown_type"),
    (b"door ignored", "unknown_type"),
    (b"changed as we read it", "changed"),
    (b"File shrank", "changed"),
    (b"removed before we read it", "vanished"),
    (b"o such file or directory", "vanished"),
    (b"", "unreadable"),
)


def complaints(said: bytes) -> list[tuple[bytes, SkipReason | Literal["changed"]]]:
    """The entries that tar had something to say about, and what that means for them."""
    found = []
    for line in said.split(b"\n"):
        if len(line) > _LONGEST_COMPLAINT_BYTES:
            continue
        match = _BUSYBOX.fullmatch(line) or _GNU.fullmatch(line)
        if match is not None:
            name = _ESCAPE.sub(_unescaped, match[1])
            found.append((name, next(meaning for text, meaning in _MEANINGS if text in match[2])))
    return found


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes([int(code, 8) & 0xFF]) if len(code) == 3 else _ESCAPED.get(code, code)
