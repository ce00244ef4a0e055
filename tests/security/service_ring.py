"""A key ring over a service that never gives its keys away, as a key management service is."""

from __future__ import annotations

import asyncio
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sandhold.security import KeyRingUnusable, KeyUnknown, Tampered, WrappedKey
from sandhold.settings import Settings


class ServiceAway(Exception):
    """The service does not answer."""


class NoSuchKey(Exception):
    """The service has no such key, or will not use it."""


class InvalidCiphertext(Exception):
    """The service did not make this, or not for this context."""


class KeyService:
    """The far side: keys go in and out of nowhere, ciphertexts do."""

    def __init__(self) -> None:
        self._keys: dict[str, AESGCM] = {}
        self.away = False
        self.turn()

    def turn(self) -> None:
        """Have a fresh primary key."""
        self.primary = f"keys/sandhold/versions/{len(self._keys) + 1}"
        self._keys[self.primary] = AESGCM(os.urandom(32))

    def disable(self, key_id: str) -> None:
        self._keys[key_id] = None  # type: ignore[assignment]

    async def encrypt(self, plain: bytes, context: str) -> tuple[str, bytes]:
        key = await self._key(self.primary)
        nonce = os.urandom(12)
        return self.primary, nonce + key.encrypt(nonce, plain, context.encode())

    async def decrypt(self, key_id: str, sealed: bytes, context: str) -> bytes:
        key = await self._key(key_id)
        try:
            return key.decrypt(sealed[:12], sealed[12:], context.encode())
        except (InvalidTag, ValueError):
            raise InvalidCiphertext from None

    async def _key(self, key_id: str) -> AESGCM:
        await asyncio.sleep(0)
        if self.away:
            raise ServiceAway
        key = self._keys.get(key_id)
        if key is None:
            raise NoSuchKey
        return key


class ServiceKeyRing:
    """Our side of it: a `KeyRing`."""

    def __init__(self, service: KeyService) -> None:
        self._service = service

    async def primary(self) -> str:
        return self._service.primary

    async def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
        try:
            key_id, sealed = await self._service.encrypt(data_key, _digest(context))
        except (ServiceAway, NoSuchKey):
            raise KeyRingUnusable("the key service does not wrap") from None
        return WrappedKey(key_id, sealed)

    async def unwrap(self, key: WrappedKey, context: bytes) -> bytes:
        try:
            return await self._service.decrypt(key.key_id, key.wrapped, _digest(context))
        except NoSuchKey:
            raise KeyUnknown(key.key_id) from None
        except InvalidCiphertext:
            raise Tampered("a data key does not open: it was altered, or belongs elsewhere") from None
        except ServiceAway:
            raise KeyRingUnusable("the key service does not answer") from None


SERVICE = KeyService()
"""One for this process: all that it tests is a client of it."""


def ring_of_the_service(settings: Settings) -> ServiceKeyRing:
    """For SANDHOLD_KEYRING_PROVIDER."""
    return ServiceKeyRing(SERVICE)


def _digest(context: bytes) -> str:
    return hashlib.sha256(context).hexdigest()
