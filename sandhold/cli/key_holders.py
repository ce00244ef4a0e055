"""Where the commands about keys find sealed values: in the vault and in session storage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandhold.security import KeyRing
    from sandhold.security.holders import Holder
    from sandhold.settings import Settings


@asynccontextmanager
async def open_holders(settings: Settings, ring: KeyRing) -> AsyncIterator[list[Holder]]:
    """All holders of sealed values of this deployment. Raises VaultError and StorageError."""
    from sandhold.security import Envelope
    from sandhold.security.holders import SealedHolder
    from sandhold.storage import SessionStorage

    storage = SessionStorage.open(settings.storage_location, ring)
    yield [SealedHolder("storage", storage.objects, Envelope(ring))]
