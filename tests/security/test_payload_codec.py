"""Payloads on their way through Temporal: closed to everybody without the key, and nothing but what they were."""

from __future__ import annotations

import asyncio
import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.common.v1 import Payload
from temporalio.converter import ActivitySerializationContext, WorkflowSerializationContext
from temporalio.exceptions import ApplicationError

from sandhold.contracts.names import QUERY_TOO_EARLY
from sandhold.security import (
    FormatUnknown,
    KeyRingUnusable,
    KeyUnknown,
    NotEncrypted,
    SecurityError,
    Tampered,
    WrappedKey,
)
from sandhold.security import codec as codec_module
from sandhold.security.codec import ENCODING, KEY_ID, Bound, EncryptingCodec
from sandhold.security.data_keys import LOOK_AGAIN_S, DataKeys
from sandhold.security.key_document import KeyDocument, RingKey
from sandhold.security.key_rings import EnvironmentKeyRing
from sandhold.temporal import PLAIN_CONVERTER, data_converter

DOCUMENT = KeyDocument.new()
HERE = Bound("default", "session/one")


class CountingRing:
    """A ring in memory whose keys can be changed, and which counts what it is asked for."""

    def __init__(self, document: KeyDocument = DOCUMENT) -> None:
        self.document = document
        self.wrapped = self.unwrapped = 0

    async def primary(self) -> str:
        return self.document.primary.id

    async def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
        self.wrapped += 1
        await asyncio.sleep(0)
        return self.document.wrap(data_key, context)

    async def unwrap(self, key: WrappedKey, context: bytes) -> bytes:
        self.unwrapped += 1
        await asyncio.sleep(0)
        return self.document.unwrap(key, context)

    def rotate(self, old: str = "decrypt_only") -> None:
        """Another key becomes the primary one."""
        keys = [RingKey.model_validate({**key.model_dump(), "state": old} | _gone(old)) for key in self.document.keys]
        self.document = KeyDocument(keys=[*keys, RingKey.new("primary")])


def _gone(state: str) -> dict[str, None]:
    return {"material": None} if state == "removed" else {}


def _codec(bound: Bound = HERE) -> EncryptingCodec:
    return EncryptingCodec.under(CountingRing()).bound_to(bound)


async def _encoded(data: bytes, codec: EncryptingCodec | None = None) -> Payload:
    [encoded] = await (codec or _codec()).encode([Payload(metadata={"encoding": b"json/plain"}, data=data)])
    return encoded


