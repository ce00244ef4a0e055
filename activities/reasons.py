"""What programs in a sandbox say of a failure, and what it means for whoever asked for the file."""

from __future__ import annotations

from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.excerpts import end_of

# In the C locale.
_REASONS: tuple[tuple[str, ErrorCode, str | None], ...] = (
    ("permission denied", ErrorCode.PERMISSION_DENIED, None),
    ("operation not permitted", ErrorCode.PERMISSION_DENIED, None),
    ("read-only file system", ErrorCode.PERMISSION_DENIED, "Write below the workspace."),
    ("no space left", ErrorCode.STORAGE_FULL, "Delete what is not needed, or use a larger sandbox."),
    ("quota exceeded", ErrorCode.STORAGE_FULL, "Delete what is not needed, or use a larger sandbox."),
    ("file too large", ErrorCode.STORAGE_FULL, None),
    ("not a directory", ErrorCode.INVALID_ARGUMENTS, "A part of the path is a file."),
    ("file exists", ErrorCode.INVALID_ARGUMENTS, "A part of the path is a file."),
    ("is a directory", ErrorCode.INVALID_ARGUMENTS, "Name the file in it."),
    ("not a regular file", ErrorCode.INVALID_ARGUMENTS, "It is a device, pipe or socket."),
    ("name too long", ErrorCode.INVALID_ARGUMENTS, None),
    ("no such file", ErrorCode.PATH_NOT_FOUND, None),
    ("too many levels of symbolic links", ErrorCode.PATH_NOT_FOUND, None),
    ("text file busy", ErrorCode.CONFLICT, "The file is a program that runs."),
)


def failure_for(path: str, said: str) -> ToolFailure:
    """The failure for a path about which a program said this; `internal` when that means nothing to us."""
    said = " ".join(said.split())
    for text, code, hint in _REASONS:
        if text in said.lower():
            return ToolFailure(code, f"{path}: {text}", hint=hint)
    return ToolFailure(ErrorCode.INTERNAL, f"{path}: {end_of(said, 200)}")
