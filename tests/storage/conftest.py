"""Every test of session storage runs on a local folder and on an S3-compatible server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandhold.security import KeyRing
from sandhold.storage import FileStore, SessionStorage
from sandhold.storage.raw import RawObjects
from tests.s3_server import S3Server
from tests.stack import RING

SESSION = "s-1"


@dataclass(frozen=True)
class Place:
    """Where a test's storage is, and what lies there unseen."""

    url: str
    server: S3Server | None = None

    @property
    def bucket(self) -> str:
        return self.url.removeprefix("s3://").partition("/")[0]

    def folder(self) -> Path:
        return Path(self.url.removeprefix("file://"))

    def unfinished(self) -> int:
        """How many writes have left something behind that no listing shows."""
        if self.server is not None:
            return self.server.unfinished_uploads(self.bucket)
        return sum(1 for path in self.folder().rglob("*#*") if path.is_file())

    def open(self, ring: KeyRing = RING) -> SessionStorage:
        """The storage as another process would see it."""
        return SessionStorage.open(self.url, ring)

    async def stored(self, path: str, session_id: str = SESSION) -> bytes:
        """What the store holds of an object."""
        return bytes(await RawObjects.open(self.url).get(f"sessions/{session_id}/{path}", path))

    async def store(self, path: str, data: bytes, session_id: str = SESSION) -> None:
        """Have the store hold this, as whoever owns the disk or the bucket can."""
        await RawObjects.open(self.url).put(f"sessions/{session_id}/{path}", path, data)

    async def take_away(self, path: str, session_id: str = SESSION) -> None:
        await RawObjects.open(self.url).delete([f"sessions/{session_id}/{path}"])

    async def keys(self) -> list[str]:
        """The names of all that lies in the store."""
        return [each.path async for page in RawObjects.open(self.url).list("sessions") for each in page]


@pytest.fixture(params=["folder", "s3"], scope="module")
def storage_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(request: pytest.FixtureRequest, storage_kind: str, storage_url: str) -> Place:
    return Place(storage_url, None if storage_kind == "folder" else request.getfixturevalue("s3_server"))


@pytest.fixture
def storage(place: Place) -> SessionStorage:
    return place.open()


@pytest.fixture
def files(storage: SessionStorage) -> FileStore:
    return storage.files(SESSION)


async def stream(*pieces: bytes, fails: BaseException | None = None) -> AsyncIterator[bytes]:
    """The pieces one by one; then perhaps an error."""
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)
    if fails is not None:
        raise fails
