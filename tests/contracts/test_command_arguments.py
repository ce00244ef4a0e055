"""The arguments of `daytona_command`: each action takes its own, needs its own, and no other's."""

from __future__ import annotations

import base64
from typing import Any, get_args

import pytest

from sandhold.contracts.commands import (
    INPUT_LIMIT_CHARS,
    WAIT_LIMIT_MS,
    CommandAction,
    CommandArguments,
)
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import ToolName
from sandhold.contracts.tools import parse_arguments

ACTIONS = get_args(CommandAction)
CALL = {"call_id": "toolu_01"}
LEAST: dict[str, dict[str, Any]] = {
    "read": CALL,
    "wait": CALL,
    "write": {**CALL, "input": "x"},
    "signal": {**CALL, "signal": "TERM"},
    "cancel": CALL,
    "list": {},
}
OWN: dict[str, dict[str, Any]] = {
    "stdout_offset": {"value": 7, "actions": {"read", "wait"}},
    "stderr_offset": {"value": 7, "actions": {"read", "wait"}},
    "wait_ms": {"value": 7, "actions": {"read", "wait"}},
    "input": {"value": "x", "actions": {"write"}},
    "encoding": {"value": "text", "actions": {"write"}},
    "close": {"value": True, "actions": {"write"}},
    "signal": {"value": "INT", "actions": {"signal"}},
    "call_id": {"value": "c", "actions": set(ACTIONS) - {"list"}},
}


def parsed(action: str, **arguments: Any) -> CommandArguments:
    found = parse_arguments(ToolName.COMMAND, {"sandbox_id": "box", "action": action, **arguments})
    assert isinstance(found, CommandArguments)
    return found


def refused(action: str, **arguments: Any) -> str:
    with pytest.raises(ToolFailure) as failure:
        parsed(action, **arguments)
    assert failure.value.error.code is ErrorCode.INVALID_ARGUMENTS
    return failure.value.error.message


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_is_taken_with_the_least_it_needs(action: str) -> None:
    assert parsed(action, **LEAST[action]).action == action


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_takes_its_own_arguments_and_refuses_those_of_others_by_name(action: str) -> None:
    for name, own in OWN.items():
        given = {**LEAST[action], name: own["value"]}
        if action in own["actions"]:
            parsed(action, **given)
        else:
            assert name in refused(action, **given)


@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "list"])
def test_an_action_on_a_command_needs_its_call_id(action: str) -> None:
    assert "call_id" in refused(action, **{name: value for name, value in LEAST[action].items() if name != "call_id"})


@pytest.mark.parametrize(
    ("action", "arguments", "said"),
    [
        ("signal", CALL, "needs signal"),
        ("signal", {**CALL, "signal": "SEGV"}, "signal"),
        ("signal", {**CALL, "signal": "SIGTERM"}, "signal"),
        ("write", CALL, "needs input"),
        ("write", {**CALL, "input": "", "close": False}, "needs input"),
        ("write", {**CALL, "input": "a", "encoding": "base64"}, "base64"),
        ("write", {**CALL, "input": "\ud800"}, "nicode"),
        ("write", {**CALL, "input": "x" * (INPUT_LIMIT_CHARS + 1)}, "input"),
        ("read", {**CALL, "stdout_offset": -1}, "stdout_offset"),
        ("read", {**CALL, "wait_ms": WAIT_LIMIT_MS + 1}, "wait_ms"),
        ("read", {"call_id": "no id!"}, "call_id"),
        ("read", {"call_id": "c" * 129}, "call_id"),
        ("explode", CALL, "action"),
        ("read", {**CALL, "sandbox_id": "Big Box"}, "sandbox_id"),
        ("read", {**CALL, "offset": 1}, "offset"),
    ],
)
def test_what_is_missing_or_wrong_is_named(action: str, arguments: dict[str, Any], said: str) -> None:
    assert said in refused(action, **arguments)


def test_closing_needs_no_input() -> None:
    assert parsed("write", **CALL, close=True).data() == b""


def test_input_is_text_or_base64() -> None:
    raw = b"\x00\xff"
    assert parsed("write", **CALL, input="é\n").data() == "é\n".encode()
    binary = parsed("write", **CALL, input=base64.b64encode(raw).decode(), encoding="base64")
    assert binary.data() == raw
    assert base64.b64decode(binary.data_base64()) == raw


def test_wrong_base64_is_not_repeated_in_the_error() -> None:
    assert "s3cret" not in refused("write", **CALL, input="s3cret!", encoding="base64")
