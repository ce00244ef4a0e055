"""Regular files that stand in a tar stream just as `header` writes them: most of most archives, read at a glance."""

from __future__ import annotations

import re
import zlib

from activities.tar.entries import BLOCK, EntryKind, checksum
from activities.tar.writer import header

_header = re.compile(
    rb"""
      ([^\0]{1,100} (?<!/)) \0*+          # name, up to 100 bytes
      0000[0-7]{3}\0                      # mode
      (?: 0{7}\0 ){2}                     # owner and group
      ([0-7]{11})\0                       # size
      [0-7]{11}\0                         # time
      ([0-7]{6})\0\                       # sum
      0 \0{100} ustar\ \ \0 \0{247}       # kind, no link, magic, nothing else
    """,
    re.VERBOSE,
).match
_SUM, _KIND = 148, 156
"""Where in a header the sum of its bytes is, and what is the same for all these files."""
_SUM_OF_THE_SAME = checksum(b"", header(b"any", EntryKind.FILE, 0, 0)[_KIND:])


def plain_file(data: bytes, at: int) -> tuple[bytes, int] | None:
    """The name and size of the regular file whose header is at `at`, where that is one block, and byte for byte what
    `header` makes of it; else None."""
    found = _header(data, at)
    if found is None or found.end() != at + BLOCK:
        return None
    name, size, total = found.groups()
    # What is before the sum comes to less than 65521: the lower half of Adler-32 is that and 1.
    before = (zlib.adler32(data[at : at + _SUM]) & 0xFFFF) - 1
    return (name, int(size, 8)) if int(total, 8) == before + _SUM_OF_THE_SAME else None
