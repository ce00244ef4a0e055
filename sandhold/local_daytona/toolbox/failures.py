"""What an operation in the sandbox answers when it fails, in the provider's own codes."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False  # importing typing would cost every sandbox 4 ms and 1 MB
if TYPE_CHECKING:
    from typing import Any

_NOT_FOUND = {errno.ENOENT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BAD_PATH = {errno.EINVAL, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EILSEQ}
_CONFLICT = {errno.EEXIST, errno.ENOTEMPTY, errno.ETXTBSY}


class Failure(Exception):
    """An operation that could not be done. `code` is one of the provider's daemon error codes."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    def to_wire(self) -> dict[str, Any]:
        return {"error": {"status": self.status, "code": self.code, "message": self.message}}


def bad_request(message: str) -> Failure:
    return Failure(400, "BAD_REQUEST", message)


def invalid_path(message: str) -> Failure:
    return Failure(400, "INVALID_FILE_PATH", message)


def from_os_error(error: OSError, path: str | None = None) -> Failure:
    """The provider's answer for an error of the operating system; `path` where the error names none."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    name = error.filename if isinstance(error.filename, str) else path
    message = f"{name}: {reason}" if name else reason
    if error.errno in _NOT_FOUND:
        return Failure(404, "FILE_NOT_FOUND", message)
    if error.errno in _DENIED:
        return Failure(403, "FILE_ACCESS_DENIED", message)
    if error.errno in _BAD_PATH:
        return invalid_path(message)
    if error.errno in _CONFLICT:
        return Failure(409, "CONFLICT", message)
    return Failure(500, "INTERNAL_SERVER_ERROR", message)
