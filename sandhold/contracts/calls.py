"""A tool call on its way: the request, the envelope that answers it, and references to what is too large."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import JsonValue

from sandhold.contracts.base import Message
from sandhold.contracts.errors import ToolError
from sandhold.contracts.names import ToolName

INLINE_LIMIT_BYTES = 16 * 1024
"""Arguments and results above this go through session storage, with a reference in the message."""
LEDGER_RESULT_LIMIT_BYTES = 2 * 1024
"""Results above this are kept in session storage for whoever asks again."""
MESSAGE_LIMIT_BYTES = 96 * 1024
"""The most that one message may carry; above it a call is refused before it reaches the history.

A 2 MiB argument blocks a workflow for 18 s, and several large ones in one workflow task make the server
terminate it (measured with server 1.32.0).
"""
ANSWER_WITHIN_S = 9.0
"""An update is answered within this time, with the status `running` when the call has not ended."""


class StorageRef(Message):
    """A JSON document in session storage, below the session's prefix."""

    path: str
    bytes: int
    sha256: str


class CallRequest(Message):
    """The argument of the update `call` and, with `sandbox_id`, of the signal `submit`.

    The fields are loose on purpose: what is wrong with them is answered with a typed error, which a
    message that cannot be decoded would not get.
    """

    call_id: str
    tool: str
    arguments: JsonValue = None
    arguments_ref: StorageRef | None = None
    """Where the arguments are when they are larger than INLINE_LIMIT_BYTES."""
    sandbox_id: str | None = None
    """The sandbox that the call is for; the same as in the arguments. Needed with `arguments_ref`."""
    generation: int | None = None
    """That of the sandbox which has taken the call before: another one of the same id must not carry it out again."""

    @property
    def deletes(self) -> bool:
        """Whether the call asks for a deletion: one more is harmless, while it is under way and after."""
        given = self.arguments
        return self.tool == ToolName.MANAGE_SANDBOX and isinstance(given, dict) and given.get("action") == "delete"

    def fingerprint(self) -> str:
        """SHA-256 over tool and arguments: tells a repeated call from another call under the same id."""
        arguments = self.arguments_ref.sha256 if self.arguments_ref else json_sha256(self.arguments)
        return hashlib.sha256(f"{self.tool}\0{arguments}".encode()).hexdigest()


class CallEnvelope(Message):
    """The answer to a call. `result` and `error` are null while the status is `running`."""

    call_id: str
    session_id: str
    sandbox_id: str | None = None
    tool: str
    status: Literal["done", "running"]
    ok: bool | None = None
    result: JsonValue = None
    error: ToolError | None = None
    result_ref: StorageRef | None = None
    """Where the result is when the message does not carry it; the client resolves it."""
    fingerprint: str | None = None
    """Of the call that was carried out. The server answers a repeated update id from its own memory, whatever the
    arguments: who sent others sees here that the id was taken."""
    generation: int | None = None
    """Of the sandbox that has taken the call; null from a session."""


class CallOutcome(Message):
    """How a call ended, as activities return it and the ledger keeps it: a result (or its place) or an error."""

    result: JsonValue = None
    result_ref: StorageRef | None = None
    error: ToolError | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    def for_ledger(self) -> CallOutcome:
        """The same without a result that is kept in storage as well."""
        if self.result_ref is None or self.result is None:
            return self
        return self.model_copy(update={"result": None})


def json_bytes(value: JsonValue) -> bytes:
    """Canonical JSON: the same value gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def json_sha256(value: JsonValue) -> str:
    return hashlib.sha256(json_bytes(value)).hexdigest()
