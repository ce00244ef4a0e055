"""The names of a user's files in session storage: validated here, and nowhere else.

A session path is written like `notes/plan.md`. It begins at the session's own files, whether with a slash or not, and
leads nowhere else.
"""

from __future__ import annotations

import unicodedata

from sandhold.contracts.errors import ErrorCode, ToolFailure

PART_LIMIT_BYTES = 240
"""Of one part, in UTF-8: a file system takes 255, of which a store needs some for the names of unfinished objects."""
PATH_LIMIT_BYTES = 800
"""Of the whole, in UTF-8: an S3 key takes 1024, of which the deployment's prefix and the session's id need some."""


class InvalidSessionPath(ToolFailure, ValueError):
    """No file can have this name. The message says why."""

    def __init__(self, given: str, reason: str) -> None:
        super().__init__(
            ErrorCode.INVALID_ARGUMENTS,
            f"{_shown(given)} cannot be a path in session storage: {reason}",
            hint="Write it like notes/plan.md: parts between single slashes, without . and ..",
        )


def session_path(given: str) -> str:
    """The path in its one form: NFC, parts between single slashes, none before the first and behind the last.

    The same file has the same path, however it was typed. Raises InvalidSessionPath.
    """
    path = unicodedata.normalize("NFC", given).removeprefix("/")
    try:
        size = len(path.encode())
    except UnicodeEncodeError as error:
        raise InvalidSessionPath(given, "it is not valid Unicode") from error
    if not path:
        raise InvalidSessionPath(given, "it is empty")
    if size > PATH_LIMIT_BYTES:
        raise InvalidSessionPath(given, f"it is {size} bytes long, at most {PATH_LIMIT_BYTES} are possible")
    for part in path.split("/"):
        if not part:
            raise InvalidSessionPath(given, "it has an empty part")
        if part in {".", ".."}:
            raise InvalidSessionPath(given, f"it has a part {part!r}")
        if len(part.encode()) > PART_LIMIT_BYTES:
            raise InvalidSessionPath(given, f"a part is longer than {PART_LIMIT_BYTES} bytes")
    if any(_is_forbidden(character) for character in path):
        raise InvalidSessionPath(given, "it has a control character")
    return path


def session_folder(given: str) -> str:
    """A folder's path in its one form; empty for all of the session's files. Raises InvalidSessionPath."""
    return "" if given in {"", "/"} else session_path(given.removesuffix("/"))


def _is_forbidden(character: str) -> bool:
    """Control characters, separators of lines and paragraphs, and code points that are no characters: a listing of S3
    is XML, which cannot carry them."""
    code = ord(character)
    is_no_character = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return is_no_character or unicodedata.category(character) in {"Cc", "Zl", "Zp"}


def _shown(given: str) -> str:
    return ascii(given if len(given) <= 200 else given[:200] + "...")
