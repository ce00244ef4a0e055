"""What session storage raises: errors of our own with texts of our own.

What a store itself says names hosts, buckets and keys, and may quote a request with its signature. It goes to the log,
and there only the little that is known to be harmless.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)

from sandhold.contracts.errors import ErrorCode, ToolFailure

logger = logging.getLogger("sandhold.storage")


class StorageError(RuntimeError):
    """A document is missing or is not what its reference says; or what the subclasses say."""

    code = ErrorCode.INTERNAL
    hint: str | None = None
    retryable = True

    def failure(self, what: str) -> ToolFailure:
        """The error to raise for a caller who wanted `what`."""
        return ToolFailure(self.code, f"{what}: {self}", hint=self.hint, retryable=self.retryable)


class DocumentMissing(StorageError):
    """This storage holds no such document: whoever made the reference stored it elsewhere, or it was removed."""


class ObjectMissing(StorageError):
    """Nothing is stored at a path."""


class NameTaken(StorageError):
    """A name cannot be both a file and a folder."""


class ObjectChanged(StorageError):
    """Another object was stored in place of one that was being read."""

    code = ErrorCode.CONFLICT
    hint = "Read it again from its beginning."


class StorageFault(StorageError):
    """The storage itself does not do its part, whatever was asked of it."""


class StorageUnavailable(StorageFault):
    """It does not answer, or not to the end. That may pass."""

    hint = "Try again once the session storage can be reached."


class StorageFull(StorageFault):
    """The disk under a local folder has no room left. That may pass."""

    code = ErrorCode.STORAGE_FULL
    hint = "Try again once there is room on the disk of the session storage."


class StorageRefused(StorageFault):
    """It answers, and refuses: wrong or expired credentials, no permission, no such bucket. Repeating is no use."""

    retryable = False
    hint = (
        "Tell the operator: SANDHOLD_STORAGE_URL has to name a storage that the client and the workers may read and "
        "write; a bucket's credentials, region and endpoint are those of the AWS_* variables."
    )


class StorageLocked(StorageRefused):
    """The key of a session's storage is missing or altered, or is under a key that this process does not have."""

    hint = (
        "Tell the operator: the key ring has to hold the key under which the session's storage was encrypted, and "
        "session.key has to lie beside it as it was written. Without it nothing can be read, nor stored there."
    )


class KeyRingAway(StorageFault):
    """The key ring does not answer, or cannot be used now. That may pass."""

    hint = "Tell the operator: the key ring that SANDHOLD_KEYRING names cannot be used."


class StorageDamaged(StorageFault):
    """What is stored is not what was stored there: altered, cut off, moved or put together. Repeating is no use."""

    retryable = False
    hint = "Tell the operator: somebody or something has changed what the session storage holds. Store it again."

    def __init__(self, path: str, reason: str = "it was altered, cut off or moved") -> None:
        super().__init__(f"{path} in session storage is damaged: {reason}")


class StoredInTheClear(StorageDamaged):
    """What is stored is not encrypted: a version before encryption has written it."""

    hint = "Tell the operator: `sandhold storage encrypt` encrypts what a version before encryption has stored."

    def __init__(self, path: str) -> None:
        super().__init__(path, "it is not encrypted, as if it were from before encryption")


class StorageOfAnother(StorageFault):
    """What lies under a session's id was left by an earlier session of the same id."""

    code = ErrorCode.CONFLICT
    retryable = False
    hint = "Go on in a session with another id: this one can keep nothing in storage."

    def __init__(self, session_id: str) -> None:
        super().__init__(f"an earlier session was called {session_id!r}, and what it left is not this one's")


_UNREACHABLE = "session storage could not be reached"
_REFUSED = "session storage refuses access"

# Through a store a local folder tells these only in the text of a general error (obstore 0.11).
_BY_ERRNO: dict[int, type[StorageError]] = {
    errno.ENOTDIR: NameTaken,
    errno.EISDIR: NameTaken,
    errno.ENOTEMPTY: NameTaken,
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EACCES: StorageRefused,
    errno.EPERM: StorageRefused,
    errno.EROFS: StorageRefused,
}
_REFUSALS = (
    PermissionDeniedError,
    UnauthenticatedError,
    NotSupportedError,
    InvalidPathError,
    UnknownConfigurationKeyError,
)
# So does a bucket in answers to listings, and where a status has no type (obstore 0.11).
_REFUSED_STATUS = frozenset({"301", "401", "403", "501"})
_REFUSED_CODES = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "IllegalLocationConstraintException",
        "InvalidBucketName",
        "InvalidToken",
        "NoSuchBucket",
        "PermanentRedirect",
    }
)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_STATUS = re.compile(r"status code: (\d{3})\b|\bstatus: (\d{3})\b")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_KIND = re.compile(r"\bkind: ([A-Za-z]{1,30})\b")


@contextmanager
def missing_errors(path: str) -> Iterator[None]:
    """For reading: as `named_errors`, and what lies below a file is missing like anything else that is not there."""
    try:
        with named_errors(path):
            yield
    except NameTaken:
        raise ObjectMissing(f"session storage holds no {path}") from None


@contextmanager
def named_errors(path: str) -> Iterator[None]:
    """Turn the errors of a store, or of its folder, into StorageErrors.

    Their causes are cut off: they would be told to whoever asks, and kept in the history of workflows.
    """
    try:
        yield
    except (BaseError, OSError) as error:
        raise _named(error, path) from None


def _named(error: Exception, path: str) -> StorageError:
    text = str(error)
    code = _first(_CODE, text)
    number = _errno_of(error)
    # A bucket that is missing is no missing object.
    if (isinstance(error, NotFoundError) or number == errno.ENOENT) and code not in _REFUSED_CODES:
        return ObjectMissing(f"session storage holds no {path}")
    if isinstance(error, PreconditionError):
        return ObjectChanged(f"{path} was replaced while it was read")
    if isinstance(error, _REFUSALS) or _first(_STATUS, text) in _REFUSED_STATUS or code in _REFUSED_CODES:
        return _logged(StorageRefused(_REFUSED), error)
    kind = _BY_ERRNO.get(number, StorageUnavailable)
    if kind is NameTaken:
        return NameTaken(f"{path}: {os.strerror(number)}")
    if kind is StorageFull:
        return _logged(StorageFull("the disk of the session storage is full"), error)
    if kind is StorageRefused:
        return _logged(StorageRefused(f"{_REFUSED} ({os.strerror(number).lower()})"), error)
    return _logged(StorageUnavailable(_UNREACHABLE), error)


def _logged(fault: StorageFault, error: Exception) -> StorageFault:
    """Tell operators what the store said, by what can be recognized in it: never its words as they are."""
    text = str(error)
    number = _errno_of(error)
    logger.warning(
        "%s",
        fault,
        extra={
            "error": type(error).__name__,
            "status": _first(_STATUS, text),
            "code": _first(_CODE, text),
            "kind": _first(_KIND, text),
            "os_error": os.strerror(number) if number else None,
        },
    )
    return fault


def _errno_of(error: Exception) -> int:
    """0 where there is none. What obstore calls a missing object is a FileNotFoundError without a number (0.11)."""
    if isinstance(error, FileNotFoundError):
        return errno.ENOENT
    number = error.errno if isinstance(error, OSError) else None
    return number or int(_first(_OS_ERROR, str(error)) or 0)


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return None if found is None else next(group for group in found.groups() if group is not None)
