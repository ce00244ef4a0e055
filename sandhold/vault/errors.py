"""What the vault raises: errors of our own with texts of our own.

What a database itself says quotes statements, values, hosts and users. Its code goes to the log, its words nowhere.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from asyncpg.exceptions import (  # type: ignore[import-untyped]
    ClientConfigurationError,
    InterfaceError,
    PostgresError,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from sandhold.contracts.errors import ErrorCode, ToolFailure

logger = logging.getLogger("sandhold.vault")


class VaultError(RuntimeError):
    """The vault cannot do what it was asked for; the subclasses say why."""

    code = ErrorCode.INTERNAL
    hint: str | None = None
    retryable = False

    def failure(self, what: str) -> ToolFailure:
        """The error to raise for a caller who wanted `what`."""
        return ToolFailure(self.code, f"{what}: {self}", hint=self.hint, retryable=self.retryable)


class VaultUnavailable(VaultError):
    """The database does not answer, or not to the end. That may pass; whether a change was made is not known."""

    hint = "Try again once the vault's database can be reached."
    retryable = True


class VaultFull(VaultError):
    """The disk under the database has no room left. That may pass."""

    hint = "Try again once there is room on the disk of the vault's database."
    retryable = True


class VaultRefused(VaultError):
    """The database refuses: wrong user or password, no such database, no permission. Repeating is no use."""

    hint = "Tell the operator: SANDHOLD_DATABASE_URL has to name a database that Sandhold may read and write."


class VaultDamaged(VaultError):
    """What lies there is no vault, or is broken."""

    hint = "Tell the operator: the vault's database has to be restored from a backup."


class VaultNewer(VaultError):
    """The database was brought to a version that this build does not know."""

    hint = "Tell the operator: run the newer build, or restore the backup from before it."

    def __init__(self, version: str) -> None:
        super().__init__(f"the vault's database has version {version[:40]!r}, which is newer than this build")
        self.version = version


class AlreadyThere(VaultError):
    """Somebody else stored a row of the same key first: nothing was changed. Callers are told in their own terms."""

    code = ErrorCode.CONFLICT


class ConnectionMissing(VaultError):
    """The owner has no connection to this provider."""

    code = ErrorCode.CONNECTION_REQUIRED

    def __init__(self, owner: str, provider: str) -> None:
        super().__init__(f"{owner!r} has no connection to {provider}")
        self.owner = owner
        self.provider = provider


class ConnectionChanged(VaultError):
    """Somebody else stored or removed this connection meanwhile: nothing was changed."""

    code = ErrorCode.CONFLICT
    hint = "Look at what is stored now, and decide again."

    def __init__(self, owner: str, provider: str) -> None:
        super().__init__(f"the connection of {owner!r} to {provider} was changed by somebody else meanwhile")
        self.owner = owner
        self.provider = provider


class ValueRefused(VaultError, ValueError):
    """A name or a value that cannot be stored. The message names what is wrong with it, never the value."""

    code = ErrorCode.INVALID_ARGUMENTS


class SecretMissing(VaultError):
    """The session has no secret of this name."""

    code = ErrorCode.INVALID_ARGUMENTS

    def __init__(self, session_id: str, name: str) -> None:
        super().__init__(f"session {session_id!r} has no secret {name!r}")
        self.session_id = session_id
        self.name = name


class SecretsFull(VaultError):
    """The session has as many secrets as it may have."""

    code = ErrorCode.QUOTA_EXCEEDED

    def __init__(self, session_id: str, most: int) -> None:
        super().__init__(f"session {session_id!r} has {most} secrets, which is the most; remove one first")


class SecretsTooLarge(VaultError):
    """The session's secrets would weigh more than they may in all. Nothing was changed."""

    code = ErrorCode.QUOTA_EXCEEDED

    def __init__(self, session_id: str, *, size: int, used: int, most: int) -> None:
        left = max(0, most - used)
        super().__init__(
            f"this secret has {size} bytes, and the other secrets of session {session_id!r} have {used} of {most}: "
            f"{left} are left; remove one first"
        )
        self.used = used
        """Bytes of the session's other secrets."""
        self.left = left
        """Bytes that a secret may have."""


_UNREACHABLE = "the vault's database could not be reached"
_FULL = "the disk of the vault's database is full"
_REFUSED = "the vault's database refuses access"
_DAMAGED = "the vault's database is damaged, or is no vault"
_TAKEN = "somebody else stored the same meanwhile"
_FAILED = "the vault's database could not carry out a statement"

