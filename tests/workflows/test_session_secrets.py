"""Session secrets in the environment of commands, and nowhere else."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from typing import Any

import pytest
from pydantic import SecretStr

from sandhold.client import Session
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import ToolName, sandbox_workflow_id
from sandhold.contracts.tools import parse_arguments
from sandhold.temporal import session_record
from tests.replay.plain_text import in_plain_text
from tests.stack import CONVERTER, Stack
from tests.workflows.calls import error_of_call, exec_ok

VALUE = "canary-6c1f0b7e-of-the-session"
ALL_PROCESSES = "for each in /proc/[0-9]*; do tr '\\0' ' ' <$each/cmdline; echo; done"


async def put(stack: Stack, session: Session, name: str, value: str) -> None:
    record = await session_record(stack.temporal, session.session_id)
    await stack.vault.set_secret(session.session_id, record.run_id, name, SecretStr(value))


def sha(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


async def hash_of(session: Session, name: str, **arguments: Any) -> str:
    """What a command finds in the variable, as a hash: nothing prints the value itself."""
    answer = await exec_ok(session, "box", f'printf %s "${name}" | sha256sum', **arguments)
    return str(answer["stdout"])[:64]


async def texts_of_history(stack: Stack, workflow_id: str) -> str:
    """Everything in a history, payloads decoded."""
    encrypted = await stack.temporal.get_workflow_handle(workflow_id).fetch_history()
    history = await in_plain_text(encrypted, CONVERTER, stack.temporal.namespace)
    text = history.to_json()
    payloads = [base64.b64decode(each) for each in re.findall(r'"data": *"([A-Za-z0-9+/=]+)"', text)]
    return text + "".join(each.decode("utf-8", "replace") for each in payloads)


async def test_a_command_gets_its_secrets_by_its_environment_alone(stack: Stack) -> None:
    session = await stack.open()
    await put(stack, session, "API_TOKEN", VALUE)
    await session.create_sandbox(sandbox_id="box", secret_env=["API_TOKEN"])
    assert await hash_of(session, "API_TOKEN") == sha(VALUE)
    background = await session.start("box", 'sleep 30; printf %s "$API_TOKEN" >/dev/null')
    processes = await exec_ok(session, "box", ALL_PROCESSES, output="full")
    assert "sleep 30" in processes["stdout"]
    assert VALUE not in processes["stdout"]
    found = await exec_ok(session, "box", f"grep -rl '{VALUE[:20]}[-]of-the' ~ /tmp; true")
    assert found["stdout"] == ""
    [held] = await stack.provider_sandboxes(session)
    assert VALUE not in json.dumps((await stack.provider.get(held.id)).env)
    for workflow_id in (session.workflow_id, sandbox_workflow_id(session.session_id, "box")):
        texts = await texts_of_history(stack, workflow_id)
        assert "API_TOKEN" in texts, "or the search shows nothing"
        assert VALUE not in texts
    await background.cancel()
    await session.end()


async def test_the_value_of_the_moment_is_given_also_after_a_restart(stack: Stack) -> None:
    session = await stack.open()
    await put(stack, session, "TOKEN", "first")
    await session.create_sandbox(sandbox_id="box", secret_env=["TOKEN"], env={"TOKEN": "of the sandbox"})
    assert await hash_of(session, "TOKEN") == sha("first")
    await put(stack, session, "TOKEN", "two\nlines and 'quotes' $HOME `id`")
    assert await hash_of(session, "TOKEN") == sha("two\nlines and 'quotes' $HOME `id`")
    await session.manage_sandbox("box", "stop")
    await put(stack, session, "TOKEN", "x" * 60_000)
    assert await hash_of(session, "TOKEN") == sha("x" * 60_000)


async def test_a_sandbox_that_asks_for_none_gets_none(stack: Stack) -> None:
    session = await stack.open()
    await put(stack, session, "TOKEN", VALUE)
    await session.create_sandbox(sandbox_id="box")
    assert await hash_of(session, "TOKEN") == sha("")


async def test_a_secret_that_is_not_set_is_named_at_the_creation_and_at_the_command(stack: Stack) -> None:
    session = await stack.open()
    with pytest.raises(ToolFailure) as refused:
        await session.create_sandbox(sandbox_id="box", secret_env=["TOKEN"])
    assert refused.value.error.code is ErrorCode.INVALID_ARGUMENTS
    assert "no secret TOKEN" in refused.value.error.message
    assert f"sandhold secrets set {session.session_id} TOKEN" in (refused.value.error.hint or "")
    assert await stack.provider_sandboxes(session) == []
    await put(stack, session, "TOKEN", VALUE)
    async with asyncio.timeout(30):
        while (await session.show()).sandboxes[0].state != "failed":
            await asyncio.sleep(0.1)
    await session.create_sandbox(sandbox_id="box", secret_env=["TOKEN"])
    record = await session_record(stack.temporal, session.session_id)
    await stack.vault.delete_secret(session.session_id, record.run_id, "TOKEN")
    error = await error_of_call(session, "daytona_exec", {"sandbox_id": "box", "command": "echo ran >> ran"})
    assert (error.code, error.ambiguous) == (ErrorCode.INVALID_ARGUMENTS, False)
    assert "no secret TOKEN" in error.message
    await put(stack, session, "TOKEN", VALUE)
    assert (await exec_ok(session, "box", "cat ran; true"))["stdout"] == "", "it was not run"


@pytest.mark.parametrize("name", ["PATH", "HOME", "LD_PRELOAD", "SANDHOLD_CWD", "IFS", "BASH_ENV", "1A", "A-B", ""])
async def test_what_decides_how_programs_run_is_no_secret(name: str) -> None:
    with pytest.raises(ToolFailure) as refused:
        parse_arguments(ToolName.CREATE_SANDBOX, {"secret_env": [name]})
    assert refused.value.error.code is ErrorCode.INVALID_ARGUMENTS
    assert "secret_env" in refused.value.error.message
