"""What passes through Temporal, encrypted: arguments, results, details, memo, summaries, heartbeats, failures.

An encrypted payload has the encoding `binary/sandhold-encrypted`, the id of its key in the metadata for operators, and
as its data

    magic "SHP" | version 1 | length of the key id (1 byte) | key id | length of the wrapped key (2 bytes, big endian)
    | wrapped key | nonce (12 bytes) | ciphertext and tag (AES-256-GCM)

The associated data are everything before the nonce. In the ciphertext is

    method (1 byte: 0 as it is, 1 zlib) | size of the payload (4 bytes) | length of the namespace (2 bytes) | namespace
    | length of the workflow id (2 bytes) | workflow id | the payload's protocol buffer, by the method

A payload opens only in the namespace and for the workflow that it was encrypted for, where those are known (`Bound`).
"""

from __future__ import annotations

import asyncio
import os
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from google.protobuf.message import DecodeError
from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    ActivitySerializationContext,
    PayloadCodec,
    SerializationContext,
    WithSerializationContext,
    WorkflowSerializationContext,
)

from sandhold.contracts.names import is_sandbox_of
from sandhold.security.data_keys import DataKeys
from sandhold.security.envelope import NONCE_BYTES, TAG_BYTES, pack_key, unpack_key
from sandhold.security.errors import NotEncrypted, Tampered
from sandhold.security.key_ring import KeyRing

ENCODING = b"binary/sandhold-encrypted"
KEY_ID = "encryption-key-id"
COMPRESSED_FROM_BYTES = 1024
"""Smaller payloads do not get noticeably smaller."""
MAX_PAYLOAD_BYTES = 32 * 1024 * 1024
"""No payload is decompressed to more. Temporal takes 2 MiB, which zlib could have made of 2 GB."""
_HEAD = b"SHP\x01"
_PURPOSE = b"payloads 1"
_AS_IT_IS, _ZLIB = 0, 1
_COMPRESSION_LEVEL = 1
_IN_A_THREAD_FROM_BYTES = 128 * 1024
"""From here on, the cipher and above all zlib would keep the event loop for more than a millisecond."""
_STARTED_AT = re.compile(r"-\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")
"""What a schedule appends to the id of the workflow that it starts."""


@dataclass(frozen=True)
class Bound:
    """What a payload belongs to. An empty name stands for one that is not known, and is compared with nothing."""

    namespace: str = ""
    workflow_id: str = ""

    @classmethod
    def of(cls, context: SerializationContext) -> Bound:
        """What the SDK is converting for."""
        if isinstance(context, WorkflowSerializationContext):
            return cls(context.namespace, context.workflow_id)
        if isinstance(context, ActivitySerializationContext):
            return cls(context.namespace, context.workflow_id or "")
        return cls()

    def may_open(self, found: Bound) -> bool:
        """Whether a payload that was encrypted for `found` belongs here.

        Three kinds are encrypted for another workflow id than the one they are read with (temporalio 1.35): what a
        schedule starts its workflows with, which has the id without the time; the result of the workflow that it
        started before, which it hands on, and which has an earlier time; and the summary of a child, which has the id
        of its parent. So a sandbox takes what belongs to its session, but not the other way round.
        """
        if self.namespace and found.namespace and self.namespace != found.namespace:
            return False
        here, there = self.workflow_id, found.workflow_id
        schedule, is_scheduled = _STARTED_AT.subn("", here)
        return (
            not here
            or not there
            or here == there
            or (is_scheduled == 1 and _STARTED_AT.sub("", there) == schedule)
            or is_sandbox_of(here, there)
        )

    def encode(self) -> bytes:
        names = (self.namespace.encode(), self.workflow_id.encode())
        return b"".join(struct.pack(">H", len(name)) + name for name in names)