# By primary result code, https://www.sqlite.org/rescode.html.
_BY_SQLITE: dict[int, tuple[type[VaultError], str]] = {
    sqlite3.SQLITE_BUSY: (VaultUnavailable, _UNREACHABLE),
    sqlite3.SQLITE_LOCKED: (VaultUnavailable, _UNREACHABLE),
    sqlite3.SQLITE_IOERR: (VaultUnavailable, _UNREACHABLE),
    sqlite3.SQLITE_INTERRUPT: (VaultUnavailable, _UNREACHABLE),
    sqlite3.SQLITE_PROTOCOL: (VaultUnavailable, _UNREACHABLE),
    sqlite3.SQLITE_FULL: (VaultFull, _FULL),
    sqlite3.SQLITE_READONLY: (VaultRefused, _REFUSED),
    sqlite3.SQLITE_CANTOPEN: (VaultRefused, _REFUSED),
    sqlite3.SQLITE_PERM: (VaultRefused, _REFUSED),
    sqlite3.SQLITE_AUTH: (VaultRefused, _REFUSED),
    sqlite3.SQLITE_CONSTRAINT: (AlreadyThere, _TAKEN),
    sqlite3.SQLITE_CORRUPT: (VaultDamaged, _DAMAGED),
    sqlite3.SQLITE_NOTADB: (VaultDamaged, _DAMAGED),
    sqlite3.SQLITE_ERROR: (VaultDamaged, _DAMAGED),  # a table or a column is missing
}
# The longest beginning of the SQLSTATE counts, https://www.postgresql.org/docs/current/errcodes-appendix.html.
_BY_SQLSTATE: dict[str, tuple[type[VaultError], str]] = {
    "08": (VaultUnavailable, _UNREACHABLE),
    "40": (VaultUnavailable, _UNREACHABLE),
    "53": (VaultUnavailable, _UNREACHABLE),
    "53100": (VaultFull, _FULL),
    "55": (VaultUnavailable, _UNREACHABLE),
    "57": (VaultUnavailable, _UNREACHABLE),
    "57P04": (VaultRefused, _REFUSED),  # the database was dropped
    "58": (VaultUnavailable, _UNREACHABLE),
    "23505": (AlreadyThere, _TAKEN),
    "25006": (VaultUnavailable, "the vault's database takes no changes now"),  # a standby, or one that was promoted
    "28": (VaultRefused, _REFUSED),
    "3D": (VaultRefused, _REFUSED),
    "42501": (VaultRefused, _REFUSED),
    "42": (VaultDamaged, _DAMAGED),
    "XX": (VaultDamaged, _DAMAGED),
}
# Of the folder of a file. The way to a server fails with others.
_BY_ERRNO: dict[int, tuple[type[VaultError], str]] = {
    errno.ENOSPC: (VaultFull, _FULL),
    errno.EDQUOT: (VaultFull, _FULL),
    errno.EACCES: (VaultRefused, _REFUSED),
    errno.EPERM: (VaultRefused, _REFUSED),
    errno.EROFS: (VaultRefused, _REFUSED),
    errno.ENOTDIR: (VaultRefused, _REFUSED),
    errno.EISDIR: (VaultRefused, _REFUSED),
    errno.EEXIST: (VaultRefused, _REFUSED),
}


@contextmanager
def named_errors() -> Iterator[None]:
    """Turn the errors of a database and of the way to it into VaultErrors.

    Their causes are cut off: they would be told to whoever asks, and kept in the history of workflows.
    """
    try:
        yield
    # A request that timed out is a TimeoutError, which is an OSError as well.
    except (SQLAlchemyError, PostgresError, InterfaceError, sqlite3.Error, OSError) as error:
        raise _named(error) from None


def _named(error: Exception) -> VaultError:
    inner = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    sqlstate = getattr(inner, "sqlstate", None)
    sqlite_code = getattr(inner, "sqlite_errorcode", None)
    kind: type[VaultError] = VaultUnavailable
    text = _UNREACHABLE
    if isinstance(sqlite_code, int):
        kind, text = _BY_SQLITE.get(sqlite_code & 0xFF, (VaultError, _FAILED))
    elif isinstance(sqlstate, str):
        found = (_BY_SQLSTATE[sqlstate[:size]] for size in (5, 2) if sqlstate[:size] in _BY_SQLSTATE)
        kind, text = next(found, (VaultError, _FAILED))
    elif isinstance(inner, ClientConfigurationError):
        kind, text = VaultRefused, "SANDHOLD_DATABASE_URL cannot be used"
    elif isinstance(inner, OSError):
        kind, text = _BY_ERRNO.get(inner.errno or 0, (kind, text))
    named = kind(text)
    if kind is not AlreadyThere:
        logger.warning(
            "%s", named, extra={"error": type(inner).__name__, "sqlstate": sqlstate, "sqlite_code": sqlite_code}
        )
    return named
