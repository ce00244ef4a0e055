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
_NOBODY = b"0000000\0" * 2
_NO_LINK = bytes(100)
_TAIL = b"ustar  \0" + bytes(BLOCK - 265)


def header(name: bytes, kind: EntryKind, mode: int, mtime: int, size: int = 0, link: bytes = b"") -> bytes:
    """The blocks before an entry's content, which has `size` bytes.

    Its owner is left out, as are the bits that change who runs a file.
    """
    if kind is EntryKind.DIRECTORY:
        name += b"/"
    before = b""
    if len(name) > 100:
        before += _long(b"L", name)
    if len(link) > 100:
        before += _long(b"K", link)
    block = _block(name, mode & 0o777, size, mtime, _TYPES[kind], link)
    return before + block if before else block


def header_of(entry: TarEntry) -> bytes:
    """The header of an entry that was taken; names begin with the directory, as tar writes them."""
    name = entry.name if entry.name == b"." else b"./" + entry.name
    link = b"./" + entry.link if entry.kind is EntryKind.HARD_LINK else entry.link
    size = entry.size if entry.kind is EntryKind.FILE else 0
    return header(name, entry.kind, entry.mode, entry.mtime, size, link)


def padding(size: int) -> bytes:
    """What follows a content of `size` bytes."""
    return bytes(-size % BLOCK)


def _long(kind: bytes, name: bytes) -> bytes:
    size = len(name) + 1
    return _block(b"././@LongLink", 0o644, size, 0, kind, b"") + name + b"\0" + padding(size)


def _block(name: bytes, mode: int, size: int, mtime: int, kind: bytes, link: bytes) -> bytes:
    length = b"%011o\0" % size if size <= _MOST_OCTAL else b"\x80" + size.to_bytes(11, "big")
    before = b"%b%07o\0%b%b%011o\0" % (
        name[:100].ljust(100, b"\0"),
        mode,
        _NOBODY,
        length,
        mtime if mtime <= _MOST_OCTAL else _MOST_OCTAL,
    )
    after = b"%b%b%b" % (kind, link[:100].ljust(100, b"\0") if link else _NO_LINK, _TAIL)
    return b"%b%06o\0 %b" % (before, checksum(before, after), after)
