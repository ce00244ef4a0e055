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
from functools import cached_property
from typing import Annotated, Any, Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from sandhold.security.errors import KeyRingUnusable, KeyUnknown, Tampered
from sandhold.security.key_ring import DATA_KEY_BYTES, WrappedKey, is_key_id

KeyState = Literal["primary", "decrypt_only", "removed"]
VERSION: Final = 1
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
    created_at: AwareDatetime
    retired_at: AwareDatetime | None = None
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

    @cached_property
    def cipher(self) -> AESGCM:
        """The key ready for use: made once, as every payload asks for it. Only of a key that is not removed."""
        return AESGCM(self.key_bytes())

    def primary_now(self) -> RingKey:
        """The same key as the primary one."""
        return self._with(state="primary", retired_at=None)

    def retired(self) -> RingKey:
        """The same key, which only decrypts from now on."""
        return self._with(state="decrypt_only", retired_at=datetime.now(UTC))

    def removed(self) -> RingKey:
        """What is kept of the key for ever: that there was one."""
        return self._with(state="removed", retired_at=self.retired_at or datetime.now(UTC), material=None)

    def _with(self, **changes: Any) -> RingKey:
        # Not `model_copy`, which would hand on the cipher and check nothing.
        return RingKey(**{name: getattr(self, name) for name in type(self).model_fields} | changes)


class KeyDocument(BaseModel):
    """All keys, removed ones included: their ids are never used again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = VERSION
    keys: list[RingKey] = Field(min_length=1)

    @classmethod
    def new(cls) -> KeyDocument:
        """A ring with one fresh key."""
        return cls(keys=[RingKey.new("primary")])

    @classmethod
    def parse(cls, text: str, where: str) -> KeyDocument:
        """The document in `text`. Raises KeyRingUnusable, which names `where` and shows nothing of the text."""
        if (version := _version_of(text)) > VERSION:
            raise KeyRingUnusable(
                f"the key ring in {where} is of version {version}: a newer Sandhold wrote it, this one knows {VERSION}"
            )
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
        if len(self._by_id) != len(self.keys):
            raise ValueError("two keys have the same id")
        if sum(key.state == "primary" for key in self.keys) != 1:
            raise ValueError("one key has to be the primary one")
        return self

    @cached_property
    def primary(self) -> RingKey:
        return next(key for key in self.keys if key.state == "primary")

    @cached_property
    def _by_id(self) -> dict[str, RingKey]:
        return {key.id: key for key in self.keys}

    def find(self, key_id: str) -> RingKey | None:
        return self._by_id.get(key_id)

    def added(self, key: RingKey) -> KeyDocument:
        """With one key more. A primary one retires the primary key of now."""
        retiring = key.state == "primary"
        kept = [each.retired() if retiring and each is self.primary else each for each in self.keys]
        return KeyDocument(keys=[*kept, key])

    def promoted(self, key_id: str) -> KeyDocument:
        """With this key as the primary one; the document itself when it is. Raises KeyUnknown."""
        key = self.usable(key_id)
        if key is self.primary:
            return self
        changed = {key.id: key.primary_now(), self.primary.id: self.primary.retired()}
        return KeyDocument(keys=[changed.get(each.id, each) for each in self.keys])

    def removed(self, key_id: str) -> KeyDocument:
        """Without the material of this key, which must not be the primary one. Raises KeyUnknown and ValueError."""
        gone = self.usable(key_id)
        return KeyDocument(keys=[each.removed() if each is gone else each for each in self.keys])

    def usable(self, key_id: str) -> RingKey:
        """The key, which encrypts or decrypts. Raises KeyUnknown."""
        key = self.find(key_id)
        if key is None or key.state == "removed":
            raise KeyUnknown(key_id, removed=key is not None)
        return key

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
        sealed = key.cipher.encrypt(nonce, data_key, _bound(key.id, context))
        return WrappedKey(key.id, nonce + sealed)

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """The data key. Raises KeyUnknown and Tampered."""
        key = self.usable(wrapped.key_id)
        nonce, sealed = wrapped.wrapped[:_NONCE_BYTES], wrapped.wrapped[_NONCE_BYTES:]
        try:
            return key.cipher.decrypt(nonce, sealed, _bound(key.id, context))
        except (InvalidTag, ValueError):
            raise Tampered("a data key does not open: it was altered, or belongs elsewhere") from None


def _bound(key_id: str, context: bytes) -> bytes:
    return b"sandhold data key\0" + key_id.encode() + b"\0" + context


def _version_of(text: str) -> int:
    """The version that a document says it has; 0 when it says nothing of the kind."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return 0
    version = document.get("version") if isinstance(document, dict) else None
    return version if isinstance(version, int) else 0
