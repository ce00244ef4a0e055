"""Reading goes on for as long as the reader takes, and ends in the bytes of one object or in an error."""

from __future__ import annotations

import asyncio
import hashlib
import random
from datetime import timedelta

import pytest

from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.storage import Quota, SessionStorage, location
from tests.cable import Cable
from tests.storage.conftest import SESSION, Place

MIB = 1024 * 1024
SIZE = 48 * MIB
MANY = Quota(2**40, 2**40)


@pytest.fixture
def impatient(place: Place, monkeypatch: pytest.MonkeyPatch) -> SessionStorage:
    """A storage whose requests may last as short as these tests must: 2 s, with what the client does against it."""
    monkeypatch.setitem(location._CLIENT, "timeout", "1s")
    monkeypatch.setitem(location._RETRIES, "retry_timeout", timedelta(seconds=1))
    return place.open()


async def written(storage: SessionStorage, seed: int = 1) -> str:
    data = random.Random(seed).randbytes(SIZE)
    await storage.files(SESSION).write("large", data, MANY)
    return hashlib.sha256(data).hexdigest()


async def test_a_slow_reader_gets_everything(place: Place, impatient: SessionStorage) -> None:
    digest = await written(place.open())
    came = hashlib.sha256()
    async for piece in impatient.files(SESSION).read("large"):
        came.update(piece)
        await asyncio.sleep(0.12)
    assert came.hexdigest() == digest


async def test_a_slow_reader_of_a_window_gets_all_of_it(place: Place, impatient: SessionStorage) -> None:
    data = random.Random(3).randbytes(SIZE)
    await place.open().files(SESSION).write("large", data, MANY)
    came = bytearray()
    async for piece in impatient.files(SESSION).read("large", 5, SIZE - 7):
        came += piece
        await asyncio.sleep(0.12)
    assert came == data[5 : SIZE - 7]


async def test_a_connection_that_breaks_costs_nothing_of_what_is_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place.server is None:
        pytest.skip("a folder has no connections")
    digest = await written(place.open())
    cable = Cable(place.server.endpoint.removeprefix("http://"))
    await cable.plug()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{cable.address}")
    monkeypatch.setitem(location._RETRIES, "max_retries", 0)
    came, pieces = hashlib.sha256(), 0
    async for piece in place.open().files(SESSION).read("large"):
        came.update(piece)
        pieces += 1
        if pieces in {2, 5, 9, 13}:
            await cable.cut()
            await cable.plug()
    assert came.hexdigest() == digest
    await cable.cut()
    with pytest.raises(ToolFailure) as failure:
        _ = [piece async for piece in place.open().files(SESSION).read("large")]
    assert (failure.value.error.code, failure.value.error.retryable) == (ErrorCode.INTERNAL, True)


async def test_two_objects_are_never_read_as_one(place: Place, impatient: SessionStorage) -> None:
    old, new = await written(place.open()), ""
    came = hashlib.sha256()
    try:
        async for piece in impatient.files(SESSION).read("large"):
            came.update(piece)
            new = new or await written(place.open(), seed=2)
            await asyncio.sleep(0.12)
    except ToolFailure as failure:
        assert (failure.error.code, failure.error.retryable) == (ErrorCode.CONFLICT, True)  # noqa: PT017
    else:
        assert came.hexdigest() == old
