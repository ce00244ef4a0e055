"""Bad input: a typed error each, and the workflow healthy after each."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from sandhold.client import Session
from sandhold.contracts.calls import CallEnvelope
from sandhold.contracts.errors import ErrorCode, ToolError
from sandhold.contracts.names import sandbox_workflow_id, session_workflow_id
from tests.stack import Stack
from tests.workflows.calls import call_ok, creates, error_of_call, exec_ok

BOX = "box"
INSIDE = {"sandbox_id": BOX}

WRONG: list[tuple[str, Any]] = [
    ("daytona_create_sandbox", {"size": "gigantic"}),
    ("daytona_create_sandbox", {"size": "small", "snapshot": "x"}),
    ("daytona_create_sandbox", {"sandbox_id": "Not An Id"}),
    ("daytona_create_sandbox", {"sandbox_id": "x" * 64}),
    ("daytona_create_sandbox", {"title": "t" * 201}),
    ("daytona_create_sandbox", {"title": 5}),
    ("daytona_create_sandbox", {"auto_stop_minutes": 0}),
    ("daytona_create_sandbox", {"auto_stop_minutes": "5"}),
    ("daytona_create_sandbox", {"env": {"NOT-A-NAME": "x"}}),
    ("daytona_create_sandbox", {"env": {"A": 1}}),
    ("daytona_create_sandbox", {"unknown": True}),
    ("daytona_create_sandbox", []),
    ("daytona_list_sandboxes", {"sandbox_id": BOX}),
    ("daytona_exec", INSIDE),
    ("daytona_exec", {**INSIDE, "command": ""}),
    ("daytona_exec", {**INSIDE, "command": ["ls"]}),
    ("daytona_exec", {**INSIDE, "command": "a\0b"}),
    ("daytona_exec", {**INSIDE, "command": "true", "timeout": 0}),
    ("daytona_exec", {**INSIDE, "command": "true", "timeout": 86_400_001}),
    ("daytona_exec", {**INSIDE, "command": "true", "timeout": 1.5}),
    ("daytona_exec", {**INSIDE, "command": "true", "output": "loud"}),
    ("daytona_exec", {**INSIDE, "command": "true", "cwd": ""}),
    ("daytona_exec", {**INSIDE, "command": "true", "shell": "zsh"}),
    ("daytona_read_file", INSIDE),
    ("daytona_read_file", {**INSIDE, "path": ""}),
    ("daytona_read_file", {**INSIDE, "path": "a" * 5000}),
    ("daytona_read_file", {**INSIDE, "path": "a", "offset": -1}),
    ("daytona_read_file", {**INSIDE, "path": "a", "limit": 0}),
    ("daytona_write_file", {**INSIDE, "path": "a"}),
    ("daytona_write_file", {**INSIDE, "path": "a", "content": "%%%", "encoding": "base64"}),
    ("daytona_write_file", {**INSIDE, "path": "a", "content": "x", "mode": "rwx"}),
    ("daytona_write_file", {**INSIDE, "path": "a\0b", "content": "x"}),
    ("daytona_write_file", {**INSIDE, "path": "a", "content": "x", "append": "yes"}),
    ("daytona_manage_sandbox", {**INSIDE, "action": "explode"}),
    ("daytona_manage_sandbox", INSIDE),
]


@pytest.fixture(scope="module")
async def session(shared_stack: Stack) -> AsyncIterator[Session]:
    session = await shared_stack.open()
    await creates(session, sandbox_id=BOX)
    yield session
    await session.end()


@pytest.mark.parametrize(("tool", "arguments"), WRONG, ids=lambda value: str(value)[:60])
async def test_wrong_arguments_are_a_typed_error_that_names_the_field(
    session: Session, tool: str, arguments: Any
) -> None:
    error = await error_of_call(session, tool, arguments)
    assert error.code is ErrorCode.INVALID_ARGUMENTS
    assert tool in error.message
    assert not error.retryable
    assert (await exec_ok(session, BOX, "echo healthy"))["exit_code"] == 0


async def test_an_unknown_sandbox_names_those_that_exist_and_the_nearest(session: Session) -> None:
    for tool, more in [
        ("daytona_exec", {"command": "true"}),
        ("daytona_read_file", {"path": "a"}),
        ("daytona_write_file", {"path": "a", "content": ""}),
        ("daytona_manage_sandbox", {"action": "start"}),
    ]:
        error = await error_of_call(session, tool, {"sandbox_id": "bix", **more})
        assert error.code is ErrorCode.SANDBOX_NOT_FOUND
        assert error.sandbox_ids == [BOX]
        assert BOX in (error.hint or "")


async def test_another_sessions_sandbox_is_not_found(stack: Stack, session: Session) -> None:
    other = await stack.open()
    await creates(other, sandbox_id="theirs")
    error = await error_of_call(session, "daytona_exec", {"sandbox_id": "theirs", "command": "true"})
    assert error.code is ErrorCode.SANDBOX_NOT_FOUND
    for hostile in ("../other/theirs", f"{other.session_id}/theirs"):
        error = await error_of_call(session, "daytona_exec", {"sandbox_id": hostile, "command": "true"})
        assert error.code in {ErrorCode.INVALID_ARGUMENTS, ErrorCode.SANDBOX_NOT_FOUND}
    await other.end()


async def test_a_path_that_is_not_there_and_bytes_that_are_no_text(session: Session) -> None:
    error = await error_of_call(session, "daytona_read_file", {"sandbox_id": BOX, "path": "nowhere/at/all"})
    assert error.code is ErrorCode.PATH_NOT_FOUND
    error = await error_of_call(session, "daytona_exec", {"sandbox_id": BOX, "command": "true", "cwd": "/nowhere"})
    assert error.code is ErrorCode.PATH_NOT_FOUND
    await exec_ok(session, BOX, r"printf '\377\376\000\001' > binary")
    read = await call_ok(session, "daytona_read_file", {"sandbox_id": BOX, "path": "binary"})
    assert (read["encoding"], read["content"], read["bytes"]) == ("base64", "//4AAQ==", 4)


async def test_an_unknown_tool_and_a_bad_call_id_are_typed_errors(session: Session) -> None:
    error = await error_of_call(session, "daytona_format_disk", {})
    assert error.code is ErrorCode.INVALID_ARGUMENTS
    envelope = await session.call("daytona_exec", {"sandbox_id": BOX, "command": "true"}, call_id="no spaces please")
    assert envelope.error is not None
    assert envelope.error.code is ErrorCode.INVALID_ARGUMENTS


async def test_a_misdirected_call_is_told_where_to_go(stack: Stack, session: Session) -> None:
    wrong = await update(
        stack, session_workflow_id(session.session_id), "daytona_exec", {"sandbox_id": BOX, "command": "true"}
    )
    assert wrong.error is not None
    target = sandbox_workflow_id(session.session_id, BOX)
    assert (wrong.error.code, wrong.error.workflow_id) == (ErrorCode.WRONG_TARGET, target)
    wrong = await update(stack, target, "daytona_create_sandbox", {})
    assert wrong.error is not None
    session_target = session_workflow_id(session.session_id)
    assert (wrong.error.code, wrong.error.workflow_id) == (ErrorCode.WRONG_TARGET, session_target)
    wrong = await update(stack, target, "daytona_exec", {"sandbox_id": "other", "command": "true"})
    assert wrong.error is not None
    assert wrong.error.code is ErrorCode.WRONG_TARGET


@pytest.mark.parametrize("payload", ["text", 5, None, [], {}, {"call_id": 1}, {"call_id": "a", "tool": None}])
async def test_messages_of_no_known_shape_are_refused_and_harm_nothing(
    stack: Stack, session: Session, payload: Any
) -> None:
    for workflow_id in (session_workflow_id(session.session_id), sandbox_workflow_id(session.session_id, BOX)):
        handle = stack.temporal.get_workflow_handle(workflow_id)
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("call", payload, id=uuid.uuid4().hex)
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("call", args=[payload, payload], id=uuid.uuid4().hex)
        await handle.signal("submit", payload)
        await handle.signal("submit", args=[payload, payload])
    assert (await exec_ok(session, BOX, "echo healthy"))["exit_code"] == 0
    assert (await session.status()).state == "open"


async def test_messages_without_an_argument_are_refused_and_harm_nothing(stack: Stack, session: Session) -> None:
    for workflow_id, names in [
        (session_workflow_id(session.session_id), ["call", "end"]),
        (sandbox_workflow_id(session.session_id, BOX), ["call"]),
    ]:
        handle = stack.temporal.get_workflow_handle(workflow_id)
        for name in names:
            with pytest.raises(WorkflowUpdateFailedError):
                await handle.execute_update(name, id=uuid.uuid4().hex)
        await handle.signal("submit")
    assert (await exec_ok(session, BOX, "echo healthy"))["exit_code"] == 0
    assert (await session.status()).state == "open"


async def test_a_message_that_would_burden_the_history_is_refused_before_it(stack: Stack, session: Session) -> None:
    target = sandbox_workflow_id(session.session_id, BOX)
    handle = stack.temporal.get_workflow_handle(target)
    before = (await handle.describe()).history_length
    request = {"call_id": "huge", "tool": "daytona_exec", "arguments": {"sandbox_id": BOX, "command": "x" * 200_000}}
    with pytest.raises(WorkflowUpdateFailedError) as refusal:
        await handle.execute_update("call", request, id="huge")
    assert isinstance(refusal.value.cause, ApplicationError)
    assert refusal.value.cause.type == ErrorCode.TOO_LARGE
    assert (await handle.describe()).history_length == before


async def test_large_arguments_and_results_travel_by_reference(session: Session) -> None:
    content = "line of text\n" * 20_000
    await call_ok(session, "daytona_write_file", {"sandbox_id": BOX, "path": "large", "content": content})
    read = await call_ok(session, "daytona_read_file", {"sandbox_id": BOX, "path": "large", "limit": 5000})
    assert read["content"] == "line of text\n" * 5000
    assert read["truncated"] is True
    script = "# " + "x" * 300_000 + "\necho ran"
    assert (await exec_ok(session, BOX, script, output="normal"))["stdout"].strip() == "ran"


async def update(stack: Stack, workflow_id: str, tool: str, arguments: Any) -> CallEnvelope:
    """A raw update, as a runtime without our client would send it; a refusal as the error that it carries."""
    call_id = uuid.uuid4().hex
    message = {"call_id": call_id, "tool": tool, "arguments": arguments}
    handle = stack.temporal.get_workflow_handle(workflow_id)
    try:
        return await handle.execute_update("call", message, id=call_id, result_type=CallEnvelope)
    except WorkflowUpdateFailedError as refusal:
        cause = refusal.cause
        if not isinstance(cause, ApplicationError):
            raise
        error = ToolError.model_validate(cause.details[0])
        return CallEnvelope(call_id=call_id, session_id="", tool=tool, status="done", ok=False, error=error)
