"""Calls as the tests of the workflows make them."""

from __future__ import annotations

from typing import Any

from sandhold.client import Session
from sandhold.contracts.errors import ToolError


async def call_ok(session: Session, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The result of a call that has to succeed."""
    envelope = await session.call(tool, arguments)
    assert envelope.error is None, envelope.error
    assert envelope.status == "done"
    assert isinstance(envelope.result, dict)
    return envelope.result


async def error_of_call(session: Session, tool: str, arguments: Any) -> ToolError:
    """The error of a call that has to fail."""
    envelope = await session.call(tool, arguments)
    assert envelope.error is not None, envelope.result
    assert envelope.ok is False
    return envelope.error


async def creates(session: Session, **arguments: Any) -> str:
    """The id of a new, started sandbox."""
    result = await call_ok(session, "daytona_create_sandbox", arguments)
    return str(result["sandbox_id"])


async def exec_ok(session: Session, sandbox_id: str, command: str, **arguments: Any) -> dict[str, Any]:
    """The result of a command, whatever its exit code."""
    return await call_ok(session, "daytona_exec", {"sandbox_id": sandbox_id, "command": command, **arguments})
