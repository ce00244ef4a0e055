"""What session storage raises, beside the object store's own errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import BaseError as ObjectStoreError


class StorageError(RuntimeError):
    """A document is missing or is not what its reference says."""


class DocumentMissing(StorageError):
    """This storage holds no such document: whoever made the reference stored it elsewhere, or it was removed."""


class ObjectMissing(StorageError):
    """Nothing is stored at a path."""


class NameTaken(StorageError):
    """A name cannot be both a file and a folder."""


class StorageFull(StorageError):
    """The disk under a local folder has no room left."""


# A local folder tells these only in the text of a general error (obstore 0.11).
_BY_ERRNO = {
    errno.ENOTDIR: NameTaken,
    errno.EISDIR: NameTaken,
    errno.ENOTEMPTY: NameTaken,
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
}


@contextmanager
def missing_errors(path: str) -> Iterator[None]:
    """For reading: as `named_errors`, and what lies below a file is missing like anything else that is not there."""
    try:
        with named_errors(path):
            yield
    except NameTaken as error:
        raise ObjectMissing(f"session storage holds no {path}") from error


@contextmanager
def named_errors(path: str) -> Iterator[None]:
    """Give the errors of a store that mean something to a caller a type of their own; others pass as they are."""
    try:
        yield
    except FileNotFoundError as error:  # obstore's NotFoundError is one, too.
        raise ObjectMissing(f"session storage holds no {path}") from error
    except ObjectStoreError as error:
        for number, kind in _BY_ERRNO.items():
            if f"(os error {number})" in str(error):
                raise kind(f"{path}: {os.strerror(number)}") from error
        raise
