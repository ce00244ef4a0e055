"""Nothing readable at rest: envelope encryption under a key ring, and what is built on it."""

from sandhold.security.envelope import Envelope, Place
from sandhold.security.errors import (
    FormatUnknown,
    KeyRingFixed,
    KeyRingMissing,
    KeyRingUnusable,
    KeyUnknown,
    NotEncrypted,
    SecurityError,
    Tampered,
)
from sandhold.security.key_ring import KeyRing, WrappedKey, new_data_key
from sandhold.security.key_rings import open_key_ring

__all__ = [
    "Envelope",
    "FormatUnknown",
    "KeyRing",
    "KeyRingFixed",
    "KeyRingMissing",
    "KeyRingUnusable",
    "KeyUnknown",
    "NotEncrypted",
    "Place",
    "SecurityError",
    "Tampered",
    "WrappedKey",
    "new_data_key",
    "open_key_ring",
]
