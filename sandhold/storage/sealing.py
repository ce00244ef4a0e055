"""How an object lies: a header with the object's own key, then its bytes in chunks, each encrypted by itself.

    header (64 bytes): magic "SHO" | version 1 | nonce (12 bytes) | the object's key and tag (AES-256-GCM, 48 bytes)
    chunk 0, 1, …:     CHUNK_BYTES of the object and a tag of 16 bytes (AES-256-GCM); the last one is shorter, or full

The object's key is random, never used for another one, and wrapped by the key of its session; the associated data are
magic, version, session and path. A chunk's nonce is its number (8 bytes, big endian) and whether it is the last one
(4 bytes, 0 or 1); its associated data are those of the header and the nonce. An empty object has one empty chunk; no
other chunk is empty. So the size of an object follows from what is stored, a chunk can be read without those before it,
and one that was moved, repeated, cut off or altered does not open.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sandhold.security import Place, new_data_key
from sandhold.storage.errors import StorageDamaged, StoredInTheClear

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHUNK_BYTES = 1024 * 1024
_TAG_BYTES = 16
_NONCE_BYTES = 12
_HEAD = b"SHO\x01"
_MAGIC_BYTES = 3
HEADER_BYTES = len(_HEAD) + _NONCE_BYTES + 32 + _TAG_BYTES
SEALED_CHUNK_BYTES = CHUNK_BYTES + _TAG_BYTES
"""A full chunk as it is stored."""


def sealed_size(size: int) -> int:
    """How many bytes are stored for an object of `size`."""
    return HEADER_BYTES + size + _TAG_BYTES * chunks_of(size)


def size_of(stored: int) -> int:
    """The size of the object of which so much is stored; 0 when it can be none."""
    body = stored - HEADER_BYTES
    return max(0, body + _TAG_BYTES * (-body // SEALED_CHUNK_BYTES))


def checked_size(stored: int, path: str) -> int:
    """As `size_of`, of what can be an object. Raises StorageDamaged."""
    size = size_of(stored)
    if sealed_size(size) != stored:
        raise StorageDamaged(path)
    return size


def chunks_of(size: int) -> int:
    """In how many chunks an object of `size` lies."""
    return max(1, -(-size // CHUNK_BYTES))


def chunk_at(number: int) -> int:
    """Where in what is stored a chunk begins."""
    return HEADER_BYTES + number * SEALED_CHUNK_BYTES


class Seal:
    """The key of one object, bound to its place."""

    def __init__(self, key: bytes, header: bytes, session_id: str, path: str) -> None:
        self.header = header
        self._cipher = AESGCM(key)
        self._bound = _bound(session_id, path)
        self._path = path

    @classmethod
    def new(cls, session_key: AESGCM, session_id: str, path: str) -> Seal:
        """For an object that is about to be stored."""
        key, nonce = new_data_key(), os.urandom(_NONCE_BYTES)
        wrapped = session_key.encrypt(nonce, key, _bound(session_id, path))
        return cls(key, _HEAD + nonce + wrapped, session_id, path)

    @classmethod
    def of(cls, session_key: AESGCM, header: bytes, session_id: str, path: str) -> Seal:
        """Of an object that begins with `header`. Raises StorageDamaged and StoredInTheClear."""
        check_header(header, path)
        nonce, wrapped = header[len(_HEAD) : len(_HEAD) + _NONCE_BYTES], header[len(_HEAD) + _NONCE_BYTES :]
        try:
            key = session_key.decrypt(nonce, wrapped, _bound(session_id, path))
        except InvalidTag:
            raise StorageDamaged(path) from None
        return cls(key, header, session_id, path)

    def sealed(self, data: Buffer, first: int = 0, *, is_end: bool = True) -> bytearray:
        """Chunks in a row, the first one of this number, as they are stored; before chunk 0 the header.

        `data` fill their chunks, unless they are the end of the object.
        """
        view = memoryview(data)
        count = chunks_of(len(view))
        at = 0 if first else HEADER_BYTES
        stored = bytearray(at + len(view) + count * _TAG_BYTES)
        stored[:at] = self.header[:at]
        room = memoryview(stored)
        for number in range(count):
            chunk = view[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            nonce = _nonce(first + number, is_last=is_end and number == count - 1)
            end = at + len(chunk) + _TAG_BYTES
            self._cipher.encrypt_into(nonce, chunk, self._bound + nonce, room[at:end])
            at = end
        return stored

    def opened(self, stored: memoryview, number: int, *, is_last: bool) -> bytes:
        """One chunk. Raises StorageDamaged."""
        nonce = _nonce(number, is_last=is_last)
        try:
            return self._cipher.decrypt(nonce, stored, self._bound + nonce)
        except (InvalidTag, ValueError):
            raise StorageDamaged(self._path) from None

    def opened_all(self, stored: Buffer) -> bytes:
        """The object of which this is stored, its header included. Raises StorageDamaged."""
        view = memoryview(stored)
        count = chunks_of(checked_size(len(view), self._path))
        chunks = [
            self.opened(view[chunk_at(number) : chunk_at(number + 1)], number, is_last=number == count - 1)
            for number in range(count)
        ]
        return chunks[0] if count == 1 else b"".join(chunks)


def check_header(header: bytes, path: str) -> None:
    """Return when an object that begins so may be one of ours. Raises StorageDamaged and StoredInTheClear."""
    if header[:_MAGIC_BYTES] != _HEAD[:_MAGIC_BYTES]:
        raise StoredInTheClear(path)
    if len(header) < HEADER_BYTES:
        raise StorageDamaged(path)
    if not header.startswith(_HEAD):
        raise StorageDamaged(path, "it is encrypted in a format that this version does not know")


def _bound(session_id: str, path: str) -> bytes:
    return _HEAD + Place("object", "", session_id, path).encode()


def _nonce(number: int, *, is_last: bool) -> bytes:
    return struct.pack(">QI", number, is_last)
