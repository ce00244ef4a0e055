"""Which entries of a workspace are taken: patterns in the syntax of gitignore."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from pathspec import GitIgnoreSpec

from sandhold.contracts.workspaces import LEFT_OUT_BY_DEFAULT

OURS = ".sandhold"
"""Where Sandhold itself works; at the top of a workspace never taken, whatever the patterns say."""
OF_THE_KERNEL = ("proc", "sys", "dev")
"""Left out of a download of `/`: they hold no files, and reading some of them does things."""
_REMEMBERED_FOLDERS = 20_000
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
        self._wanted = GitIgnoreSpec.from_lines(include) if include else None
        self._never = {OURS, *(OF_THE_KERNEL if root == "/" else ())}
        self._folders: dict[str, bool] = {"": False}
        brings_back = any(pattern.startswith("!") for pattern in patterns)
        # Most patterns are names, and a set of names answers in a tenth of the time.
        self._names = frozenset() if brings_back else frozenset(filter(_PLAIN.match, patterns))
        others = [pattern for pattern in patterns if pattern not in self._names]
        self._unwanted = GitIgnoreSpec.from_lines(others) if others else None

    def takes(self, name: bytes, *, is_directory: bool) -> bool:
        """Whether the entry of this name, relative to the directory, is taken."""
        path = os.fsdecode(name)
        folder = path.rpartition("/")[0]
        if self._is_left_out(folder) or self._is_unwanted(path, is_directory=is_directory):
            return False
        return self._wanted is None or self._wanted.match_file(path + "/" if is_directory else path)

    @property
    def is_tars_own(self) -> bool:
        """Whether tar, told what it can be told, is expected to bring exactly what is taken."""
        return self._unwanted is None and (self._wanted is None or self.operands_for_tar() is not None)

    def names_for_tar(self) -> list[str]:
        """Names that tar itself can leave out, wherever they are, with the same outcome."""
        return sorted(self._names)

    def paths_for_tar(self) -> list[str]:
        """Paths at the top of the directory that tar itself leaves out."""
        return sorted(self._never)

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

    def _is_left_out(self, folder: str) -> bool:
        """Whether this directory is, or one above it."""
        known = self._folders.get(folder)
        if known is None:
            above = folder.rpartition("/")[0]
            known = self._is_left_out(above) or self._is_unwanted(folder, is_directory=True)
            if len(self._folders) > _REMEMBERED_FOLDERS:
                self._folders = {"": False}
            self._folders[folder] = known
        return known

    def _is_unwanted(self, path: str, *, is_directory: bool) -> bool:
        if path in self._never or path.rpartition("/")[2] in self._names:
            return True
        return self._unwanted is not None and self._unwanted.match_file(path + "/" if is_directory else path)


def _brought_back(defaults: Sequence[str], exclude: Sequence[str]) -> tuple[list[str], list[str]]:
    """The defaults without those that the first patterns of `exclude` bring back, and the patterns behind these.

    It comes to the same, and tar can still leave out the others by their names.
    """
    count = 0
    while count < len(exclude) and exclude[count].startswith("!") and exclude[count][1:] in defaults:
        count += 1
    back = {pattern[1:] for pattern in exclude[:count]}
    return [pattern for pattern in defaults if pattern not in back], list(exclude[count:])
