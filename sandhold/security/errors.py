"""What encryption raises. No text here holds a key, a plaintext or a ciphertext."""

from __future__ import annotations


class SecurityError(RuntimeError):
    """A key ring or an encrypted value cannot be used."""


class KeyRingMissing(SecurityError):
    """There is no key ring where the settings say. Nothing starts without one."""


class KeyRingUnusable(SecurityError):
    """The key ring is there, but cannot be read, is readable by others, or holds no primary key."""


class KeyUnknown(SecurityError):
    """A value was encrypted under a key that this process does not have."""

    def __init__(self, key_id: str, *, removed: bool = False) -> None:
        self.key_id = key_id
        what = "was removed from the key ring" if removed else "is not in the key ring"
        super().__init__(f"the key {key_id!r}, under which this was encrypted, {what}")


class Tampered(SecurityError):
    """A value does not open: it was altered, cut, moved to another place, or says another key than its own."""


class NotEncrypted(SecurityError):
    """What lies where an encrypted value belongs is none."""


class FormatUnknown(SecurityError):
    """A value is encrypted in a format that this version does not know: a newer one wrote it."""


class KeyRingFixed(SecurityError):
    """The key ring was handed to the process: whoever deploys it can change it, this process cannot."""
