"""The command line without a deployment: usage, exit codes, one JSON document, the tools."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path

import pytest
import typer

import sandhold
from sandhold.cli import COMMANDS, processes
from sandhold.cli.calls import printed
from sandhold.cli.tools import ToolFormat, declaration
from sandhold.contracts.calls import CallEnvelope, StorageRef
from sandhold.contracts.errors import ErrorCode, ToolError
from sandhold.contracts.names import MODEL_TOOLS, ToolName
from sandhold.contracts.tools import ARGUMENTS
from tests.cli.process import finished, plain_environment, started
from tests.cli.process import sandhold as run
from tests.stack import KEY_RING

WRONG = [
    ["nonsense"],
    ["call", "demo"],
    ["call", "demo", "daytona_exec", "{not json"],
    ["call", "demo", "daytona_exec", "@/no/such/file"],
    ["call", "Not An Id", "daytona_exec"],
    ["exec", "demo", "box"],
    ["exec", "demo", "box", "--timeout", "0", "--", "true"],
    ["session", "start", "--policy", "[]"],
    ["session", "list", "--state", "asleep"],
    ["files", "demo"],
    ["files", "Not An Id", "ls"],
    ["files", "demo", "put", "-"],
    ["files", "demo", "get", "x", "-", "-r"],
]


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose Temporal address refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return plain_environment(
        SANDHOLD_TEMPORAL_ADDRESS=f"127.0.0.1:{port}",
        SANDHOLD_DATA_DIR=str(tmp_path_factory.mktemp("nowhere")),
        SANDHOLD_KEYRING=KEY_RING,
    )


async def test_a_wrong_command_line_is_exit_2_and_with_json_one_document(nowhere: dict[str, str]) -> None:
    for arguments in WRONG:
        plain = await run(*arguments, env=nowhere)
        assert (plain.code, plain.out, plain.err != "") == (2, "", True)
        as_json = await run("--json", *arguments, env=nowhere)
        assert (as_json.code, as_json.document["error"]["code"]) == (2, "usage")


async def test_without_temporal_every_command_is_exit_4_and_with_json_one_document(nowhere: dict[str, str]) -> None:
    commands = [
        ["session", "start"],
        ["session", "list"],
        ["session", "show", "demo"],
        ["session", "end", "demo"],
        ["call", "demo", "daytona_list_sandboxes"],
        ["exec", "demo", "box", "--", "ls", "--json"],
        ["setup"],
        ["files", "demo", "ls"],
        ["storage", "clean", "--dry-run"],
    ]
    for arguments in commands:
        plain = await run(*arguments, env=nowhere)
        assert (plain.code, plain.out, "sandhold dev" in plain.err) == (4, "", True)
        as_json = await run("--json", *arguments, env=nowhere)
        assert (as_json.code, as_json.document["error"]["code"]) == (4, "temporal_unreachable")


async def test_settings_that_cannot_be_used_are_named(nowhere: dict[str, str]) -> None:
    ended = await run("session", "list", env={**nowhere, "SANDHOLD_REQUEST_TIMEOUT_S": "soon"})
    assert ended.code == 2
    assert "SANDHOLD_REQUEST_TIMEOUT_S" in ended.err
    for url in ("s3://key:hush@bucket/x", "s3://bucket?secret=hush", "ftp://bucket/hush", "file:hush", "s3:///hush"):
        ended = await run("session", "list", env={**nowhere, "SANDHOLD_STORAGE_URL": url})
        assert (ended.code, "SANDHOLD_STORAGE_URL" in ended.err, "hush" in ended.err) == (2, True, False)


async def test_the_doctor_finds_what_is_missing(nowhere: dict[str, str]) -> None:
    ended = await run("doctor", "--json", env=nowhere)
    assert (ended.code, ended.document["ok"]) == (1, False)
    found = {check["name"]: check["ok"] for check in ended.document["checks"]}
    assert (found["temporal"], found["provider"], found["storage"]) == (False, False, True)
    assert found["namespace"] is found["search attributes"] is found["worker"] is None


async def test_the_tools_are_a_json_array_and_cost_no_temporal_client() -> None:
    program = (
        "import sys; from sandhold.cli import app\n"
        "app(['tools', '--format', 'openai'], standalone_mode=False)\n"
        "assert 'temporalio' not in sys.modules, 'the tools loaded the Temporal client'"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert [tool["function"]["name"] for tool in json.loads(out)] == [tool.value for tool in MODEL_TOOLS]
    assert "sandhold_push_files" not in out.decode()


@pytest.mark.parametrize("tool", list(ToolName))
def test_every_format_declares_the_same_schema(tool: ToolName) -> None:
    openai = declaration(tool, ToolFormat.OPENAI)
    anthropic = declaration(tool, ToolFormat.ANTHROPIC)
    mcp = declaration(tool, ToolFormat.MCP)
    schema = ARGUMENTS[tool].model_json_schema()
    assert (openai["type"], set(openai["function"])) == ("function", {"name", "description", "parameters"})
    assert openai["function"]["parameters"] == anthropic["input_schema"] == mcp["inputSchema"] == schema
    assert {openai["function"]["name"], anthropic["name"], mcp["name"]} == {tool.value}
    assert schema["additionalProperties"] is False
    assert all(field.get("description") for field in schema.get("properties", {}).values())


def test_an_envelope_is_printed_with_exactly_the_fixed_keys() -> None:
    error = ToolError(code=ErrorCode.SANDBOX_NOT_FOUND, message="no", sandbox_ids=["a"])
    ref = StorageRef(path="calls/a/result.json", bytes=1, sha256="0")
    envelope = CallEnvelope(
        call_id="c", session_id="s", tool="t", status="done", ok=False, error=error, result_ref=ref, fingerprint="f"
    )
    document = printed(envelope)
    assert list(document) == ["call_id", "session_id", "sandbox_id", "tool", "status", "ok", "result", "error"]
    assert document["error"] == {
        "code": "sandbox_not_found",
        "message": "no",
        "hint": None,
        "retryable": False,
        "ambiguous": False,
        "sandbox_ids": ["a"],
    }


def test_a_worker_outside_of_the_repository_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sandhold, "__file__", str(tmp_path / "site-packages" / "sandhold" / "__init__.py"))
    with pytest.raises(typer.Exit) as left:
        processes.worker()
    assert left.value.exit_code == 2
    assert "checkout of the repository" in capsys.readouterr().err


async def test_a_process_says_the_same(nowhere: dict[str, str]) -> None:
    ended = await asyncio.gather(
        finished(await started("--json", "session", "list", env=nowhere)),
        finished(await started("call", "demo", "daytona_exec", "{not json", "--json", env=nowhere)),
    )
    assert [each.code for each in ended] == [4, 2]
    assert [each.document["error"]["code"] for each in ended] == ["temporal_unreachable", "usage"]


async def test_help_lists_every_command(nowhere: dict[str, str]) -> None:
    ended = await run("--help", env={**nowhere, "COLUMNS": "200"})
    assert ended.code == 0
    assert all(name in ended.out for name in COMMANDS)
