"""A key ring as one JSON document, in a file or in the environment.

{"version": 1, "keys": [{"id": "key-…", "state": "primary", "created_at": "…", "retired_at": null,
                         "material": "32 bytes, base64"}]}
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
from datetime import UTC, datetime
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from sandhold.security.errors import KeyRingUnusable, KeyUnknown, Tampered
from sandhold.security.key_ring import DATA_KEY_BYTES, WrappedKey, is_key_id

KeyState = Literal["primary", "decrypt_only", "removed"]
_NONCE_BYTES = 12


def _key_id(value: str) -> str:
    if not is_key_id(value):
        raise ValueError("not the id of a key")
    return value


class RingKey(BaseModel):
    """One key of the ring."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, AfterValidator(_key_id)]
    state: KeyState
    created_at: datetime
    retired_at: datetime | None = None
    """When it stopped being the primary key: nothing is wrapped by it after that."""
    material: SecretStr | None = None
    """Base64 of 32 bytes; null once it is removed."""

    @classmethod
    def new(cls, state: KeyState) -> RingKey:
        """A fresh random key."""
        now = datetime.now(UTC)
        return cls(
            id=f"key-{now:%Y%m%d}-{secrets.token_hex(4)}",
            state=state,
            created_at=now,
            material=SecretStr(base64.b64encode(os.urandom(DATA_KEY_BYTES)).decode()),
        )

    @model_validator(mode="after")
    def _has_material(self) -> RingKey:
        if self.state != "removed":
            self.key_bytes()
        elif self.material is not None:
            raise ValueError("a removed key has no material")
        return self

    def key_bytes(self) -> bytes:
        """The key itself. Raises ValueError when there is none."""
        if self.material is None:
            raise ValueError("a key needs material")
        try:
            data = base64.b64decode(self.material.get_secret_value(), validate=True)
        except binascii.Error:
            data = b""
        if len(data) != DATA_KEY_BYTES:
            raise ValueError(f"the material of a key is {DATA_KEY_BYTES} bytes in base64")
        return data


class KeyDocument(BaseModel):
    """All keys, removed ones included: their ids are never used again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    keys: list[RingKey] = Field(min_length=1)

    @classmethod
    def new(cls) -> KeyDocument:
        """A ring with one fresh key."""
        return cls(keys=[RingKey.new("primary")])

    @classmethod
    def parse(cls, text: str, where: str) -> KeyDocument:
        """The document in `text`. Raises KeyRingUnusable, which names `where` and shows nothing of the text."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'document'}: {fault['msg']}"
                for fault in error.errors(include_input=False, include_url=False, include_context=False)
            )
            raise KeyRingUnusable(f"the key ring in {where} cannot be used: {faults}") from None

    @model_validator(mode="after")
    def _one_primary(self) -> KeyDocument:
        ids = [key.id for key in self.keys]
        if len(set(ids)) != len(ids):
            raise ValueError("two keys have the same id")
        if sum(key.state == "primary" for key in self.keys) != 1:
            raise ValueError("one key has to be the primary one")
        return self

    @property
    def primary(self) -> RingKey:
        return next(key for key in self.keys if key.state == "primary")

    def find(self, key_id: str) -> RingKey | None:
        return next((key for key in self.keys if key.id == key_id), None)

    def dump(self) -> str:
        """The document with its keys in the clear, for where it is kept."""
        value = self.model_dump(mode="json")
        for shown, key in zip(value["keys"], self.keys, strict=True):
            shown["material"] = None if key.material is None else key.material.get_secret_value()
        return json.dumps(value, indent=2) + "\n"

    def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
        """The data key under the primary key."""
        key = self.primary
        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(key.key_bytes()).encrypt(nonce, data_key, _bound(key.id, context))
        return WrappedKey(key.id, nonce + sealed)

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """The data key. Raises KeyUnknown and Tampered."""
        key = self.find(wrapped.key_id)
        if key is None or key.state == "removed":
            raise KeyUnknown(wrapped.key_id, removed=key is not None)
        nonce, sealed = wrapped.wrapped[:_NONCE_BYTES], wrapped.wrapped[_NONCE_BYTES:]
        try:
            return AESGCM(key.key_bytes()).decrypt(nonce, sealed, _bound(key.id, context))
        except (InvalidTag, ValueError):
            raise Tampered("a data key does not open: it was altered, or belongs elsewhere") from None


def _bound(key_id: str, context: bytes) -> bytes:
    return b"sandhold data key\0" + key_id.encode() + b"\0" + context
