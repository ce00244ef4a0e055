"""What the command line prints: one JSON document, or text for people; and what each error means for a script.

With `--json` stdout holds exactly one JSON document, whatever happens. Everything else goes to stderr.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sandhold.contracts.base import Message
    from sandhold.contracts.errors import ToolError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_UNREACHABLE = 4
EXIT_INTERRUPTED = 130
_NOT_THERE = {"session_not_found", "session_ended", "sandbox_not_found", "sandbox_lost"}


class Output:
    """Where a command's answer goes. One per process, for one command at a time."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Nothing is chosen and nothing written yet."""
        self.as_json = False
        self._written = False

    def document(self, value: Any) -> None:
        """Print the one JSON document."""
        self._written = True
        typer.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))

    def show(self, value: Message, render: Callable[[], RenderableType]) -> None:
        """Print an answer: as JSON when that was asked for, else as `render` makes it."""
        self.show_data(value.model_dump(mode="json"), render)

    def show_data(self, value: Any, render: Callable[[], RenderableType]) -> None:
        if self.as_json:
            self.document(value)
            return
        from rich.console import Console

        Console(soft_wrap=True, highlight=False).print(render())

    def line(self, text: str) -> None:
        self._written = True
        typer.echo(text)

    def note(self, text: str) -> None:
        """Tell people something beside the answer."""
        typer.echo(text, err=True)

    def fail(self, message: str, code: str, hint: str | None = None, **details: Any) -> None:
        """Say what went wrong: on stderr, and with `--json` as the document, which also has the details."""
        self.note(f"error: {message}" + (f"\n{hint}" if hint else ""))
        if self.as_json and not self._written:
            self.document({"error": {"code": code, "message": message, "hint": hint, **details}})

    def usage_error(self, arguments: list[str]) -> None:
        """After the parser has explained on stderr what is wrong, the document that was asked for is still owed."""
        if not self._written and (self.as_json or "--json" in _before_command(arguments)):
            self.document(
                {"error": {"code": "usage", "message": "the command line is wrong; see stderr", "hint": None}}
            )


output = Output()


def _choose_json(chosen: bool) -> bool:
    output.as_json = output.as_json or chosen
    return chosen


JsonFlag = Annotated[
    bool, typer.Option("--json", callback=_choose_json, help="Print exactly one JSON document on stdout.")
]


def _before_command(arguments: list[str]) -> list[str]:
    """The part of the command line that is ours: what follows `--` belongs to the command to run."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def run(work: Callable[[], Awaitable[int]]) -> None:
    """Run a command's work and leave with its exit code; an expected error is told in a line, without a traceback."""
    try:
        code = asyncio.run(_guarded(work))
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    raise typer.Exit(code)


async def _guarded(work: Callable[[], Awaitable[int]]) -> int:
    from sandhold.settings import SettingsError

    try:
        return await work()
    except SettingsError as error:
        output.fail(str(error), "settings")
        return EXIT_USAGE
    except Exception as error:
        code = _exit_code_of(error)
        if code is None:
            raise
        output.fail(str(error), *_told(error))
        return code


def exit_code(error: ToolError) -> int:
    """The exit code of a tool call that came to this error."""
    return EXIT_NOT_FOUND if error.code in _NOT_THERE else EXIT_FAILED


def _exit_code_of(error: Exception) -> int | None:
    """The exit code of an error that a user can meet; None for a fault of ours."""
    from sandhold import client
    from sandhold.contracts.errors import ToolFailure
    from sandhold.schedules import ScheduleUnusable
    from sandhold.search_attributes import SearchAttributesUnusable
    from sandhold.security import KeyRingMissing, KeyRingUnusable, SecurityError

    if isinstance(error, KeyRingMissing | KeyRingUnusable):
        return EXIT_USAGE
    if isinstance(error, client.TemporalUnreachable | client.NamespaceMissing):
        return EXIT_UNREACHABLE
    if isinstance(error, client.InvalidRequest):
        return EXIT_USAGE
    if isinstance(error, client.SessionNotFound | client.SessionEnded):
        return EXIT_NOT_FOUND
    if isinstance(error, ToolFailure):
        return exit_code(error.error)
    # Whoever has not loaded the vault has none of its errors; it needs more packages than a client has.
    vault = sys.modules.get("sandhold.vault")
    if vault is not None and isinstance(error, vault.VaultError):
        return EXIT_USAGE if isinstance(error, vault.ValueRefused) else EXIT_FAILED
    if isinstance(error, client.SandholdError | SearchAttributesUnusable | ScheduleUnusable | SecurityError):
        return EXIT_FAILED
    return None


def _told(error: Exception) -> tuple[str, str | None]:
    """The code of an error, and the hint that it carries."""
    from sandhold.contracts.errors import ToolFailure

    if isinstance(error, ToolFailure):
        return error.error.code, error.error.hint
    return _name_of(error), getattr(error, "hint", None)


def _name_of(error: Exception) -> str:
    """`SessionNotFound` as `session_not_found`."""
    name = type(error).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
