"""The key rings that need no service: a file of mode 0600, or a document in the environment."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sandhold.security.errors import KeyRingMissing, KeyRingUnusable
from sandhold.security.key_document import KeyDocument
from sandhold.security.key_ring import KeyRing, WrappedKey
from sandhold.settings import Settings

LOOK_AGAIN_S = 2.0
"""How long a process may go on with the primary key that it knows after the file has named another."""


def open_key_ring(settings: Settings) -> KeyRing:
    """The ring that the settings name. Raises KeyRingMissing and KeyRingUnusable: nothing starts without a ring."""
    document = settings.key_ring_document
    if document is not None:
        return EnvironmentKeyRing(document)
    ring = FileKeyRing(settings.key_ring_file)
    ring.document()
    return ring


class EnvironmentKeyRing:
    """A ring that was handed to the process. It changes with the next start."""

    def __init__(self, text: str) -> None:
        self._document = KeyDocument.parse(text, "SANDHOLD_KEYRING")

    def document(self) -> KeyDocument:
        """All keys."""
        return self._document

    async def primary(self) -> str:
        return self._document.primary.id

    async def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
        return self._document.wrap(data_key, context)

    async def unwrap(self, key: WrappedKey, context: bytes) -> bytes:
        return self._document.unwrap(key, context)


class FileKeyRing:
    """A ring in a file that only its owner may read. A change is seen within LOOK_AGAIN_S, a new key when it is met."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._document: KeyDocument | None = None
        self._version: tuple[int, int, int] | None = None
        self._looked_at = 0.0

    def document(self) -> KeyDocument:
        """All keys, as the file has them now. Raises KeyRingMissing and KeyRingUnusable."""
        text, version = _read(self.path)
        if self._document is None or version != self._version:
            self._document, self._version = KeyDocument.parse(text, str(self.path)), version
        self._looked_at = time.monotonic()
        return self._document

    async def primary(self) -> str:
        return (await self._current()).primary.id

    async def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
        return (await self._current()).wrap(data_key, context)

    async def unwrap(self, key: WrappedKey, context: bytes) -> bytes:
        document = await self._current()
        if document.find(key.key_id) is None:
            document = await asyncio.to_thread(self.document)
        return document.unwrap(key, context)

    def create(self) -> bool:
        """Make the file with a fresh key when there is none; whether it was made. Of several at once one makes it."""
        with _locked(self.path):
            if self.path.exists():
                return False
            _write(self.path, KeyDocument.new())
            return True

    def change(self, changed: Callable[[KeyDocument], KeyDocument]) -> KeyDocument:
        """Put another document in the place of the present one, which `changed` is given. One process at a time.

        A crash leaves the old document or the new one. Raises what `changed` raises; the file is as it was then.
        """
        with _locked(self.path):
            document = changed(self.document())
            _write(self.path, document)
            return self.document()

    async def _current(self) -> KeyDocument:
        if self._document is None or time.monotonic() - self._looked_at > LOOK_AGAIN_S:
            return await asyncio.to_thread(self.document)
        return self._document


def _read(path: Path) -> tuple[str, tuple[int, int, int]]:
    try:
        with path.open() as file:
            found = os.fstat(file.fileno())
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise KeyRingUnusable(f"others may read the key ring {path}; do `chmod 600 {path}`")
            return file.read(), (found.st_ino, found.st_size, found.st_mtime_ns)
    except FileNotFoundError:
        raise KeyRingMissing(
            f"there is no key ring at {path}: set SANDHOLD_KEYRING to where the deployment's is, "
            "or make one with `sandhold keys create`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise KeyRingUnusable(f"the key ring {path} cannot be read: {reason}") from None


def _write(path: Path, document: KeyDocument) -> None:
    """As a whole or not at all, and on the disk when this returns."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(document.dump())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise KeyRingUnusable(f"the key ring {path} cannot be written: {error.strerror}") from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone, among processes of this machine."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError as error:
        raise KeyRingUnusable(f"the key ring {path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
