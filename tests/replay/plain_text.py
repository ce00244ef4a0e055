"""A history as it would be without encryption: what is kept in the repository replays without any key."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable

from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.client import WorkflowHistory
from temporalio.converter import DataConverter, PayloadCodec

from sandhold.security.codec import ENCODING, Bound, EncryptingCodec, is_encrypted

_PAYLOAD_DATA = re.compile(r'"data": ?"([A-Za-z0-9+/=]*)"')


class SecretRecorded(AssertionError):
    """A history to be kept holds what nobody may read."""


async def in_plain_text(history: WorkflowHistory, converter: DataConverter, namespace: str) -> WorkflowHistory:
    """The history with all payloads decoded, and with the messages of its failures where the server keeps them."""
    # A session's history holds payloads of its sandboxes too: what it sends them, and what they return.
    assert isinstance(converter.payload_codec, EncryptingCodec)
    codec = converter.payload_codec.bound_to(Bound(namespace))
    plain = WorkflowHistory(
        history.workflow_id, [type(event).FromString(event.SerializeToString()) for event in history.events]
    )
    for event in plain.events:
        await _decode(event, codec)
    return plain


async def _decode(message: Message, codec: PayloadCodec) -> None:
    if isinstance(message, Payload):
        if not is_encrypted(message):
            return  # The server's or the core's own: a search attribute, the name of a patch.
        [decoded] = await codec.decode([message])
        message.CopyFrom(decoded)
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            values = [each for each in value.values() if isinstance(each, Message)]
        else:
            values = list(value) if isinstance(value, Iterable) else [value]
        for each in values:
            await _decode(each, codec)
    if isinstance(message, Failure) and message.HasField("encoded_attributes"):
        attributes = json.loads(message.encoded_attributes.data)
        message.message, message.stack_trace = attributes["message"], attributes["stack_trace"]
        message.ClearField("encoded_attributes")


def check_nothing_secret(text: str, secrets: Iterable[str]) -> None:
    """Raises SecretRecorded when the JSON of a history holds a secret, also inside of a payload, or is encrypted."""
    read = text + "".join(base64.b64decode(data).decode(errors="replace") for data in _PAYLOAD_DATA.findall(text))
    if base64.b64encode(ENCODING).decode() in text:
        raise SecretRecorded("a payload is still encrypted")
    for number, secret in enumerate(secrets):
        forms = [secret, *(base64.b64encode(b"\0" * ahead + secret.encode()).decode()[4:-4] for ahead in range(3))]
        if any(form in read for form in forms):
            raise SecretRecorded(f"secret number {number} can be read")
