"""Where the commands about keys find sealed values: in the vault and in session storage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandhold.security import Envelope, KeyRing, SecurityError
from sandhold.security.holders import Holder, SealedHolder
from sandhold.settings import Settings
from sandhold.storage import SessionStorage, StorageError
from sandhold.vault import VaultError, open_vault


class HolderAway(SecurityError):
    """The vault or the storage cannot be read or written."""


@asynccontextmanager
async def open_holders(settings: Settings, ring: KeyRing) -> AsyncIterator[list[Holder]]:
    """All holders of sealed values of this deployment. Raises HolderAway, also for what is done with them."""
    envelope = Envelope(ring)
    try:
        storage = SessionStorage.open(settings.storage_location, ring)
        vault = await open_vault(settings, ring)
        try:
            yield [SealedHolder("vault", vault, envelope), SealedHolder("storage", storage.objects, envelope)]
        finally:
            await vault.close()
    except (VaultError, StorageError) as error:
        raise HolderAway(f"{error}; what was done stays done, do the same again") from error
