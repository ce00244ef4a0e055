"""Connections and secrets of owners and sessions, encrypted, in SQL. Needs the extra `server`."""

from sandhold.vault.cache import VaultCache
from sandhold.vault.errors import (
    ConnectionChanged,
    ConnectionMissing,
    SecretMissing,
    SecretsFull,
    SecretsTooLarge,
    ValueRefused,
    VaultDamaged,
    VaultError,
    VaultFull,
    VaultNewer,
    VaultRefused,
    VaultUnavailable,
)
from sandhold.vault.records import (
    ConnectionRecord,
    ConnectionRow,
    GitToken,
    GitTokenPurpose,
    Provider,
    SecretRow,
    SecretsOfSession,
    SessionValues,
)
from sandhold.vault.vault import Vault, open_vault

__all__ = [
    "ConnectionChanged",
    "ConnectionMissing",
    "ConnectionRecord",
    "ConnectionRow",
    "GitToken",
    "GitTokenPurpose",
    "Provider",
    "SecretMissing",
    "SecretRow",
    "SecretsFull",
    "SecretsOfSession",
    "SecretsTooLarge",
    "SessionValues",
    "ValueRefused",
    "Vault",
    "VaultCache",
    "VaultDamaged",
    "VaultError",
    "VaultFull",
    "VaultNewer",
    "VaultRefused",
    "VaultUnavailable",
    "open_vault",
]
