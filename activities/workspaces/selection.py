"""Which entries of a workspace are taken: patterns in the syntax of gitignore."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence

from activities.workspaces.patterns import spec_of
from sandhold.contracts.names import WORKSPACE_PATH
from sandhold.contracts.workspaces import LEFT_OUT_BY_DEFAULT

OURS = ".sandhold"
"""Where Sandhold itself works; at the top of a directory never taken, whatever the patterns say."""
NEVER_TAKEN = (
    # The same, by a download of a directory above.
    f"{WORKSPACE_PATH}/{OURS}",
    f"/tmp/{OURS}",  # noqa: S108
    # These hold no files, and reading some of them does things.
    "/proc",
    "/sys",
    "/dev",
)
"""Never taken by a download of a directory above them."""
_REMEMBERED_BYTES = 4 * 1024 * 1024
"""Of the names of folders whose answer is remembered."""
_PLAIN = re.compile(r"[A-Za-z0-9._+@%=,-]+\Z")


class Selection:
    """Decides about paths below the directory that is downloaded.

    `exclude` comes behind the patterns that apply by default; the last pattern that matches decides, so that `!.git`
    brings `.git` back. What lies in a directory that is left out is left out. With `include` only what matches it, or
    lies below what does, is taken.
    """

    def __init__(
        self,
        root: str,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        defaults: Sequence[str] = LEFT_OUT_BY_DEFAULT,
    ) -> None:
        kept, exclude = _brought_back(defaults, exclude)
        patterns = [*kept, *exclude]
        self._include = list(include)
        self._wanted = spec_of(include) if include else None
        below = (posixpath.relpath(path, root) for path in NEVER_TAKEN)
        self._never = {OURS.encode(), *(path.encode() for path in below if not path.startswith("."))}
        self._forget_folders()
        brings_back = any(pattern.startswith("!") for pattern in patterns)
        # Most patterns are names, and a set of names answers in a tenth of the time.
        names = frozenset() if brings_back else frozenset(filter(_PLAIN.match, patterns))
        self._names = frozenset(name.encode() for name in names)
        others = [pattern for pattern in patterns if pattern not in names]
        self._unwanted = spec_of(others) if others else None
        self._refused_in: dict[bytes, frozenset[bytes]] = {}
        for path in self._never:
            folder, _, name = path.rpartition(b"/")
            self._refused_in[folder] = self._refused_in.get(folder, self._names) | {name}

    def takes(self, name: bytes, *, is_directory: bool) -> bool:
        """Whether the entry of this name, relative to the directory, is taken."""
        if self._is_left_out(name.rpartition(b"/")[0]) or self._is_unwanted(name, is_directory=is_directory):
            return False
        return self._wanted is None or self._wanted.match_file(_path(name, is_directory=is_directory))

    def refused_in(self, folder: bytes) -> frozenset[bytes] | None:
        """In a folder one of whose files is taken: the names of what is not. None when each has to be asked about."""
        if self._unwanted is not None or self._wanted is not None:
            return None
        return self._refused_in.get(folder, self._names)

    @property
    def is_tars_own(self) -> bool:
        """Whether tar, told what it can be told, is expected to bring exactly what is taken."""
        return self._unwanted is None and (self._wanted is None or self.operands_for_tar() is not None)

    def names_for_tar(self) -> list[str]:
        """Names that tar itself can leave out, wherever they are, with the same outcome."""
        return sorted(name.decode() for name in self._names)

    def paths_for_tar(self) -> list[str]:
        """Paths relative to the directory that tar itself leaves out."""
        return sorted(name.decode() for name in self._never)

    def operands_for_tar(self) -> list[str] | None:
        """The only paths that can hold anything that is taken; None when that may be everywhere."""
        paths = set()
        for pattern in self._include:
            path = pattern.strip("/")
            is_anchored = "/" in pattern.rstrip("/")
            if not is_anchored or not all(_PLAIN.match(part) and part not in {".", ".."} for part in path.split("/")):
                return None
            paths.add(path)
        if not paths:
            return None
        return sorted(path for path in paths if not any(path.startswith(f"{other}/") for other in paths))

    def _is_left_out(self, folder: bytes) -> bool:
        """Whether this directory is, or one above it."""
        asked = []
        while (known := self._folders.get(folder)) is None:
            asked.append(folder)
            folder = folder.rpartition(b"/")[0]
        for below in reversed(asked):
            known = known or self._is_unwanted(below, is_directory=True)
            self._remember(below, known)
        return known

    def _remember(self, folder: bytes, is_left_out: bool) -> None:
        self._remembered_bytes += len(folder)
        if self._remembered_bytes > _REMEMBERED_BYTES:
            self._forget_folders()
        self._folders[folder] = is_left_out

    def _forget_folders(self) -> None:
        self._folders: dict[bytes, bool] = {b"": False}
        self._remembered_bytes = 0

    def _is_unwanted(self, name: bytes, *, is_directory: bool) -> bool:
        if name in self._never or name.rpartition(b"/")[2] in self._names:
            return True
        return self._unwanted is not None and self._unwanted.match_file(_path(name, is_directory=is_directory))


def _path(name: bytes, *, is_directory: bool) -> str:
    """A path as patterns see it."""
    path = os.fsdecode(name)
    return path + "/" if is_directory else path


def _brought_back(defaults: Sequence[str], exclude: Sequence[str]) -> tuple[list[str], list[str]]:
    """The defaults without those that the first patterns of `exclude` bring back, and the patterns behind these.

    It comes to the same, and tar can still leave out the others by their names.
    """
    count = 0
    while count < len(exclude) and exclude[count].startswith("!") and exclude[count][1:] in defaults:
        count += 1
    back = {pattern[1:] for pattern in exclude[:count]}
    return [pattern for pattern in defaults if pattern not in back], list(exclude[count:])
