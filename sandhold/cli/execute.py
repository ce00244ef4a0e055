"""`sandhold exec`: a command in a sandbox, followed live like one at hand."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from sandhold.cli.identifiers import SandboxArgument, SessionArgument
from sandhold.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, JsonFlag, output, run

if TYPE_CHECKING:
    from sandhold.client.commands import Command
    from sandhold.contracts.commands import CommandResult
    from sandhold.contracts.tools import ExecResult

EXIT_TIMED_OUT = 124
"""As `timeout(1)`."""
_LONGEST_MS = 24 * 3600 * 1000


def execute(
    session: SessionArgument,
    sandbox: SandboxArgument,
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND", help="One word is a shell script, several are a command.")
    ],
    cwd: Annotated[str | None, typer.Option(help="Directory to run in.")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.001, max=86400, help="Seconds after which the command is killed; by default a day."),
    ] = None,
    call_id: Annotated[str | None, typer.Option("--call-id", help="Run at most once under this id.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the call id once the command runs, and leave.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a command in a sandbox, print its output as it comes and exit with its code.

    Ctrl-C cancels the command, a second one leaves it running. The exit code is 124 when it was killed by its timeout.
    With --json its result is printed at the end instead of the output.
    """
    script = command[0] if len(command) == 1 else shlex.join(command)

    async def work() -> int:
        from sandhold.cli.connecting import connected
        from sandhold.client.calls import new_call_id

        chosen_id = call_id or new_call_id()
        asked = (await connected()).session(session)
        try:
            started = await asked.start(
                sandbox,
                script,
                cwd=cwd,
                timeout_ms=_LONGEST_MS if timeout is None else max(1, round(timeout * 1000)),
                output="full",
                call_id=chosen_id,
            )
        except (KeyboardInterrupt, asyncio.CancelledError):
            output.note(f"the command may go on; the same command with --call-id {chosen_id} attaches to it again")
            raise
        if detach:
            if output.as_json:
                output.document({"call_id": chosen_id, "sandbox_id": sandbox})
            else:
                output.line(chosen_id)
            return 0
        result = await _followed(started)
        if result is None:
            output.note(f"detached; the same command with --call-id {chosen_id} attaches to it again")
            return EXIT_INTERRUPTED
        if output.as_json:
            output.document(result.model_dump(mode="json"))
        else:
            _tell(result)
        return _exit_code(result)

    run(work)


def show_output(
    session: SessionArgument,
    sandbox: SandboxArgument,
    call_id: Annotated[str, typer.Argument(metavar="CALL_ID", help="The command: the call id of its daytona_exec.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the command has ended.")] = False,
) -> None:
    """Print what a command has written so far: stdout on stdout, stderr on stderr, byte for byte."""

    async def work() -> int:
        from sandhold.cli.connecting import connected

        command = (await connected()).session(session).command(sandbox, call_id)
        await _print_output(command, follow=follow)
        return 0

    run(work)


async def _followed(command: Command) -> ExecResult | None:
    """Print the output until the command has ended; None when the user has left it running."""
    interrupts: asyncio.Queue[None] = asyncio.Queue()
    following = asyncio.ensure_future(_print_output(command))
    with _interrupts_into(interrupts):
        cancelling: asyncio.Future[CommandResult] | None = None
        while not following.done():
            interrupt = asyncio.ensure_future(interrupts.get())
            await asyncio.wait({following, interrupt}, return_when=asyncio.FIRST_COMPLETED)
            if not interrupt.done():
                interrupt.cancel()
                break
            if cancelling is not None:
                following.cancel()
                cancelling.cancel()
                return None
            output.note("cancelling the command; Ctrl-C again leaves it running")
            cancelling = asyncio.ensure_future(command.cancel())
        if cancelling is not None:
            await cancelling
        await following
        return await command.wait()


async def _print_output(command: Command, *, follow: bool = True) -> None:
    async for chunk in command.output(follow=follow):
        if output.as_json:
            continue
        target = sys.stdout if chunk.stream == "stdout" else sys.stderr
        target.buffer.write(chunk.data)
        target.flush()


@contextlib.contextmanager
def _interrupts_into(queue: asyncio.Queue[None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, queue.put_nowait, None)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _tell(result: ExecResult) -> None:
    if result.status != "completed":
        output.note(f"the command was {result.status.replace('_', ' ')}")
    if result.hint and result.status != "completed":
        output.note(result.hint)


def _exit_code(result: ExecResult) -> int:
    match result.status:
        case "timed_out":
            return EXIT_TIMED_OUT
        case "cancelled":
            return EXIT_INTERRUPTED
        case _:
            return EXIT_FAILED if result.exit_code is None else result.exit_code
