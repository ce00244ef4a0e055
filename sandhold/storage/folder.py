"""What a local folder needs beside obstore: listings in the order of a bucket, an end to what is left unfinished, and
files that outlast a loss of power.

obstore writes an object under its name with `#` and a number behind it, renames it once it is whole, and lists no such
name (0.11).
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

UNFINISHED = re.compile(r"#\d+\Z")


@dataclass(frozen=True)
class FoundFile:
    """A file of the folder, by its path in it."""

    path: str
    size: int
    modified_at: datetime


def walk(folder: Path, prefix: str, after: str = "") -> Iterator[FoundFile]:
    """The files below `prefix` in the byte order of their paths, those beyond `after`. Links are not followed.

    Costs the memory of the names in the folders on the way to a file, not of all files. Raises OSError.
    """
    for name in _names(folder / prefix):
        path = f"{prefix}/{name}"
        if name.endswith("/"):
            if path > after or after.startswith(path):
                yield from walk(folder, path[:-1], after)
        elif path > after:
            with suppress(FileNotFoundError):  # deleted meanwhile
                found = os.stat(f"{folder}/{path}", follow_symlinks=False)  # noqa: PTH116 - of many files each
                if stat.S_ISREG(found.st_mode):
                    yield FoundFile(path, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _names(folder: Path) -> list[str]:
    """What lies in a folder, in order, folders with a slash: a bucket compares whole keys, `a-b` comes before `a/b`.

    Only names are held: what else is told of an entry takes ten times as much room.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
                for entry in entries
                if not UNFINISHED.search(entry.name)
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_unfinished(folder: Path, older_than_s: float, now: datetime) -> int:
    """Remove what killed writers left unfinished and nobody has written to for so long; how many files."""
    removed = 0
    for path, _, names in os.walk(folder):
        for name in names:
            if UNFINISHED.search(name) is None:
                continue
            left = Path(path) / name
            with suppress(FileNotFoundError):
                if now.timestamp() - left.stat(follow_symlinks=False).st_mtime > older_than_s:
                    left.unlink()
                    removed += 1
    return removed


def make_durable(path: Path) -> None:
    """Return once the file, and the folders that it came with, are on the disk. obstore leaves that to time (0.11)."""
    for each in (path, *list(path.parents)[:3]):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_durably(path: Path, data: bytes) -> bool:
    """Put `data` in the place of a file, on the disk when this returns; whether there was one."""
    unfinished = path.with_name(f"{path.name}#{secrets.randbelow(10**9)}")
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not path.exists():
            return False
        unfinished.replace(path)
    except FileNotFoundError:
        return False
    finally:
        unfinished.unlink(missing_ok=True)
    make_durable(path)
    return True
