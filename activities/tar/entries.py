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


def checksum(block: bytes) -> int:
    """The sum of a header's bytes, modulo 65521, with its own field as blanks.

    Adler-32 has that sum in its lower half, and takes a twentieth of the time of adding up.
    """
    return ((zlib.adler32(block[:148]) & 0xFFFF) + (zlib.adler32(block[156:]) & 0xFFFF) - 2 + 8 * 0x20) % 65521
