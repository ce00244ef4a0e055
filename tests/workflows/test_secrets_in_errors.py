"""A session's secret in what a provider says of a failure: in no answer and in no history, through the whole stack."""

from __future__ import annotations

from typing import Any

import pytest

from sandhold.client import Session
from sandhold.contracts.names import ToolName, sandbox_workflow_id
from tests.stack import Stack
from tests.workflows.calls import error_of_call
from tests.workflows.test_session_secrets import put, texts_of_history

VALUE = "canary-93ab55f0-in-an-error"
EXECUTE = {"method": "POST", "route": "/toolbox/{id}/process/execute"}


async def refused(stack: Stack, session: Session, tool: ToolName, body: dict[str, Any], **arguments: Any) -> str:
    """What a call answers whose request the provider refuses so; the caller reads it from the history once more."""
    await stack.faults.add(**EXECUTE, effect="status", status=400, body={"statusCode": 400, **body}, times=1)
    error = await error_of_call(session, tool, {"sandbox_id": "box", **arguments})
    assert error.hint is None or VALUE not in error.hint
    return error.message


@pytest.mark.parametrize(
    ("tool", "body", "arguments"),
    [
        (ToolName.EXEC, {}, {"command": "true"}),
        (ToolName.READ_FILE, {"code": "FILE_NOT_FOUND"}, {"path": "some/file"}),
    ],
    ids=["a failed activity", "an answer"],
)
async def test_a_secret_in_an_error_is_told_by_its_name(
    stack: Stack, tool: ToolName, body: dict[str, Any], arguments: dict[str, Any]
) -> None:
    session = await stack.open()
    await put(stack, session, "API_TOKEN", VALUE)
    await session.create_sandbox(sandbox_id="box")
    whole = {"message": f"odd variable API_TOKEN={VALUE}!", **body}
    assert "odd variable API_TOKEN=[redacted:API_TOKEN]!" in await refused(stack, session, tool, whole, **arguments)
    cut = {"message": f"{'-' * 285} {VALUE}", **body}
    assert "-- [redacted:API_TOKEN]…" in await refused(stack, session, tool, cut, **arguments)
    history = await texts_of_history(stack, sandbox_workflow_id(session.session_id, "box"))
    assert "odd variable" in history, "or the search shows nothing"
    assert VALUE[:10] not in history
    await session.end()