@given(data=st.binary(max_size=3000), metadata=st.dictionaries(st.text(max_size=10), st.binary(max_size=20)))
def test_a_payload_comes_back_as_it_was(data: bytes, metadata: dict[str, bytes]) -> None:
    async def both_ways() -> list[Payload]:
        return await _codec().decode(await _codec().encode([payload, payload]))

    payload = Payload(metadata=metadata, data=data)
    if metadata.get("encoding") != ENCODING:
        assert asyncio.run(both_ways()) == [payload, payload]


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 200_000, 3_000_000])
async def test_every_size_comes_back_and_nothing_of_it_can_be_seen(size: int) -> None:
    data = (b"canary " * (size // 7 + 1))[:size]
    encoded = await _encoded(data)
    [decoded] = await _codec().decode([encoded])
    assert decoded.data == data
    assert b"canary" not in encoded.SerializeToString()
    assert b"json" not in encoded.SerializeToString()


async def test_what_compresses_is_compressed_and_what_does_not_is_left_alone() -> None:
    text, noise = b"the same again, " * 1000, os.urandom(16_000)
    assert len((await _encoded(text)).data) < 1000
    assert len(noise) < len((await _encoded(noise)).data) < len(noise) + 300
    assert len((await _encoded(b"x" * 900)).data) > 900, "below 1 KiB it is not worth the time"


async def test_the_key_is_named_for_operators() -> None:
    encoded = await _encoded(b"x")
    assert encoded.metadata["encoding"] == ENCODING
    assert encoded.metadata[KEY_ID] == DOCUMENT.primary.id.encode()


@pytest.mark.parametrize(
    "plain",
    [
        Payload(metadata={"encoding": b"json/plain"}, data=b'"from before"'),
        Payload(metadata={"encoding": b"binary/null"}),
        Payload(),
    ],
)
async def test_what_is_not_encrypted_is_refused_unless_the_settings_say_that_histories_are_from_before(
    plain: Payload,
) -> None:
    encoded = await _encoded(b"x")
    with pytest.raises(NotEncrypted, match="SANDHOLD_READ_PLAIN_HISTORIES"):
        await _codec().decode([encoded, plain])
    both = EncryptingCodec.under(CountingRing(), plain_too=True).bound_to(HERE)
    assert await both.decode([plain, encoded]) == [plain, Payload(metadata={"encoding": b"json/plain"}, data=b"x")]
    with pytest.raises(Tampered):
        await both.decode([Payload(metadata={"encoding": ENCODING, KEY_ID: b"other"}, data=encoded.data)])


async def test_every_flipped_byte_and_every_cut_is_refused() -> None:
    encoded = await _encoded(b"a secret")
    codec = _codec()
    altered = [
        encoded.data[:at] + bytes([encoded.data[at] ^ bit]) + encoded.data[at + 1 :]
        for at in range(len(encoded.data))
        for bit in (1, 0x80)
    ]
    altered += [encoded.data[:end] for end in range(len(encoded.data))]
    altered += [encoded.data + b"x", encoded.data * 2]
    for data in altered:
        with pytest.raises(SecurityError):
            await codec.decode([Payload(metadata=encoded.metadata, data=data)])
    for key_id in (b"", b"key-other", None):
        metadata = {"encoding": ENCODING} | ({} if key_id is None else {KEY_ID: key_id})
        with pytest.raises(Tampered):
            await codec.decode([Payload(metadata=metadata, data=encoded.data)])
    with pytest.raises(FormatUnknown):
        await codec.decode([Payload(metadata=encoded.metadata, data=b"SHP\x02" + encoded.data[4:])])


@pytest.mark.parametrize(
    ("encoded_for", "read_as"),
    [
        (HERE, Bound("default", "session/two")),
        (HERE, Bound("other", "session/one")),
        (HERE, Bound("default", "session/one-2026")),
        (HERE, Bound("default", "session/one-2026-11-23T10:00:00Z-x")),
        (Bound("default", "x-2026-11-23T10:00:00Z"), Bound("default", "x")),
        (Bound("default", "x-2026-11-23T10:00:00Z"), Bound("default", "y-2026-11-23T11:00:00Z")),
        (HERE, Bound("default", "sandbox/one")),
        (HERE, Bound("default", "sandbox/one-more/box")),
        (Bound("default", "sandbox/one/box"), HERE),
        (Bound("default", "sandbox/one/box"), Bound("default", "sandbox/one/other")),
    ],
)
async def test_a_payload_does_not_open_for_another_workflow_or_namespace(encoded_for: Bound, read_as: Bound) -> None:
    encoded = await _encoded(b"x", _codec(encoded_for))
    with pytest.raises(Tampered):
        await _codec(read_as).decode([encoded])


@pytest.mark.parametrize(
    ("encoded_for", "read_as"),
    [
        (HERE, Bound()),
        (HERE, Bound("default")),
        (Bound("default"), HERE),
        (Bound(), HERE),
        (HERE, Bound("default", "session/one-2026-11-23T10:00:00Z")),
        (Bound("default", "x-2026-11-23T10:00:00Z"), Bound("default", "x-2026-11-23T11:00:00Z")),
        (HERE, Bound("default", "sandbox/one/box")),
    ],
)
async def test_it_opens_where_nobody_knows_the_workflow_for_a_schedules_run_and_in_the_sessions_sandbox(
    encoded_for: Bound, read_as: Bound
) -> None:
    encoded = await _encoded(b"x", _codec(encoded_for))
    assert (await _codec(read_as).decode([encoded]))[0].data == b"x"


async def test_the_sdks_contexts_name_the_workflow() -> None:
    workflow = WorkflowSerializationContext(namespace="default", workflow_id="session/one")
    activity = ActivitySerializationContext(
        namespace="default",
        activity_id="1",
        activity_type="a",
        activity_task_queue="q",
        workflow_id="session/one",
        workflow_type="w",
        is_local=False,
    )
    assert Bound.of(workflow) == Bound.of(activity) == HERE
    converter = data_converter(CountingRing())
    encoded = await converter.with_context(activity).encode(["x"])
    assert await converter.with_context(workflow).decode(encoded) == ["x"]
    elsewhere = WorkflowSerializationContext(namespace="default", workflow_id="session/two")
    with pytest.raises(Tampered):
        await converter.with_context(elsewhere).decode(encoded)


async def test_nobody_reads_what_is_left_of_a_payload_that_lies_about_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is known is no licence to fill the memory: what is expanded is bounded before it is."""
    small = Payload(data=b"x" * 2000).SerializeToString()
    bomb = zlib.compress(bytes(codec_module.MAX_PAYLOAD_BYTES * 4))
    for size, body in ((2000, bomb), (codec_module.MAX_PAYLOAD_BYTES + 1, bomb), (1, zlib.compress(small))):
        packed = size.to_bytes(5, "big")
        packed = b"\x01" + packed[1:] + HERE.encode() + body
        monkeypatch.setattr(codec_module, "_packed", lambda plain, bound, packed=packed: packed)
        encoded = await _encoded(b"")
        with pytest.raises(Tampered):
            await _codec().decode([encoded])


async def test_a_data_key_is_used_so_often_and_for_so_long() -> None:
    now = 0.0
    ring = CountingRing()
    codec = EncryptingCodec(DataKeys(ring, b"test", uses=10, life_s=60.0, clock=lambda: now))
    await asyncio.gather(*(_encoded(b"x", codec) for _ in range(30)))
    assert ring.wrapped == 3
    now = 59.0
    await _encoded(b"x", codec)
    assert ring.wrapped == 4, "the third was used up"
    now = 118.0
    await _encoded(b"x", codec)
    assert ring.wrapped == 4
    now = 119.0
    await _encoded(b"x", codec)
    assert ring.wrapped == 5


async def test_a_rotation_is_followed_and_old_keys_go_on_opening() -> None:
    now = 0.0
    ring = CountingRing()
    codec = EncryptingCodec(DataKeys(ring, b"test", clock=lambda: now))
    old = await _encoded(b"old", codec)
    ring.rotate()
    now = LOOK_AGAIN_S
    new = await _encoded(b"new", codec)
    assert new.metadata[KEY_ID] != old.metadata[KEY_ID]
    fresh = EncryptingCodec(DataKeys(ring, b"test"))
    assert [payload.data for payload in await fresh.decode([old, new])] == [b"old", b"new"]


async def test_a_key_that_is_removed_or_unknown_is_named() -> None:
    ring = CountingRing()
    old = await _encoded(b"old", EncryptingCodec.under(ring))
    ring.rotate(old="removed")
    with pytest.raises(KeyUnknown, match=f"{DOCUMENT.primary.id}.*removed"):
        await EncryptingCodec.under(ring).decode([old])
    with pytest.raises(KeyUnknown, match="not in the key ring"):
        await EncryptingCodec.under(CountingRing(KeyDocument.new())).decode([old])


async def test_the_ring_is_asked_once_for_a_key_and_the_memory_of_keys_is_bounded() -> None:
    ring = CountingRing()
    payloads = [await _encoded(b"x", EncryptingCodec(DataKeys(ring, b"test"))) for _ in range(3)]
    keys = DataKeys(ring, b"test", kept=2)
    reading = EncryptingCodec(keys)
    await asyncio.gather(*(reading.decode([payloads[0]]) for _ in range(20)))
    assert ring.unwrapped == 1
    await reading.decode(payloads)
    await reading.decode(payloads[1:])
    assert ring.unwrapped == 3
    await reading.decode(payloads[:1])
    assert ring.unwrapped == 4
    assert len(keys._known) == 2


async def test_a_data_key_for_another_purpose_does_not_open_payloads() -> None:
    encoded = await _encoded(b"x", EncryptingCodec(DataKeys(CountingRing(), b"something else")))
    with pytest.raises(Tampered):
        await _codec().decode([encoded])


async def test_a_ring_that_fails_leaves_nothing_unencrypted() -> None:
    class Broken(CountingRing):
        async def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
            raise KeyRingUnusable("broken")

    with pytest.raises(KeyRingUnusable):
        await data_converter(Broken()).encode(["x"])


async def test_messages_and_stack_traces_of_failures_are_encrypted_and_types_are_not() -> None:
    converter = data_converter(EnvironmentKeyRing(DOCUMENT.dump()))
    from temporalio.api.failure.v1 import Failure

    async def through(error: BaseException) -> tuple[Failure, BaseException]:
        failure = Failure()
        await converter.encode_failure(error, failure)
        stored = Failure.FromString(failure.SerializeToString())
        return stored, await converter.decode_failure(failure)

    try:
        try:
            raise ValueError("the canary is the cause")
        except ValueError as error:
            raise ApplicationError("the canary", "canary detail", type="Told") from error
    except ApplicationError as error:
        stored, back = await through(error)
    assert b"canary" not in stored.SerializeToString()
    assert __file__.encode() not in stored.SerializeToString()
    assert (stored.application_failure_info.type, stored.cause.application_failure_info.type) == ("Told", "ValueError")
    assert isinstance(back, ApplicationError)
    assert (back.message, back.details, str(back.__cause__)) == (
        "the canary",
        ("canary detail",),
        "ValueError: the canary is the cause",
    )
    # What clients compare is left in the clear, and nothing that only begins so.
    stored, _ = await through(ApplicationError(QUERY_TOO_EARLY))
    assert stored.message == QUERY_TOO_EARLY
    stored, _ = await through(ApplicationError(QUERY_TOO_EARLY + ", canary"))
    assert stored.message == "Encoded failure"


async def test_the_plain_converter_cannot_read_what_is_encrypted() -> None:
    encoded = await data_converter(CountingRing()).encode(["x"])
    with pytest.raises(KeyError):
        await PLAIN_CONVERTER.decode(encoded, [str])
