"""Encrypting all of a deployment's session storage, seen from the command line."""

from __future__ import annotations

from sandhold.cli.progress import TransferProgress
from sandhold.contracts.storage import NotEncryptable, StorageEncrypted
from sandhold.security import open_key_ring
from sandhold.settings import Settings
from sandhold.storage.encrypting import Encrypted, Encryption
from sandhold.storage.errors import StorageError

_NAMED = 100


async def encrypted(*, dry_run: bool) -> StorageEncrypted:
    """Encrypt what the settings' storage holds as it was given; what was done, shown on the way.

    Needs neither Temporal nor a worker. Raises SettingsError, KeyRingMissing, KeyRingUnusable, and ToolFailure when the
    storage does not answer.
    """
    settings = Settings.load()
    done = StorageEncrypted(dry_run=dry_run)
    try:
        encryption = Encryption(settings.storage_location, open_key_ring(settings))
        with TransferProgress("looking" if dry_run else "encrypting", None) as progress:
            passed, told = 0, progress.one_file()
            for session_id in await encryption.sessions():
                done.sessions += 1
                async for each in encryption.encrypt(session_id, dry_run=dry_run):
                    _count(done, session_id, each)
                    passed += each.size
                    told(passed)
    except StorageError as error:
        raise error.failure("the storage was not encrypted to the end") from error
    return done


def _count(done: StorageEncrypted, session_id: str, each: Encrypted) -> None:
    if each.error is not None:
        done.objects_failed += 1
        if len(done.failed) < _NAMED:
            done.failed.append(NotEncryptable(session_id=session_id, path=each.path, reason=str(each.error)))
    elif each.was_encrypted:
        done.objects_already += 1
    else:
        done.objects_encrypted += 1
        done.bytes_encrypted += each.size
