"""What versions before encryption have stored is brought over in place, once, whole, and by whoever goes on."""

from __future__ import annotations

import random

import pytest

from sandhold.security.key_document import KeyDocument
from sandhold.security.key_rings import EnvironmentKeyRing
from sandhold.storage import SessionStorage
from sandhold.storage.encrypting import Encrypted, Encryption
from sandhold.storage.errors import StorageDamaged, StorageLocked
from sandhold.storage.sealing import Seal
from sandhold.storage.session_keys import SESSION_KEY
from tests.stack import RING
from tests.storage.conftest import SESSION, Place

MIB = 1024 * 1024
CONTENT = {
    "calls/c/result.json": b'"x"',
    "ended.json": b"{}",
    "files/a": b"1",
    "files/empty": b"",
    "files/large": random.Random(1).randbytes(12 * MIB + 7),
    **{f"files/many/{number:02}": bytes([number]) for number in range(40)},
}


async def filled(place: Place) -> None:
    for path, data in CONTENT.items():
        await place.store(path, data)


async def encrypted(place: Place, *, dry_run: bool = False) -> list[Encrypted]:
    return [each async for each in Encryption(place.url, RING).encrypt(SESSION, dry_run=dry_run)]


async def content(storage: SessionStorage) -> dict[str, bytes | None]:
    listed = [each async for each in storage.objects.list(SESSION)]
    found = {each.path: await storage.get_bytes(SESSION, each.path) for each in listed}
    assert [each.size for each in listed] == [len(data or b"") for data in found.values()]
    return found


async def test_everything_is_encrypted_in_place_once(place: Place) -> None:
    await filled(place)
    assert await Encryption(place.url, RING).sessions() == [SESSION]
    told = await encrypted(place, dry_run=True)
    assert {each.path: each.size for each in told} == {path: len(data) for path, data in CONTENT.items()}
    assert f"sessions/{SESSION}/{SESSION_KEY}" not in await place.keys()
    assert await place.stored("files/a") == b"1"
    done = await encrypted(place)
    assert not [each for each in done if each.was_encrypted or each.error]
    assert {each.path for each in done} == set(CONTENT)
    assert await content(place.open()) == CONTENT
    stored = await place.stored("files/large")
    assert all(each.was_encrypted for each in await encrypted(place))
    assert await place.stored("files/large") == stored
    assert place.unfinished() == 0
    await place.open().put_bytes(SESSION, "files/b", b"2")


async def test_whoever_goes_on_encrypts_what_is_left(place: Place) -> None:
    await filled(place)
    encrypting = Encryption(place.url, RING).encrypt(SESSION, dry_run=False)
    await anext(encrypting)
    await encrypting.aclose()
    done = await encrypted(place)
    assert {each.was_encrypted for each in done} == {False, True}
    assert await content(place.open()) == CONTENT


async def test_what_cannot_be_encrypted_is_told_and_stays(place: Place) -> None:
    await filled(place)
    await encrypted(place)
    key, sound = await place.stored(SESSION_KEY), await place.stored("files/a")
    await place.store("files/a", sound[:10] + b"?" + sound[11:])
    [damaged] = [each for each in await encrypted(place) if each.error]
    assert damaged.path == "files/a"
    assert isinstance(damaged.error, StorageDamaged)
    # No other key is laid beside what was encrypted under one that is gone.
    await place.store("files/plain", b"1")
    await place.take_away(SESSION_KEY)
    failed = await encrypted(place)
    assert len(failed) == len(CONTENT) + 1
    assert {type(each.error) for each in failed} == {StorageLocked}
    assert await place.stored("files/plain") == b"1"
    await place.store(SESSION_KEY, key)
    other = Encryption(place.url, EnvironmentKeyRing(KeyDocument.new().dump()))
    failed = [each async for each in other.encrypt(SESSION, dry_run=False)]
    assert {type(each.error) for each in failed} == {StorageLocked}
    assert await place.stored("files/plain") == b"1"


async def test_an_interrupted_object_stays_as_it_was(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    large = CONTENT["files/large"]
    await place.store("files/large", large)
    whole = Seal.sealed

    def interrupted(seal: Seal, data: bytes, first: int = 0, *, is_end: bool = True) -> bytearray:
        if first:
            raise KeyError("interrupted")
        return whole(seal, data, first, is_end=is_end)

    with monkeypatch.context() as patch:
        patch.setattr(Seal, "sealed", interrupted)
        with pytest.raises(KeyError, match="interrupted"):
            await encrypted(place)
    assert await place.stored("files/large") == large
    assert place.unfinished() == 0
    await encrypted(place)
    assert await place.open().get_bytes(SESSION, "files/large") == large
