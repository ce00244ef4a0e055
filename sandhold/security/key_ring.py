"""Key-encryption keys: they encrypt data keys, and nothing else.

Every value is encrypted under a data key of its own, which lies beside it, wrapped by the primary key of the ring. A
ring is `KeyRing`: a file or the environment here, a key management service elsewhere, which wraps and unwraps without
ever giving a key away.

A ring over such a service has three methods, and keeps these rules:

- `primary` and `wrap` agree: what `wrap` returns names the key that wrapped it, and soon after the service has another
  primary key `primary` names that one. Both are asked for each value: remember the answer for seconds, not for minutes.
- `unwrap` is given that name back, whichever key is the primary one by then. It gives the data key only for the very
  `context` that it was wrapped with: hand it to the service as its encryption context (additional authenticated data),
  as a digest where it has to be short. An answer "this ciphertext is not valid" is Tampered, "no such key" or "the key
  is disabled" is KeyUnknown; everything else (the service does not answer, permission is missing) is KeyRingUnusable,
  which is tried again.
- A key id is what the service calls one version of a key, of the letters that `is_key_id` takes. An id that moves on to
  another version by itself, such as an alias, is none.
- Each call may come from many tasks at once, and is cancelled with its task.
- The service's own rotation is the rotation: `sandhold keys rotate` then brings vault and storage over.

`SANDHOLD_KEYRING_PROVIDER=module:factory` names what makes such a ring of the settings. Each process calls it, some of
them several times: a client of the service that costs something to make is the factory's to keep.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Protocol

DATA_KEY_BYTES = 32
"""AES-256."""
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,199}")


@dataclass(frozen=True)
class WrappedKey:
    """A data key as it may be stored."""

    key_id: str
    """The key of the ring that wrapped it."""
    wrapped: bytes


class KeyRing(Protocol):
    """Wraps data keys under the primary key, and unwraps those of every key that is not removed."""

    async def primary(self) -> str:
        """The id of the key that wraps now. Raises KeyRingUnusable."""
        ...

    async def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
        """The data key under the primary key, bound to `context`. Raises KeyRingUnusable."""
        ...

    async def unwrap(self, key: WrappedKey, context: bytes) -> bytes:
        """The data key. Raises KeyUnknown, and Tampered when it was wrapped for another context or key."""
        ...


def new_data_key() -> bytes:
    """A fresh random data key."""
    return os.urandom(DATA_KEY_BYTES)


def is_key_id(text: str) -> bool:
    """Whether a key may be called so; ids of key management services are such."""
    return _KEY_ID.fullmatch(text) is not None
