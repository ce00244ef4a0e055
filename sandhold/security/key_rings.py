"""The key rings that need no service, a file of mode 0600 or a document in the environment; and which one is used."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sandhold.security.errors import KeyRingMissing, KeyRingUnusable
from sandhold.security.key_document import KeyDocument
from sandhold.security.key_ring import KeyRing, WrappedKey
from sandhold.security.provided_ring import provided_ring
from sandhold.settings import Settings

LOOK_AGAIN_S = 2.0
"""How long a process may go on with the primary key that it knows after the file has named another."""
_LARGEST_BYTES = 1024 * 1024


def open_key_ring(settings: Settings) -> KeyRing:
    """The ring that the settings name. Raises KeyRingMissing and KeyRingUnusable: nothing starts without a ring."""
    if settings.keyring_provider is not None:
        return provided_ring(settings.keyring_provider, settings)
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
    """A ring in a file that only its owner may read. A change is seen within LOOK_AGAIN_S, a new key when it is met.

    The file may be a link to where a deployment lays its secrets down; a change then goes to where the link leads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._document: KeyDocument | None = None
        self._version: tuple[int, int, int] | None = None
        self._looked_at = 0.0
        self._looking = threading.Lock()

    def document(self) -> KeyDocument:
        """All keys, as the file has them now. Raises KeyRingMissing and KeyRingUnusable."""
        with self._looking:
            return self._look()

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
        with _locked(self.path) as file:
            if file.exists():
                return False
            _write(file, KeyDocument.new())
            return True

    def change(self, changed: Callable[[KeyDocument], KeyDocument]) -> KeyDocument:
        """Put another document in the place of the present one, which `changed` is given. One process at a time.

        A crash leaves the old document or the new one. Raises what `changed` raises; the file is as it was then.
        """
        with _locked(self.path) as file:
            document = self.document()
            new = changed(document)
            if new is not document:
                _write(file, new)
            return self.document()

    async def _current(self) -> KeyDocument:
        known = self._known()
        return known if known is not None else await asyncio.to_thread(self._known_or_read)

    def _known(self) -> KeyDocument | None:
        """The document, unless it is time to look again."""
        return self._document if time.monotonic() - self._looked_at <= LOOK_AGAIN_S else None

    def _known_or_read(self) -> KeyDocument:
        # Of many that come at once, the first one looks, for all.
        with self._looking:
            return self._known() or self._look()

    def _look(self) -> KeyDocument:
        text, version = _read(self.path)
        if self._document is None or version != self._version:
            self._document, self._version = KeyDocument.parse(text, str(self.path)), version
        self._looked_at = time.monotonic()
        return self._document


def _read(path: Path) -> tuple[str, tuple[int, int, int]]:
    try:
        # Without waiting for whoever might write into a pipe of this name.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise KeyRingUnusable(f"the key ring {path} cannot be read: it is no file")
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise KeyRingUnusable(f"others may read the key ring {path}; do `chmod 600 {path}`")
            data = file.read(_LARGEST_BYTES + 1)
        if len(data) > _LARGEST_BYTES:
            raise KeyRingUnusable(f"the key ring {path} cannot be read: it is larger than any key ring")
        return data.decode(), (found.st_ino, found.st_size, found.st_mtime_ns)
    except FileNotFoundError:
        raise KeyRingMissing(
            f"there is no key ring at {path}: set SANDHOLD_KEYRING to where the deployment's is, "
            "or make one with `sandhold keys create`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise KeyRingUnusable(f"the key ring {path} cannot be read: {reason}") from None


def _write(path: Path, document: KeyDocument) -> None:
    """As a whole or not at all, and on the disk when this returns. For whoever holds the lock."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)  # Keys that a process left which was killed while it wrote them.
        try:
            with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(document.dump())
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise KeyRingUnusable(f"the key ring {path} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Alone, among processes of this machine, with the file that `path` leads to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.resolve()
        lock = os.open(file.with_name(f"{file.name}.lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, RuntimeError) as error:  # A loop of links is a RuntimeError before Python 3.13.
        reason = error.strerror if isinstance(error, OSError) else "its links lead nowhere"
        raise KeyRingUnusable(f"the key ring {path} cannot be written: {reason}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(lock)
