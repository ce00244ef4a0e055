"""Envelope encryption: a value under a fresh data key, which lies beside it wrapped by a key of the key ring.

    magic "SHE" | version 1 | length of the key id (1 byte) | key id | length of the wrapped key (2 bytes, big endian)
    | wrapped key | nonce (12 bytes) | ciphertext and tag (AES-256-GCM)

The associated data of the ciphertext are magic, version and the value's place; those of the wrapped key are its key
id, the version and the place. So a value opens only where it belongs, and can be wrapped under another key without
being decrypted.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sandhold.security.errors import FormatUnknown, NotEncrypted, Tampered
from sandhold.security.key_ring import KeyRing, WrappedKey, is_key_id, new_data_key

MAGIC = b"SHE"
VERSION = 1
NONCE_BYTES = 12
TAG_BYTES = 16
_HEAD = MAGIC + bytes([VERSION])


@dataclass(frozen=True)
class Place:
    """Where a value belongs: it opens nowhere else."""

    kind: str
    """What it is, such as `connection`; one word for one column or kind of object."""
    owner: str
    record: str
    name: str = ""

    def encode(self) -> bytes:
        """As associated data: no two places have the same."""
        parts = [part.encode() for part in (self.kind, self.owner, self.record, self.name)]
        return b"".join(struct.pack(">I", len(part)) + part for part in parts)


class Envelope:
    """Seals values and opens them."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    async def primary(self) -> str:
        """The id of the key that values are sealed under now. Raises KeyRingUnusable."""
        return await self._ring.primary()

    async def seal(self, value: bytes, place: Place) -> bytes:
        """The value, encrypted under a fresh data key for its place. Raises KeyRingUnusable."""
        data_key = new_data_key()
        wrapped = await self._ring.wrap(data_key, _HEAD + place.encode())
        nonce = os.urandom(NONCE_BYTES)
        return pack_key(wrapped) + nonce + AESGCM(data_key).encrypt(nonce, value, _HEAD + place.encode())

    async def open(self, sealed: bytes, place: Place) -> bytes:
        """The value. Raises NotEncrypted, FormatUnknown, KeyUnknown and Tampered."""
        wrapped, body = unpack_key(sealed)
        data_key = await self._ring.unwrap(wrapped, _HEAD + place.encode())
        try:
            return AESGCM(data_key).decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], _HEAD + place.encode())
        except (InvalidTag, ValueError):
            raise Tampered("an encrypted value does not open: it was altered, or belongs elsewhere") from None

    async def rewrap(self, sealed: bytes, place: Place) -> bytes:
        """The same value under the ring's primary key; `sealed` itself when it is already. As `open`."""
        wrapped, body = unpack_key(sealed)
        if wrapped.key_id == await self._ring.primary():
            return sealed
        data_key = await self._ring.unwrap(wrapped, _HEAD + place.encode())
        return pack_key(await self._ring.wrap(data_key, _HEAD + place.encode())) + body


def key_id_of(sealed: bytes) -> str:
    """The id of the key that a value's data key is wrapped under. Raises NotEncrypted, FormatUnknown and Tampered."""
    return unpack_key(sealed)[0].key_id


def size_of(sealed: bytes) -> int:
    """How many bytes a value has, without opening it. Raises NotEncrypted, FormatUnknown and Tampered."""
    return max(0, len(unpack_key(sealed)[1]) - NONCE_BYTES - TAG_BYTES)


def pack_key(wrapped: WrappedKey, head: bytes = _HEAD) -> bytes:
    """The beginning of a sealed value, up to its nonce. Other formats have the same with a `head` of their own."""
    key_id = wrapped.key_id.encode()
    return head + bytes([len(key_id)]) + key_id + struct.pack(">H", len(wrapped.wrapped)) + wrapped.wrapped


def unpack_key(sealed: bytes, head: bytes = _HEAD) -> tuple[WrappedKey, bytes]:
    """The wrapped key of a sealed value, and what follows it. Raises NotEncrypted, FormatUnknown and Tampered."""
    if sealed[: len(head) - 1] != head[:-1]:
        raise NotEncrypted("this is no encrypted value")
    if sealed[len(head) - 1 : len(head)] != head[-1:]:
        raise FormatUnknown("this value is encrypted in a format that this version does not know")
    try:
        at = len(head) + 1
        end = at + sealed[at - 1]
        key_id = sealed[at:end].decode("ascii")
        (size,) = struct.unpack_from(">H", sealed, end)
        wrapped = sealed[end + 2 : end + 2 + size]
        body = sealed[end + 2 + size :]
    except (IndexError, UnicodeDecodeError, struct.error):
        raise Tampered("an encrypted value is cut or altered") from None
    if not is_key_id(key_id) or len(wrapped) < size:
        raise Tampered("an encrypted value is cut or altered")
    return WrappedKey(key_id, wrapped), body
