"""How the commands reach the vault, and how a secret comes in: never by the command line, which anybody may read."""

from __future__ import annotations

import getpass
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import typer
from pydantic import SecretStr

from sandhold.settings import Settings, SettingsError

if TYPE_CHECKING:
    from sandhold.vault import Vault

SECRET_BYTES = 64 * 1024
_MOST_BYTES = SECRET_BYTES + 2
"""The longest secret, its newline, and one byte by which a longer one is told."""


@asynccontextmanager
async def opened_vault(settings: Settings) -> AsyncIterator[Vault]:
    """The vault of the deployment. Raises SettingsError, VaultError, KeyRingMissing and KeyRingUnusable."""
    from sandhold.security import open_key_ring

    try:
        from sandhold.vault import open_vault
    except ModuleNotFoundError as error:
        raise SettingsError(f"the vault needs the package {error.name}: install sandhold[server]") from error
    vault = await open_vault(settings, open_key_ring(settings))
    try:
        yield vault
    finally:
        await vault.close()


def secret_input(sources: list[str] | None, what: str) -> SecretStr:
    """The secret: asked for without an echo at a terminal; from stdin with `-`, or where stdin is none.

    From stdin it is text in UTF-8, taken as it is but for one newline at its end. `sources` is what stood on the
    command line for it: anything but `-` is refused, and not repeated. Raises BadParameter.
    """
    if sources not in (None, [], ["-"]):
        raise typer.BadParameter(f"{what} is not taken from the command line: leave it out, or give - and use stdin")
    if not sources and sys.stdin.isatty():
        return SecretStr(_asked_for(what))
    data = sys.stdin.buffer.read(_MOST_BYTES)
    if len(data) == _MOST_BYTES:
        raise typer.BadParameter(f"{what} is longer than {SECRET_BYTES} bytes")
    try:
        text = data.removesuffix(b"\n").decode()
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{what} is no text in UTF-8") from None
    if not text:
        raise typer.BadParameter(f"{what} is empty: stdin held nothing")
    return SecretStr(text)


def _asked_for(what: str) -> str:
    try:
        text = getpass.getpass(f"{what}: ")
    except EOFError:
        text = ""
    if not text:
        raise typer.BadParameter(f"{what} is empty")
    return text
