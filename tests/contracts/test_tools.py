"""The tools' arguments: what is refused, and how it is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import MODEL_TOOLS, ToolName
from sandhold.contracts.tools import (
    ARGUMENTS,
    CONTENT_LIMIT_CHARS,
    RESULTS,
    ExecArguments,
    ReadFileArguments,
    WriteFileArguments,
    description,
    input_schema,
    parse_arguments,
    tool_named,
)

BOX = {"sandbox_id": "box"}
GOOD: dict[ToolName, dict[str, Any]] = {
    ToolName.GIT_CREDENTIALS: {"sandbox_id": "box"},
    ToolName.GIT_CLONE: {
        "sandbox_id": "box",
        "repo_url": "owner/repo",
        "branch": "feature/one",
        "path": "there",
        "depth": 1,
        "submodules": True,
        "timeout": 1000,
    },
    ToolName.CREATE_SANDBOX: {
        "title": "t",
        "sandbox_id": "box",
        "size": "small",
        "env": {"A": "b"},
        "auto_stop_minutes": 9,
        "upload_files": [{"session_path": "/a/b", "sandbox_path": "b/"}],
        "restore_from": {"session_path": "/workspaces/box-g1.tar.zst", "session_id": "before"},
    },
    ToolName.PUSH_FILES: {**BOX, "files": [{"session_path": "a", "sandbox_path": "/tmp/a"}]},
    ToolName.EXEC: {**BOX, "command": "true", "cwd": "/", "timeout": 5, "output": "full"},
    ToolName.READ_FILE: {**BOX, "path": "x", "offset": 3, "limit": 4},
    ToolName.WRITE_FILE: {**BOX, "path": "x", "content": "", "encoding": "base64", "mode": "0755", "append": True},
    ToolName.DOWNLOAD_WORKSPACE: {
        **BOX,
        "sandbox_path": "src",
        "session_path": "/saved",
        "include": ["*.py"],
        "exclude": ["!.git"],
        "format": "archive",
    },
    ToolName.LIST_SANDBOXES: {},
    ToolName.MANAGE_SANDBOX: {**BOX, "action": "stop"},
    ToolName.COMMAND: {**BOX, "action": "read", "call_id": "c", "stdout_offset": 1, "stderr_offset": 2, "wait_ms": 3},
}
BAD: list[tuple[ToolName, Any, str]] = [
    *(
        (ToolName.GIT_CLONE, {"sandbox_id": "box", "repo_url": "a/b", "branch": branch}, "branch")
        for branch in (
            "",
            "-b",
            "--upload-pack=x",
            "a b",
            "a\nb",
            "a..b",
            "a~1",
            "a^",
            "a:b",
            "a?",
            "a*",
            "a[",
            "a\\b",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
            "a.lock",
            "a.lock/b",
            "a@{1}",
            "@",
            "a.",
            "\ud800",
        )
    ),
    (ToolName.GIT_CLONE, {"sandbox_id": "box", "repo_url": "a/b", "path": "a\nb"}, "path"),
    (ToolName.GIT_CLONE, {"sandbox_id": "box", "repo_url": "a/b", "depth": 0}, "depth"),
    (ToolName.GIT_CLONE, {"sandbox_id": "box", "repo_url": ""}, "repo_url"),
    (ToolName.LIST_SANDBOXES, {"x": 1}, "x"),
    (ToolName.LIST_SANDBOXES, None, "valid"),
    (ToolName.LIST_SANDBOXES, [], "valid"),
    (ToolName.CREATE_SANDBOX, {"size": "huge"}, "size"),
    (ToolName.CREATE_SANDBOX, {"size": "small", "snapshot": "s"}, "either size or snapshot"),
    (ToolName.CREATE_SANDBOX, {"sandbox_id": "Big Box"}, "sandbox_id"),
    (ToolName.CREATE_SANDBOX, {"sandbox_id": "a" * 64}, "sandbox_id"),
    (ToolName.CREATE_SANDBOX, {"sandbox_id": "box\n"}, "sandbox_id"),
    (ToolName.CREATE_SANDBOX, {"auto_stop_minutes": 0}, "auto_stop_minutes"),
    (ToolName.CREATE_SANDBOX, {"auto_stop_minutes": 61}, "auto_stop_minutes"),
    (ToolName.CREATE_SANDBOX, {"auto_stop_minutes": "5"}, "auto_stop_minutes"),
    (ToolName.CREATE_SANDBOX, {"auto_stop_minutes": True}, "auto_stop_minutes"),
    (ToolName.CREATE_SANDBOX, {"env": {"1A": "x"}}, "not a variable name"),
    (ToolName.CREATE_SANDBOX, {"env": {"A": "nul\0"}}, "NUL"),
    (ToolName.CREATE_SANDBOX, {"env": {"A": 5}}, "env.A"),
    (ToolName.CREATE_SANDBOX, {"env": {"A": "x" * 70_000}}, "65536 bytes"),
    (ToolName.CREATE_SANDBOX, {"title": ""}, "title"),
    (ToolName.CREATE_SANDBOX, {"upload_files": ["a"]}, "upload_files"),
    (ToolName.CREATE_SANDBOX, {"upload_files": [{"session_path": "../a", "sandbox_path": "a"}]}, "'..'"),
    (ToolName.CREATE_SANDBOX, {"upload_files": [{"session_path": "/", "sandbox_path": "a"}]}, "empty"),
    (ToolName.CREATE_SANDBOX, {"upload_files": [{"session_path": "a", "sandbox_path": "a\0"}]}, "NUL"),
    (ToolName.CREATE_SANDBOX, {"upload_files": [{"session_path": "a", "sandbox_path": "a"}] * 101}, "100"),
    (ToolName.CREATE_SANDBOX, {"upload_files": [{"session_path": "a", "sandbox_path": "a" * 500}] * 99}, "32768 bytes"),
    (ToolName.CREATE_SANDBOX, {"restore_from": {"session_path": "a/../b"}}, "'..'"),
    (ToolName.CREATE_SANDBOX, {"restore_from": {"session_path": "a", "session_id": "S"}}, "session_id"),
    (ToolName.CREATE_SANDBOX, {"restore_from": {"session_path": "a", "owner": "me"}}, "owner"),
    (ToolName.PUSH_FILES, {**BOX, "files": []}, "at least 1"),
    (ToolName.PUSH_FILES, BOX, "files"),
    (ToolName.EXEC, {"sandbox_id": "box"}, "command"),
    (ToolName.EXEC, {"command": "true"}, "sandbox_id"),
    (ToolName.EXEC, {**BOX, "command": ""}, "command"),
    (ToolName.EXEC, {**BOX, "command": "a\0b"}, "NUL"),
    (ToolName.EXEC, {**BOX, "command": ["ls"]}, "command"),
    (ToolName.EXEC, {**BOX, "command": "x", "timeout": 0}, "timeout"),
    (ToolName.EXEC, {**BOX, "command": "x", "timeout": 86_400_001}, "timeout"),
    (ToolName.EXEC, {**BOX, "command": "x", "timeout": 1.5}, "timeout"),
    (ToolName.EXEC, {**BOX, "command": "x", "output": "loud"}, "output"),
    (ToolName.EXEC, {**BOX, "command": "x", "cwd": ""}, "cwd"),
    (ToolName.READ_FILE, {**BOX, "path": "x" * 5000}, "path"),
    (ToolName.READ_FILE, {**BOX, "path": "é" * 3000}, "4095 bytes"),
    (ToolName.READ_FILE, {**BOX, "path": "\ud800"}, "path"),
    (ToolName.READ_FILE, {**BOX, "path": "x", "offset": -1}, "offset"),
    (ToolName.READ_FILE, {**BOX, "path": "x", "limit": 0}, "limit"),
    (ToolName.WRITE_FILE, {**BOX, "path": "x"}, "content"),
    (ToolName.WRITE_FILE, {**BOX, "path": "x", "content": b"bytes"}, "content"),
    (ToolName.WRITE_FILE, {**BOX, "path": "x", "content": "\ud800"}, "unicode"),
    (ToolName.WRITE_FILE, {**BOX, "path": "x", "content": "a", "encoding": "base64"}, "base64"),
    (ToolName.WRITE_FILE, {**BOX, "path": "x", "content": "a", "mode": "9"}, "mode"),
    (ToolName.WRITE_FILE, {**BOX, "path": "x", "content": "a", "mode": 755}, "mode"),
    (ToolName.MANAGE_SANDBOX, {**BOX, "action": "explode"}, "action"),
    (ToolName.DOWNLOAD_WORKSPACE, {**BOX, "format": "zip"}, "format"),
    (ToolName.DOWNLOAD_WORKSPACE, {**BOX, "session_path": "a/../b"}, "'..'"),
    (ToolName.DOWNLOAD_WORKSPACE, {**BOX, "session_path": "/", "format": "archive"}, "needs a name"),
    (ToolName.DOWNLOAD_WORKSPACE, {**BOX, "include": ["a\nb"]}, "one line"),
    (ToolName.DOWNLOAD_WORKSPACE, {**BOX, "include": ["\ud800"]}, "nicode"),
    (ToolName.DOWNLOAD_WORKSPACE, {**BOX, "exclude": [""]}, "exclude"),
    (ToolName.DOWNLOAD_WORKSPACE, {**BOX, "exclude": ["a", "!"]}, "exclude.1: Value error, is no pattern"),
    (ToolName.DOWNLOAD_WORKSPACE, {**BOX, "exclude": ["foo\\"]}, "a backslash"),
    (ToolName.DOWNLOAD_WORKSPACE, {**BOX, "include": ["a["]}, "a [ without its ]"),
    (ToolName.DOWNLOAD_WORKSPACE, {**BOX, "include": ["[z-a]"]}, "ends before it begins"),
    (ToolName.DOWNLOAD_WORKSPACE, {**BOX, "exclude": "x"}, "exclude"),
    (ToolName.DOWNLOAD_WORKSPACE, {**BOX, "exclude": ["x" * 900] * 40}, "32768 bytes"),
    (ToolName.MANAGE_SANDBOX, {"action": "stop"}, "sandbox_id"),
    (ToolName.EXEC, {**BOX, "command": "x", "stdin": True}, "stdin needs background"),
    (ToolName.EXEC, {**BOX, "command": "x", "background": "yes"}, "background"),
]


@pytest.mark.parametrize("tool", ToolName)
def test_good_arguments_are_taken(tool: ToolName) -> None:
    assert isinstance(parse_arguments(tool, GOOD[tool]), ARGUMENTS[tool])


@pytest.mark.parametrize(("tool", "arguments", "said"), BAD)
def test_bad_arguments_are_refused_by_name(tool: ToolName, arguments: Any, said: str) -> None:
    with pytest.raises(ToolFailure) as failure:
        parse_arguments(tool, arguments)
    error = failure.value.error
    assert error.code is ErrorCode.INVALID_ARGUMENTS
    assert said in error.message
    assert not error.retryable
    assert len(error.message) < 2000


def test_what_was_sent_is_not_repeated() -> None:
    secret = "s3cret-" + "x" * 100
    for arguments in ({**BOX, "command": "x", "timeout": secret}, {**BOX, "command": [secret]}, {"env": {secret: "y"}}):
        with pytest.raises(ToolFailure) as failure:
            parse_arguments(ToolName.EXEC, arguments)
        assert secret not in failure.value.error.message


def test_content_above_the_limit_is_refused() -> None:
    arguments = {**BOX, "path": "x", "content": "x" * (CONTENT_LIMIT_CHARS + 1)}
    with pytest.raises(ToolFailure, match="at most"):
        parse_arguments(ToolName.WRITE_FILE, arguments)


def test_defaults() -> None:
    execute = parse_arguments(ToolName.EXEC, {**BOX, "command": "x"})
    assert isinstance(execute, ExecArguments)
    assert (execute.cwd, execute.output) == ("/home/daytona", "auto")
    read = parse_arguments(ToolName.READ_FILE, {**BOX, "path": "x"})
    assert isinstance(read, ReadFileArguments)
    assert (read.offset, read.limit) == (0, 2000)


def test_bytes_travel_as_base64() -> None:
    write = parse_arguments(ToolName.WRITE_FILE, {**BOX, "path": "x", "content": "AP8=", "encoding": "base64"})
    assert isinstance(write, WriteFileArguments)
    assert write.data() == b"\x00\xff"


def test_an_unknown_tool_is_answered_with_those_that_exist() -> None:
    with pytest.raises(ToolFailure) as failure:
        tool_named("daytona_explode")
    assert failure.value.error.hint is not None
    named = {tool for tool in ToolName if tool.value in failure.value.error.hint}
    assert named == set(MODEL_TOOLS), "no model is told of tools that are not for it"


@pytest.mark.parametrize("tool", ToolName)
def test_every_tool_has_a_strict_schema_and_words_for_a_model(tool: ToolName) -> None:
    schema = input_schema(tool)
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert description(tool)
    for name, field in schema.get("properties", {}).items():
        assert field.get("description"), f"{tool}.{name} has no description"
    assert tool in RESULTS
