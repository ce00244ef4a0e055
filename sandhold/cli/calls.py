"""`sandhold call` and `sandhold exec`: tool calls from a shell, for agent runtimes in any language."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandhold.cli.identifiers import SandboxArgument, SessionArgument
from sandhold.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOT_FOUND,
    EXIT_OK,
    JsonFlag,
    output,
    run,
)

if TYPE_CHECKING:
    from sandhold.contracts.calls import CallEnvelope
    from sandhold.contracts.errors import ToolError
    from sandhold.contracts.tools import ExecResult

EXIT_TIMED_OUT = 124
"""As `timeout(1)`."""
# What the error of an envelope consists of; its other fields are printed where they say something.
_ERROR_KEYS = ("code", "message", "hint", "retryable", "ambiguous")
_NOT_THERE = {"session_not_found", "session_ended", "sandbox_not_found", "sandbox_lost"}


def call(
    session: SessionArgument,
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="For example daytona_exec.")],
    arguments: Annotated[
        str, typer.Argument(metavar="JSON", help="The tool's arguments; `-` for stdin, @file for a file.")
    ] = "{}",
    call_id: Annotated[
        str | None, typer.Option("--call-id", help="The model's tool-call id; a call never runs twice under one id.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return as soon as the call is under way.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds to wait; the call itself goes on.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Call a tool of a session and print its envelope as JSON."""
    parsed = _arguments(arguments)

    async def work() -> int:
        from sandhold.cli.connecting import connected

        asked = (await connected()).session(session)
        envelope = await asked.call(tool, parsed, call_id, wait=not no_wait, timeout=timeout)
        output.document(printed(envelope))
        return EXIT_OK if envelope.error is None else _exit_code(envelope.error)

    run(work)


def execute(
    session: SessionArgument,
    sandbox: SandboxArgument,
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND", help="One word is a shell script, several are a command.")
    ],
    cwd: Annotated[str | None, typer.Option(help="Directory to run in.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds after which the command is killed.")] = None,
    call_id: Annotated[str | None, typer.Option("--call-id", help="Run at most once under this id.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a command in a sandbox, print its output and exit with its code.

    124 when it was killed by its timeout; with --json the call's envelope is printed.
    """
    script = command[0] if len(command) == 1 else shlex.join(command)
    arguments: dict[str, Any] = {"sandbox_id": sandbox, "command": script, "output": "full"}
    if cwd is not None:
        arguments["cwd"] = cwd
    if timeout is not None:
        arguments["timeout"] = max(1, round(timeout * 1000))

    async def work() -> int:
        from sandhold.cli.connecting import connected
        from sandhold.client.calls import new_call_id
        from sandhold.contracts.tools import ExecResult

        chosen_id = call_id or new_call_id()
        asked = (await connected()).session(session)
        try:
            envelope = await asked.call("daytona_exec", arguments, chosen_id)
        except BaseException:
            output.note(f"the command may go on; the same command with --call-id {chosen_id} waits for it again")
            raise
        if output.as_json:
            output.document(printed(envelope))
        if envelope.error is not None:
            if not output.as_json:
                output.fail(envelope.error.message, envelope.error.code, envelope.error.hint)
            return _exit_code(envelope.error)
        result = ExecResult.model_validate(envelope.result)
        if not output.as_json:
            _write(result)
        return _exit_code_of_command(result)

    run(work)


def printed(envelope: CallEnvelope) -> dict[str, Any]:
    """The envelope with exactly the keys that scripts rely on."""
    keys = {"call_id", "session_id", "sandbox_id", "tool", "status", "ok", "result", "error"}
    document = envelope.model_dump(mode="json", include=keys)
    if document["error"] is not None:
        document["error"] = {
            name: value for name, value in document["error"].items() if name in _ERROR_KEYS or value is not None
        }
    return document


def _exit_code(error: ToolError) -> int:
    return EXIT_NOT_FOUND if error.code in _NOT_THERE else EXIT_FAILED


def _exit_code_of_command(result: ExecResult) -> int:
    if result.status == "timed_out":
        return EXIT_TIMED_OUT
    if result.status == "cancelled":
        return EXIT_INTERRUPTED
    return EXIT_FAILED if result.exit_code is None else result.exit_code


def _write(result: ExecResult) -> None:
    sys.stdout.write(result.stdout)
    sys.stdout.flush()
    sys.stderr.write(result.stderr)
    if result.status != "completed":
        output.note(f"the command was {result.status.replace('_', ' ')}")
    if result.truncated:
        output.note(f"output was left out: {result.stdout_bytes} bytes on stdout, {result.stderr_bytes} on stderr")
    if result.hint:
        output.note(result.hint)


def _arguments(given: str) -> Any:
    from sandhold.cli.connecting import text_argument

    try:
        return json.loads(text_argument(given))
    except ValueError as error:
        raise typer.BadParameter(f"the arguments are not JSON: {error}") from error
