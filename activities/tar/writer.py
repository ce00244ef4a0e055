"""Writing entries as GNU tar does: names of any bytes and length, and nothing that a header cannot be trusted with."""

from __future__ import annotations

from activities.tar.entries import BLOCK, EntryKind, TarEntry, checksum

END_OF_ARCHIVE = bytes(2 * BLOCK)

_TYPES = {
    EntryKind.FILE: b"0",
    EntryKind.HARD_LINK: b"1",
    EntryKind.SYMLINK: b"2",
    EntryKind.DIRECTORY: b"5",
}
_MOST_OCTAL = 8**11 - 1
_MAGIC = b"ustar  \0"
_NOBODY = b"0000000\0"
_TAIL = bytes(BLOCK - 265)


def header(entry: TarEntry) -> bytes:
    """The blocks before the entry's content. Its owner is left out, as are the bits that change who runs a file."""
    name = entry.name + b"/" if entry.kind is EntryKind.DIRECTORY else entry.name
    before = b""
    if len(name) > 100:
        before += _long(b"L", name)
    if len(entry.link) > 100:
        before += _long(b"K", entry.link)
    size = entry.size if entry.kind is EntryKind.FILE else 0
    return before + _block(name, entry.mode & 0o777, size, entry.mtime, _TYPES[entry.kind], entry.link)


def padding(size: int) -> bytes:
    """What follows a content of `size` bytes."""
    return bytes(-size % BLOCK)


def _long(kind: bytes, name: bytes) -> bytes:
    size = len(name) + 1
    return _block(b"././@LongLink", 0o644, size, 0, kind, b"") + name + b"\0" + padding(size)


def _block(name: bytes, mode: int, size: int, mtime: int, kind: bytes, link: bytes) -> bytes:
    length = b"%011o\0" % size if size <= _MOST_OCTAL else b"\x80" + size.to_bytes(11, "big")
    before = b"%b%07o\0%b%b%b%011o\0" % (
        name[:100].ljust(100, b"\0"),
        mode,
        _NOBODY,
        _NOBODY,
        length,
        min(mtime, _MOST_OCTAL),
    )
    after = b"%b%b%b%b" % (kind, link[:100].ljust(100, b"\0"), _MAGIC, _TAIL)
    return b"%b%06o\0 %b" % (before, checksum(before + bytes(8) + after), after)
