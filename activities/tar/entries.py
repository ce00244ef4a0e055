"""What a tar stream is made of."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import StrEnum

BLOCK = 512


class EntryKind(StrEnum):
    FILE = "file"
    HARD_LINK = "hard_link"
    SYMLINK = "symlink"
    DIRECTORY = "directory"
    FIFO = "fifo"
    DEVICE = "device"
    OTHER = "other"


class TarBroken(ValueError):
    """The stream is no tar stream, or it ends before its end."""


@dataclass(slots=True)
class TarEntry:
    """An entry as its header tells; nothing of it is to be trusted."""

    name: bytes
    kind: EntryKind
    mode: int
    mtime: int
    size: int
    """Bytes of a file's content as readers see it, holes included."""
    link: bytes
    """What a link leads to, or which entry a hard link is another name of."""
    blocks: bytes = b""
    """The header as it came, with the extended ones before it."""


def checksum(before: bytes, after: bytes) -> int:
    """The sum of a header's bytes before and after the field of the sum, which counts as blanks, modulo 65521.

    Adler-32 has that sum in its lower half, and takes a twentieth of the time of adding up.
    """
    return ((zlib.adler32(before) & 0xFFFF) + (zlib.adler32(after) & 0xFFFF) + 254) % 65521  # 8 blanks, twice 1 less
