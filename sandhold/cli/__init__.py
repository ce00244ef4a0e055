"""The command line, `sandhold`. Each command's module is loaded only when the command runs."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from sandhold.cli.output import EXIT_INTERRUPTED, EXIT_USAGE, JsonFlag, output

# Name, where it lives, and its line in the list of commands.
COMMANDS = {
    "demo": ("sandhold.cli.demo:demo", "Run the main job: a scripted agent works in a durable session."),
    "dev": ("sandhold.cli.dev:dev", "Keep the whole stack up on this machine until Ctrl-C."),
    "session": ("sandhold.cli.sessions:app", "Start, list, show and end agent sessions."),
    "call": ("sandhold.cli.calls:call", "Call a tool of a session; prints its envelope."),
    "exec": ("sandhold.cli.execute:execute", "Run a command in a sandbox; exits with the command's own code."),
    "output": ("sandhold.cli.execute:show_output", "Print the output of a command while it runs or after."),
    "files": ("sandhold.cli.files:app", "List, get, put and remove the files of a session in storage."),
    "secrets": ("sandhold.cli.secrets:app", "Set, list and remove the secrets of a session."),
    "storage": ("sandhold.cli.storage:app", "Look after the storage of all sessions."),
    "keys": ("sandhold.cli.keys:app", "Keep the keys under which everything is encrypted."),
    "tools": ("sandhold.cli.tools:tools", "Print the tools for an agent runtime."),
    "connect": ("sandhold.cli.connections:app", "Connect an owner to a provider: asks for a key and checks it."),
    "connections": ("sandhold.cli.connections:connections", "List the connections of owners, with masked keys."),
    "disconnect": ("sandhold.cli.connections:disconnect", "Forget an owner's connection."),
    "doctor": ("sandhold.cli.doctor:doctor", "Check that everything this deployment needs is there."),
    "setup": ("sandhold.cli.setup:setup", "Prepare a Temporal namespace: search attributes, current build."),
    "console": ("sandhold.cli.console:console", "Let operators read payloads in Temporal's Web UI."),
    "worker": ("sandhold.cli.processes:worker", "Run a worker from a checkout of the repository."),
    "local-daytona": ("sandhold.cli.processes:local_daytona", "Run the local Daytona server."),
}


class LazyCommands(TyperGroup):
    """Lists the commands without loading them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(name=cmd_name, help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, _load(name) if listed is not None and name is not None else listed, rest


def _load(name: str) -> Any:
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False)
        found.command(name, context_settings=getattr(function, "context_settings", None))(function)
    command = typer.main.get_command(found)
    command.name = name
    return command


app = typer.Typer(
    name="sandhold",
    cls=LazyCommands,
    help="Durable owners for the sandboxes of AI-agent sessions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        output.line(f"sandhold {version('sandhold')}")
        raise typer.Exit


@app.callback()
def root(
    as_json: JsonFlag = False,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Folder of the embedded default; sets SANDHOLD_DATA_DIR.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if data_dir is not None:
        os.environ["SANDHOLD_DATA_DIR"] = str(data_dir)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code.

    0 ok, 1 tool error, 2 usage, 3 session or sandbox not found or ended, 4 Temporal unreachable, 130 interrupted;
    `exec` the command's own.
    """
    output.begin()
    try:
        app(arguments)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    if code == EXIT_USAGE:
        output.usage_error(arguments)
    return code


def main() -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    code = run(sys.argv[1:])
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter sometimes aborts at exit after Temporal's client ran (sdk-python#300).
    os._exit(code)