class EncryptingCodec(PayloadCodec, WithSerializationContext):
    """Encrypts every payload. Those that are not encrypted are refused: whoever made them may not have had the key.

    With `plain_too` they are read as they are: what is in histories from before encryption.
    """

    def __init__(self, keys: DataKeys, bound: Bound | None = None, *, plain_too: bool = False) -> None:
        self._keys = keys
        self._bound = bound or Bound()
        self._plain_too = plain_too

    @classmethod
    def under(cls, ring: KeyRing, *, plain_too: bool = False) -> EncryptingCodec:
        """One with data keys of its own."""
        return cls(DataKeys(ring, _PURPOSE), plain_too=plain_too)

    def with_context(self, context: SerializationContext) -> EncryptingCodec:
        """The same with what the SDK is converting for."""
        return self.bound_to(Bound.of(context))

    def bound_to(self, bound: Bound) -> EncryptingCodec:
        """The same for what belongs there: it encrypts for nothing else, and opens nothing else."""
        return EncryptingCodec(self._keys, bound, plain_too=self._plain_too)

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """The payloads, encrypted. Raises KeyRingMissing and KeyRingUnusable."""
        return [await self._encoded(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """The payloads as they were. Raises KeyUnknown, Tampered, FormatUnknown and NotEncrypted."""
        return [await self._decoded(payload) for payload in payloads]

    async def _encoded(self, payload: Payload) -> Payload:
        wrapped, cipher = await self._keys.for_writing()
        plain = payload.SerializeToString()
        head = pack_key(wrapped, _HEAD)

        def sealed() -> bytes:
            nonce = os.urandom(NONCE_BYTES)
            return head + nonce + cipher.encrypt(nonce, _packed(plain, self._bound), head)

        return Payload(
            metadata={"encoding": ENCODING, KEY_ID: wrapped.key_id.encode()},
            data=await asyncio.to_thread(sealed) if len(plain) >= _IN_A_THREAD_FROM_BYTES else sealed(),
        )

    async def _decoded(self, payload: Payload) -> Payload:
        if not is_encrypted(payload):
            if self._plain_too:
                return payload
            raise NotEncrypted(
                "a payload is not encrypted: it was sent without the key ring, or is from before encryption, whose "
                "histories are read with SANDHOLD_READ_PLAIN_HISTORIES=true"
            )
        wrapped, body = unpack_key(payload.data, _HEAD)
        if payload.metadata.get(KEY_ID) != wrapped.key_id.encode() or len(body) < NONCE_BYTES + TAG_BYTES:
            raise _altered()
        cipher = await self._keys.for_reading(wrapped)
        head, nonce, sealed = payload.data[: -len(body)], body[:NONCE_BYTES], body[NONCE_BYTES:]

        def opened() -> tuple[Bound, Payload]:
            try:
                return _unpacked(cipher.decrypt(nonce, sealed, head))
            except InvalidTag:
                raise _altered() from None

        bound, plain = await asyncio.to_thread(opened) if len(sealed) >= _IN_A_THREAD_FROM_BYTES else opened()
        if not self._bound.may_open(bound):
            raise Tampered("an encrypted payload belongs to another workflow or namespace")
        return plain


def is_encrypted(payload: Payload) -> bool:
    """Whether the payload is one that EncryptingCodec has made."""
    return payload.metadata.get("encoding") == ENCODING


def _packed(plain: bytes, bound: Bound) -> bytes:
    """What is encrypted."""
    method, body = _AS_IT_IS, plain
    if COMPRESSED_FROM_BYTES <= len(plain) <= MAX_PAYLOAD_BYTES:
        compressed = zlib.compress(plain, _COMPRESSION_LEVEL)
        if len(compressed) < len(plain):
            method, body = _ZLIB, compressed
    return struct.pack(">BI", method, len(plain)) + bound.encode() + body


def _unpacked(packed: bytes) -> tuple[Bound, Payload]:
    """What was encrypted. Raises Tampered: whoever made it had the key, but not this code."""
    try:
        method, size = struct.unpack_from(">BI", packed)
        names: list[str] = []
        at = struct.calcsize(">BI")
        for _ in range(2):
            (length,) = struct.unpack_from(">H", packed, at)
            names.append(packed[at + 2 : at + 2 + length].decode())
            at += 2 + length
        plain = packed[at:] if method == _AS_IT_IS else _decompressed(method, packed[at:], size)
        if len(plain) != size:
            raise _altered()
        return Bound(*names), Payload.FromString(plain)
    except (struct.error, UnicodeDecodeError, zlib.error, DecodeError):
        raise _altered() from None


def _decompressed(method: int, body: bytes, size: int) -> bytes:
    if method != _ZLIB or size > MAX_PAYLOAD_BYTES:
        raise _altered()
    expanding = zlib.decompressobj()
    # One byte more than there may be: what is longer is seen, and never held.
    plain = expanding.decompress(body, size + 1)
    if not expanding.eof or expanding.unused_data:
        raise _altered()
    return plain


def _altered() -> Tampered:
    return Tampered("an encrypted payload does not open: it was altered or cut")
