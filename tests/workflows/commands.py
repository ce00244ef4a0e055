"""Commands as the tests of the workflows work with them."""

from __future__ import annotations

import asyncio
from typing import Any

from sandhold.client import Session
from sandhold.contracts.calls import CallEnvelope
from sandhold.contracts.commands import CommandRow
from tests.workflows.calls import call_ok


async def command(
    session: Session, box: str, action: str, call_id: str | None = None, **arguments: Any
) -> dict[str, Any]:
    """The result of a call of `daytona_command` that has to succeed."""
    named = {} if call_id is None else {"call_id": call_id}
    return await call_ok(session, "daytona_command", {"sandbox_id": box, "action": action, **named, **arguments})


async def rows(session: Session, box: str) -> list[CommandRow]:
    """The sandbox's commands as it lists them."""
    return [CommandRow.model_validate(row) for row in (await command(session, box, "list"))["commands"]]


def begins(session: Session, box: str, call_id: str, script: str, **arguments: Any) -> asyncio.Task[CallEnvelope]:
    """A call of `daytona_exec` under this id, on its way."""
    asked = {"sandbox_id": box, "command": script, **arguments}
    return asyncio.create_task(session.call("daytona_exec", asked, call_id=call_id))
