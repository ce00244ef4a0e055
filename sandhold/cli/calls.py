"""`sandhold call`: tool calls from a shell, for agent runtimes in any language."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandhold.cli.identifiers import SessionArgument
from sandhold.cli.output import EXIT_OK, JsonFlag, exit_code, output, run

if TYPE_CHECKING:
    from sandhold.contracts.calls import CallEnvelope

# What the error of an envelope consists of; its other fields are printed where they say something.
_ERROR_KEYS = ("code", "message", "hint", "retryable", "ambiguous")


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
        return EXIT_OK if envelope.error is None else exit_code(envelope.error)

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


def _arguments(given: str) -> Any:
    from sandhold.cli.connecting import text_argument

    try:
        return json.loads(text_argument(given))
    except ValueError as error:
        raise typer.BadParameter(f"the arguments are not JSON: {error}") from error
