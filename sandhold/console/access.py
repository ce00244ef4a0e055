"""The console's token: whoever has it may read every payload."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from sandhold.settings import Settings, SettingsError

TOKEN_FILE = "console-token"  # noqa: S105 - its name, not what is in it
MIN_TOKEN_CHARS = 32
"""Of a token that somebody chose: it is all that stands before the payloads."""


class TokenUnusable(SettingsError):
    """The console's token is too short, readable by others, or cannot be kept."""


def console_token(settings: Settings) -> str:
    """The token that the settings hold, else that of the file in the data folder, which the first call makes.

    Raises TokenUnusable.
    """
    if settings.console_token is not None:
        return _checked(settings.console_token.get_secret_value(), "SANDHOLD_CONSOLE_TOKEN")
    path = token_file(settings)
    try:
        if not path.exists():
            _lay(path, secrets.token_urlsafe(32))
        with path.open() as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise TokenUnusable(f"others may read the console's token {path}; do `chmod 600 {path}`")
            return _checked(file.read().strip(), str(path))
    except OSError as error:
        raise TokenUnusable(f"the console's token {path} cannot be kept: {error.strerror}") from error


def token_file(settings: Settings) -> Path:
    """Where the token is kept that nobody chose."""
    return settings.data_dir.absolute() / TOKEN_FILE


def same_token(given: str, token: str) -> bool:
    """Whether they are the same; how long that takes to tell says nothing about where they differ."""
    return hmac.compare_digest(given.encode(errors="surrogatepass"), token.encode())


def _lay(path: Path, token: str) -> None:
    """Make the file, whole from its first moment. Of several that do so at once the first one's stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token + "\n")
    try:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(unfinished)
    finally:
        unfinished.unlink()


def _checked(token: str, where: str) -> str:
    if len(token) < MIN_TOKEN_CHARS or not token.isascii() or not all(c.isalnum() or c in "-_" for c in token):
        raise TokenUnusable(f"the console's token in {where} must be {MIN_TOKEN_CHARS} or more letters, digits, - or _")
    return token
