"""Reading a tar stream as it comes: the formats of GNU tar, busybox, and POSIX (ustar and pax)."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Protocol

from activities.tar.entries import BLOCK, EntryKind, TarBroken, TarEntry, checksum

NAME_LIMIT_BYTES = 64 * 1024
"""Of a name or a set of pax records: sixteen times the longest path that Linux knows."""
GLOBAL_LIMIT_BYTES = 1024 * 1024
"""Of all pax records of an archive that are for every entry; most have a hundred bytes of them."""
HOLES_LIMIT = 1_000_000
"""Stretches of data between the holes of one file; 16 bytes of memory each."""
_NUMBER_LIMIT = 2**62
_LONGEST_LENGTH = 20
_ZERO_BLOCK = bytes(BLOCK)

_KINDS = {
    b"0": EntryKind.FILE,
    b"\0": EntryKind.FILE,
    b"7": EntryKind.FILE,
    b"S": EntryKind.FILE,
    b"1": EntryKind.HARD_LINK,
    b"2": EntryKind.SYMLINK,
    b"3": EntryKind.DEVICE,
    b"4": EntryKind.DEVICE,
    b"5": EntryKind.DIRECTORY,
    b"6": EntryKind.FIFO,
}
_WITHOUT_CONTENT = frozenset(b"123456")
_EXTENDED = (b"L", b"K", b"x", b"g")
_SPARSE = b"GNU.sparse."
"""What the pax records of a file with holes begin with."""
_RECORDS = frozenset((b"path", b"linkpath", b"size", b"mtime"))
"""Those that mean something here."""


class Visitor(Protocol):
    """Is shown the entries in order."""

    def pass_files(self, data: bytes, at: int) -> int:
        """Entries begin at `at`. Those that are complete in `data` and need not be shown may be passed over: where the
        first other one begins."""
        ...

    def begin(self, entry: TarEntry) -> bool:
        """An entry begins; whether its content is wanted. Only files have content."""
        ...

    def content(self, piece: memoryview) -> None:
        """A piece of the content. It keeps as much of the stream in memory as was fed with it."""
        ...

    def hole(self, size: int) -> None:
        """A piece of the content that is all zeros, as long as this."""
        ...

    def finish(self) -> None:
        """The content that was wanted is complete."""
        ...


class TarReader:
    """Takes the stream in pieces of any size. Holds less than a block of it, and the extended headers of one entry: at
    most one of each kind, and no more than GLOBAL_LIMIT_BYTES of what is for every entry."""

    def __init__(self, visitor: Visitor) -> None:
        self._visitor = visitor
        self._rest = b""
        self._left = 0
        """Bytes of the present payload that have not come yet."""
        self._padding = 0
        self._payload: Callable[[memoryview], None] | None = None
        """What takes the payload; None to pass over it."""
        self._after: Callable[[], None] | None = None
        """What is to be done at its end."""
        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._pax: dict[bytes, bytes] = {}
        self._global_pax: dict[bytes, bytes] = {}
        self._map: array[int] | None = None
        self._sparse: TarEntry | None = None
        self._sparse_payload = 0
        self._blocks: list[bytes] = []
        self._extended = b""
        """The kinds of extended headers that have come for the next entry."""
        self._global_left = GLOBAL_LIMIT_BYTES
        self._is_complete = False

    def feed(self, data: bytes) -> None:
        """Show the visitor what `data` completes. Raises TarBroken."""
        if self._is_complete:
            _check_nothing_follows(data)
            return
        if self._rest:
            data = self._rest + data
            self._rest = b""
        view = memoryview(data)
        at, end = 0, len(data)
        while not self._is_complete:
            if self._left:
                took = min(self._left, end - at)
                if self._payload is not None and took:
                    self._payload(view[at : at + took])
                at += took
                self._left -= took
                if self._left:
                    return
            if self._after is not None:
                after, self._after, self._payload = self._after, None, None
                after()
            if end - at < self._padding:
                self._padding -= end - at
                return
            at += self._padding
            self._padding = 0
            if not self._blocks and not self._global_pax and self._map is None:
                at = self._visitor.pass_files(data, at)
            if end - at < BLOCK:
                self._rest = data[at:]
                return
            block = data[at : at + BLOCK]
            at += BLOCK
            if self._map is not None:
                self._more_of_the_map(block)
            elif block == _ZERO_BLOCK:
                self._is_complete = True
                _check_nothing_follows(data[at:])
            else:
                self._header(block)

    def close(self) -> None:
        """The stream has ended. Raises TarBroken when it should not have yet."""
        if not self._is_complete:
            raise TarBroken("the archive ends in the middle")

    def _header(self, block: bytes) -> None:
        if checksum(block[:148], block[156:]) != _number(block[148:156]) % 65521:
            raise TarBroken("a header is damaged")
        self._blocks.append(block)
        kind = block[156:157]
        size = _number(block[124:136])
        if kind in _EXTENDED:
            self._extended_header(kind, size)
        elif kind == b"S":
            self._sparse_header(block, size)
        else:
            self._entry(block, kind, size)

    def _entry(self, block: bytes, kind: bytes, size: int) -> None:
        entry = self._described(block, kind, size)
        if kind[0] in _WITHOUT_CONTENT:
            entry.size = 0
        if entry.kind is EntryKind.FILE:
            self._begin(entry, entry.size)
        else:
            self._visitor.begin(entry)
            self._expect(entry.size, None, None)

    def _described(self, block: bytes, kind: bytes, size: int) -> TarEntry:
        """The entry of a header, with what the extended headers before it said."""
        name = self._long_name
        link = self._long_link
        self._long_name = self._long_link = None
        if name is None:
            name = _text(block[0:100])
            # GNU tar has other fields in the place of ustar's prefix, and another magic.
            if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
                name = prefix + b"/" + name
        if link is None:
            link = _text(block[157:257])
        kind_of_entry = _KINDS.get(kind, EntryKind.OTHER)
        if kind_of_entry is EntryKind.FILE and name.endswith(b"/"):
            kind_of_entry = EntryKind.DIRECTORY  # by tars from before there was a type
        blocks, self._blocks, self._extended = self._blocks, [], b""
        came = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        entry = TarEntry(name, kind_of_entry, _number(block[100:108]), _number(block[136:148]), size, link, came)
        if self._pax or self._global_pax:
            self._apply_pax(entry)
        return entry

    def _begin(self, entry: TarEntry, payload: int) -> None:
        if self._visitor.begin(entry):
            self._expect(payload, self._visitor.content, self._visitor.finish)
        else:
            self._expect(payload, None, None)

    def _expect(
        self, size: int, payload: Callable[[memoryview], None] | None, after: Callable[[], None] | None
    ) -> None:
        self._left = size
        self._padding = -size % BLOCK
        self._payload = payload
        self._after = after

    # Extended headers.

    def _extended_header(self, kind: bytes, size: int) -> None:
        if size > NAME_LIMIT_BYTES:
            raise TarBroken(f"a name of {size} bytes")
        if kind == b"g":
            self._global_left -= BLOCK + size
            if self._global_left < 0:
                raise TarBroken("its global headers are too long")
        elif kind in self._extended:
            raise TarBroken("an entry has two extended headers of the same kind")
        else:
            self._extended += kind
        gathered = bytearray()

        def finish() -> None:
            data = bytes(gathered)
            self._blocks += (data, bytes(-size % BLOCK))
            self._take_extended(kind, data)

        self._expect(size, gathered.extend, finish)

    def _take_extended(self, kind: bytes, data: bytes) -> None:
        if kind == b"L":
            self._long_name = _text(data)
        elif kind == b"K":
            self._long_link = _text(data)
        elif kind == b"x":
            self._pax = _records(data)
        else:
            self._global_pax.update(_records(data))

    def _apply_pax(self, entry: TarEntry) -> None:
        records = {**self._global_pax, **self._pax}
        self._pax = {}
        entry.name = records.get(b"path", entry.name)
        entry.link = records.get(b"linkpath", entry.link)
        if b"size" in records:
            entry.size = _decimal(records[b"size"])
        if b"mtime" in records:
            entry.mtime = max(0, _decimal(records[b"mtime"].partition(b".")[0].replace(b"-", b"0")))
        if _SPARSE in records:
            entry.kind = EntryKind.OTHER  # its content is not the file's

    # Files with holes, as GNU tar writes them: a map of the stretches of data, which follow each other in the payload.

    def _sparse_header(self, block: bytes, size: int) -> None:
        self._sparse = self._described(block, b"S", _number(block[483:495]))
        self._sparse_payload = size
        self._map = array("q")
        self._add_to_map(block[386:482])
        if not block[482]:
            self._begin_sparse()

    def _more_of_the_map(self, block: bytes) -> None:
        self._add_to_map(block[:504])
        if not block[504]:
            self._begin_sparse()

    def _add_to_map(self, fields: bytes) -> None:
        assert self._map is not None
        for at in range(0, len(fields), 24):
            if fields[at]:
                self._map.append(_number(fields[at : at + 12]))
                self._map.append(_number(fields[at + 12 : at + 24]))
        if len(self._map) > 2 * HOLES_LIMIT:
            raise TarBroken("a file has too many holes")

    def _begin_sparse(self) -> None:
        entry, stretches = self._sparse, self._map
        self._sparse = self._map = None
        assert entry is not None
        assert stretches is not None
        filler = _Filler(self._visitor, entry.size, stretches, self._sparse_payload)
        if self._visitor.begin(entry):
            self._expect(self._sparse_payload, filler.payload, filler.finish)
        else:
            self._expect(self._sparse_payload, None, None)


class _Filler:
    """Puts the stretches of data of a file with holes, and the holes between them, in the order of its content."""

    def __init__(self, visitor: Visitor, size: int, stretches: array[int], payload: int) -> None:
        """`stretches` are in turn where one begins and how long it is. Raises TarBroken."""
        self._visitor = visitor
        self._size = size
        self._stretches = stretches
        at = 0
        for index in range(0, len(stretches), 2):
            offset, length = stretches[index], stretches[index + 1]
            if offset < at or offset + length > size:
                raise TarBroken("the map of a file with holes is wrong")
            at = offset + length
            payload -= length
        if payload:
            raise TarBroken("the map of a file with holes does not fit its content")
        self._index = 0
        self._at = 0

    def payload(self, piece: memoryview) -> None:
        while piece:
            offset, length = self._stretches[self._index], self._stretches[self._index + 1]
            self._hole_to(offset)  # nothing once the stretch has begun
            took = piece[: offset + length - self._at]
            if took:
                self._visitor.content(took)
            self._at += len(took)
            piece = piece[len(took) :]
            if self._at == offset + length:
                self._index += 2

    def finish(self) -> None:
        self._hole_to(self._size)
        self._visitor.finish()

    def _hole_to(self, offset: int) -> None:
        if offset > self._at:
            self._visitor.hole(offset - self._at)
            self._at = offset


def _check_nothing_follows(data: bytes) -> None:
    """Behind the end there are zeros up to the end of a record, and nothing that another reader might find."""
    if data.count(0) != len(data):
        raise TarBroken("something follows the end of the archive")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """A number of a header: octal, or big-endian where that is too short. What is negative counts as 0."""
    if field[0] & 0x80:
        number = 0 if field[0] == 0xFF else int.from_bytes(field[1:], "big")
    else:
        digits = field.partition(b"\0")[0]
        try:
            number = int(digits, 8)
        except ValueError as error:
            if digits.strip():
                raise TarBroken("a header holds something else where a number belongs") from error
            number = 0
    if not 0 <= number < _NUMBER_LIMIT:
        raise TarBroken("a number in a header is out of bounds")
    return number


def _records(data: bytes) -> dict[bytes, bytes]:
    """Of pax records those that mean something here: each is `LENGTH NAME=VALUE` and a newline, where LENGTH counts all
    of that."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + _LONGEST_LENGTH)
        end = at + _decimal(data[at:blank]) if blank > 0 else at
        equals = data.find(b"=", blank, end)
        if equals < 0 or end > len(data) or data[end - 1 : end] != b"\n":
            raise TarBroken("a pax header is damaged")
        name = data[blank + 1 : equals]
        if name in _RECORDS:
            records[name] = data[equals + 1 : end - 1]
        elif name.startswith(_SPARSE):
            records[_SPARSE] = b""
        at = end
    return records


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise TarBroken("a pax header holds something else where a number belongs")
    return int(digits)
