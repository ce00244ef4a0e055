"""Failures on their way through Temporal: messages and stack traces are encrypted with the payloads, types are not.

A failure's type tells clients what to do and operators what is the matter; it is the name of a class or an error code.
A message may quote anything. Where the server passes a message on as plain text, such as that of a failed query, its
reader gets `Encoded failure`.
"""

from __future__ import annotations

from temporalio.api.failure.v1 import Failure
from temporalio.converter import DefaultFailureConverterWithEncodedAttributes, PayloadConverter

from sandhold.contracts.names import QUERY_TOO_EARLY

CLEAR_MESSAGES = frozenset({QUERY_TOO_EARLY})
"""Constants of ours that readers of plain text compare with. They say nothing about anybody."""


class SealedFailures(DefaultFailureConverterWithEncodedAttributes):
    """Moves messages and stack traces to where the codec encrypts them, but for the messages in CLEAR_MESSAGES."""

    def to_failure(self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure) -> None:
        super().to_failure(exception, payload_converter, failure)
        if getattr(exception, "message", None) in CLEAR_MESSAGES:
            failure.message = exception.message  # type: ignore[attr-defined]
