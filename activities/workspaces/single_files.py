"""A workspace as single files, each an object of its own in session storage."""

from __future__ import annotations

from dataclasses import dataclass

from activities.tar import EntryKind, TarEntry
from activities.workspaces.entries import EntryRules, Report
from activities.workspaces.names import SeenNames
from sandhold.contracts.session_paths import InvalidSessionPath, session_path

SMALL_BYTES = 256 * 1024
"""Files up to this size are held as a whole, and stored several at once."""


@dataclass(frozen=True)
class Whole:
    """Store this file."""

    path: str
    name: bytes
    data: bytes


@dataclass(frozen=True)
class Opened:
    """A large file begins: its `size` bytes come in pieces."""

    path: str
    name: bytes
    size: int


@dataclass(frozen=True)
class Copied:
    """Store what is stored as `source` once more."""

    path: str
    name: bytes
    source: str


Order = Whole | Opened | Copied | bytes | int
"""What is to be done in storage. Bytes are the next piece of the file that was opened last, a number so many zeros."""


class FileWriter:
    """A visitor of the sandbox's archive that says what is to be stored."""

    def __init__(self, rules: EntryRules, report: Report, folder: str) -> None:
        """`folder` is a session path, or empty."""
        self._rules = rules
        self._report = report
        self._prefix = f"{folder}/" if folder else ""
        self._orders: list[Order] = []
        self._paths = SeenNames()
        self._folders = SeenNames()
        self._folder_before = ""
        self._whole: tuple[str, bytes, bytearray] | None = None

    def pass_files(self, data: bytes, at: int) -> int:
        return at  # each becomes an object

    def begin(self, entry: TarEntry) -> bool:
        if not self._rules.takes(entry) or entry.kind is EntryKind.DIRECTORY:
            return False
        path = self._path(entry.name)
        if path is None:
            self._report.skip(entry.name, "name_not_storable")
            return False
        if not self._is_new(path):
            self._report.skip(entry.name, "duplicate_name")  # perhaps of other bytes, but one name to session storage
            return False
        if entry.kind is EntryKind.HARD_LINK:
            source = self._path(entry.link)
            if source is None:
                self._report.skip(entry.name, "hard_link_target_left_out")
            else:
                self._orders.append(Copied(path, entry.name, source))
            return False
        if entry.size <= SMALL_BYTES:
            self._whole = (path, entry.name, bytearray())
        else:
            self._orders.append(Opened(path, entry.name, entry.size))
        return True

    def content(self, piece: memoryview) -> None:
        if self._whole is not None:
            self._whole[2].extend(piece)
        else:
            self._orders.append(bytes(piece))

    def hole(self, size: int) -> None:
        if self._whole is not None:
            self._whole[2].extend(bytes(size))
        else:
            self._orders.append(size)

    def finish(self) -> None:
        if self._whole is not None:
            path, name, data = self._whole
            self._orders.append(Whole(path, name, bytes(data)))
            self._whole = None

    def take(self) -> list[Order]:
        """What is to be done since the last time, in this order."""
        orders, self._orders = self._orders, []
        return orders

    def _is_new(self, path: str) -> bool:
        """Whether the path is another one than all before, and neither in the place of a folder nor below a file."""
        if path.encode() in self._folders:
            return False
        folder = path.rpartition("/")[0]
        if folder != self._folder_before:
            above = folder
            while above:
                if above.encode() in self._paths:
                    return False
                self._folders.add(above.encode())
                above = above.rpartition("/")[0]
            self._folder_before = folder
        return self._paths.add(path.encode())

    def _path(self, name: bytes) -> str | None:
        try:
            return session_path(self._prefix + name.decode())
        except (UnicodeDecodeError, InvalidSessionPath):
            return None
