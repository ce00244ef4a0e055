"""The vault: connections of owners and secrets of sessions, in SQL, each value sealed for its place."""

from __future__ import annotations

from sandhold.security import Envelope, KeyRing
from sandhold.settings import Settings
from sandhold.vault.connections import StoredConnections
from sandhold.vault.database import open_database
from sandhold.vault.git_tokens import StoredGitTokens
from sandhold.vault.parts import Parts, Watcher
from sandhold.vault.schema_version import bring_up_to_date
from sandhold.vault.sealed_values import SealedValues
from sandhold.vault.session_secrets import StoredSecrets


class Vault(StoredConnections, StoredSecrets, StoredGitTokens, SealedValues):
    """An open vault. Belongs to the event loop that opened it; any number of processes may have the same one open."""

    def __init__(self, parts: Parts) -> None:
        StoredConnections.__init__(self, parts)
        StoredSecrets.__init__(self, parts)
        StoredGitTokens.__init__(self, parts)
        SealedValues.__init__(self, parts)

    @property
    def kind(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._parts.database.kind

    @property
    def shown(self) -> str:
        """Where it is, without a password."""
        return self._parts.database.shown

    def watch(self, watcher: Watcher) -> None:
        """Have `watcher` told of every change that is made through this vault."""
        self._parts.watchers.append(watcher)

    async def close(self) -> None:
        """Let go of the database."""
        await self._parts.database.close()


async def open_vault(settings: Settings, ring: KeyRing) -> Vault:
    """The vault that the settings name, made or brought to this build's version if need be.

    Safe with any number of processes at once. Raises SettingsError, VaultNewer and other VaultErrors.
    """
    database = open_database(settings)
    try:
        await bring_up_to_date(database)
    except BaseException:
        await database.close()
        raise
    return Vault(Parts(database, Envelope(ring)))
