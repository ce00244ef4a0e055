"""Where the commands about keys find sealed values: in the vault and in session storage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sandhold.security import Envelope, KeyRing, Place, SecurityError
from sandhold.security.holders import Fault, Holder, SealedHolder
from sandhold.security.rotation import HolderReport
from sandhold.settings import Settings
from sandhold.storage import SessionStorage, StorageError
from sandhold.storage.encrypting import Encryption
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


async def verified_objects(settings: Settings, ring: KeyRing, *, deep: bool, told: Callable[[], None]) -> HolderReport:
    """Open the header of every object in session storage, or all of it where `deep`. Raises HolderAway."""
    report = HolderReport("objects")
    try:
        encryption = Encryption(settings.storage_location, ring)
        for session_id in await encryption.sessions():
            async for each in encryption.encrypt(session_id, dry_run=True):
                error = each.error
                if deep and each.was_encrypted:
                    error = await encryption.fault_within(session_id, each.path)
                if error is not None:
                    report.faults.append(Fault(_place(session_id, each.path), str(error)))
                elif each.was_encrypted:
                    report.done += 1
                else:
                    reason = "it is stored in the clear: `sandhold storage encrypt`"
                    report.faults.append(Fault(_place(session_id, each.path), reason))
                told()
    except StorageError as error:
        raise HolderAway(f"{error}; do the same again") from error
    return report


def _place(session_id: str, path: str) -> Place:
    return Place("object", "", session_id, path)
