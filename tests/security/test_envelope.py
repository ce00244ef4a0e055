"""Values open where they belong, as they were sealed, and not otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandhold.security import Envelope, NotEncrypted, Place, SecurityError, Tampered
from sandhold.security.key_document import KeyDocument
from sandhold.security.key_rings import EnvironmentKeyRing

PLACE = Place("connection", "alice", "17", "api_key")


def ring() -> EnvironmentKeyRing:
    return EnvironmentKeyRing(KeyDocument.new().dump())


@given(value=st.binary(max_size=3000))
async def test_what_was_sealed_opens_at_its_place(value: bytes) -> None:
    envelope = Envelope(ring())
    sealed = await envelope.seal(value, PLACE)
    assert await envelope.open(sealed, PLACE) == value
    assert len(value) < 8 or value not in sealed


async def test_each_byte_that_is_flipped_keeps_a_value_from_opening() -> None:
    envelope = Envelope(ring())
    sealed = await envelope.seal(b"the secret", PLACE)
    for at in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[at] ^= 1
        with pytest.raises(SecurityError):
            await envelope.open(bytes(flipped), PLACE)


async def test_a_value_that_is_cut_anywhere_does_not_open() -> None:
    envelope = Envelope(ring())
    sealed = await envelope.seal(b"the secret", PLACE)
    for end in range(len(sealed)):
        with pytest.raises(SecurityError):
            await envelope.open(sealed[:end], PLACE)
    with pytest.raises(Tampered):
        await envelope.open(sealed + b"x", PLACE)


@pytest.mark.parametrize(
    "other",
    [
        Place("secret", "alice", "17", "api_key"),
        Place("connection", "mallory", "17", "api_key"),
        Place("connection", "alice", "18", "api_key"),
        Place("connection", "alice", "17", "note"),
        Place("connection", "alice1", "7", "api_key"),
    ],
)
async def test_a_value_that_was_moved_does_not_open(other: Place) -> None:
    envelope = Envelope(ring())
    with pytest.raises(Tampered):
        await envelope.open(await envelope.seal(b"the secret", PLACE), other)


async def test_text_in_the_clear_is_no_value() -> None:
    with pytest.raises(NotEncrypted):
        await Envelope(ring()).open(b"the secret", PLACE)
