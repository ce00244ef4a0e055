"""What session storage tells of its files, and what cleaning it up asks and answers."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from sandhold.contracts.base import Message


class StoredFile(Message):
    """A file in session storage."""

    path: str
    size: int
    modified_at: datetime
    """When its content was written; it never changes in part."""


class NotEncryptable(Message):
    """Something in storage that could not be encrypted."""

    session_id: str
    path: str
    reason: str


class StorageEncrypted(Message):
    """What became of what earlier versions have stored as it was given. In a dry run: what would have."""

    dry_run: bool = False
    sessions: int = 0
    """Sessions that storage holds something of."""
    objects_encrypted: int = 0
    bytes_encrypted: int = 0
    objects_already: int = 0
    """Objects that were encrypted before."""
    objects_failed: int = 0
    failed: list[NotEncryptable] = Field(default_factory=list)
    """The first of these."""


class CleanStorageStep(Message):
    """Remove what sessions left longer ago than their policies keep it: `clean_storage`."""

    dry_run: bool = False
    """Only tell what would be removed."""


class StorageCleaned(Message):
    """What a clean-up did. In a dry run: what it would have done."""

    dry_run: bool = False
    looked_at: int = 0
    """Sessions that storage holds something of."""
    kept_open: int = 0
    """Sessions that run, or of which a sandbox still does."""
    kept_for_now: int = 0
    """Sessions that have ended, and are to be kept for longer."""
    kept_undecided: int = 0
    """Sessions that nobody here can say to have ended, for example those of another deployment."""
    kept_unreadable: int = 0
    """Sessions of which something cannot be read, or removed: an operator has to look at them."""
    unreadable: list[str] = Field(default_factory=list)
    """The ids of the first of these."""
    sessions_removed: int = 0
    objects_removed: int = 0
    bytes_removed: int = 0
    leftovers_removed: int = 0
    """Files that writers left unfinished in a local folder when they were killed."""
    secrets_removed: int = 0
    """Secrets of sessions that have ended."""
    git_tokens_ended: int = 0
    """Tokens of git that were revoked for sessions that have ended, or had expired."""
    git_tokens_left: int = 0
    """Those that could not be revoked; they end by themselves within the hour."""
    removed: list[str] = Field(default_factory=list)
    """The ids of the first of the removed sessions."""
