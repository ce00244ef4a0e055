"""`sandhold exec` and `sandhold output`: a command in a sandbox, followed live like one at hand.

Who leaves, and what becomes of the command then: Ctrl-C and a closed stdout cancel it, as they end a command at hand.
A second Ctrl-C, SIGTERM and a closed terminal leave it running, and so does everything that fails on the way to it.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandhold.cli import interrupts, streams
from sandhold.cli.calls import printed
from sandhold.cli.identifiers import SandboxArgument, SessionArgument
from sandhold.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, JsonFlag, exit_code, output, run

if TYPE_CHECKING:
    from sandhold.client import Session
    from sandhold.client.commands import Command
    from sandhold.contracts.tools import ExecResult

EXIT_TIMED_OUT = 124
"""As `timeout(1)`."""
EXIT_CLOSED = 128 + signal.SIGPIPE
"""As the shell tells it of a command at hand whose output nobody reads."""
_LONGEST_MS = 24 * 3600 * 1000
_LAST_INPUT = ".in.999999999999"
"""What the call id of the last piece of input has behind the command's, at the most."""


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
    call_id: Annotated[
        str | None, typer.Option("--call-id", help="Run at most once under this id; attach when it runs already.")
    ] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Pass standard input on; without it the command's is empty.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the call id once the command runs, and leave.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a command in a sandbox, print its output as it comes and exit with its code.

    Ctrl-C cancels the command, and so does closing stdout (exit code 141). A second Ctrl-C at once, or SIGTERM,
    leaves it running.
    The exit code is 124 when it was killed by its timeout, 130 when it was cancelled.
    With --json the call's envelope is printed at the end instead of the output.
    """
    if stdin and detach:
        raise typer.BadParameter("--stdin needs this process to stay: it cannot be given with --detach")
    if stdin and call_id is not None and not _has_room_for_input(call_id):
        raise typer.BadParameter(f"with --stdin a call id is at most {128 - len(_LAST_INPUT)} characters long")
    script = command[0] if len(command) == 1 else shlex.join(command)

    async def work() -> int:
        from sandhold.cli.connecting import connected
        from sandhold.client.calls import new_call_id

        asked = (await connected()).session(session)
        ordered = Ordered(asked, sandbox, script, cwd, timeout, call_id or new_call_id(), stdin)
        return await _guarded(ordered, detach=detach)

    run(work)


def show_output(
    session: SessionArgument,
    sandbox: SandboxArgument,
    call_id: Annotated[str, typer.Argument(metavar="CALL_ID", help="The command: the call id of its daytona_exec.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the command has ended.")] = False,
) -> None:
    """Print what a command has written so far: stdout on stdout, stderr on stderr, byte for byte.

    Leaving it, in whatever way, does nothing to the command.
    """
    if output.as_json:
        raise typer.BadParameter("the output of a command is not JSON; `exec --json` prints its result")

    async def work() -> int:
        from sandhold.cli.connecting import connected

        command = (await connected()).session(session).command(sandbox, call_id)
        try:
            await _print_output(command, follow=follow)
        except BrokenPipeError:
            return EXIT_CLOSED
        return 0

    run(work)


@dataclass(frozen=True)
class Ordered:
    """The command that was asked for."""

    session: Session
    sandbox_id: str
    script: str
    cwd: str | None
    timeout_s: float | None
    call_id: str
    stdin: bool

    async def start(self) -> Command:
        """Start it, or attach to it."""
        return await self.session.start(
            self.sandbox_id,
            self.script,
            cwd=self.cwd,
            timeout_ms=_LONGEST_MS if self.timeout_s is None else max(1, round(self.timeout_s * 1000)),
            output="full",
            stdin=self.stdin or None,
            call_id=self.call_id,
        )

    def document(self, status: str, **fields: Any) -> dict[str, Any]:
        """The envelope to print."""
        from sandhold.contracts.calls import CallEnvelope
        from sandhold.contracts.names import ToolName

        envelope = {
            "call_id": self.call_id,
            "session_id": self.session.session_id,
            "sandbox_id": self.sandbox_id,
            "tool": ToolName.EXEC,
            "status": status,
            **fields,
        }
        return printed(CallEnvelope.model_validate(envelope))

    def tell_how_to_attach(self, what: str) -> None:
        output.note(f"{what}; the same command with --call-id {self.call_id} attaches to it again")


async def _guarded(ordered: Ordered, *, detach: bool) -> int:
    """Run the command, and tell whatever comes in its way."""
    from sandhold.contracts.errors import ToolFailure

    try:
        return await (_begin(ordered) if detach else _run(ordered))
    except interrupts.Left as left:
        ordered.tell_how_to_attach("left; the command " + ("is being cancelled" if left.cancelling else "goes on"))
        if output.as_json:
            output.document(ordered.document("running"))
        return left.exit_code
    except ToolFailure as failure:
        error = failure.error
        if error.ambiguous or error.retryable:
            ordered.tell_how_to_attach("the command may go on")
        if output.as_json:
            output.document(ordered.document("done", ok=False, error=error))
        output.fail(error.message, error.code, error.hint)
        return exit_code(error)
    except (Exception, asyncio.CancelledError):
        ordered.tell_how_to_attach("the command may go on")
        raise


async def _begin(ordered: Ordered) -> int:
    """Start the command and leave it."""
    await ordered.start()
    if output.as_json:
        output.document(ordered.document("running"))
    else:
        output.line(ordered.call_id)
    return 0


async def _run(ordered: Ordered) -> int:
    """Run the command to its end; what this process exits with."""
    starting = asyncio.ensure_future(ordered.start())

    async def work() -> ExecResult:
        command = await starting
        feeding = asyncio.ensure_future(_feed(command)) if ordered.stdin else None
        try:
            return await _until_end(command, feeding)
        finally:
            if feeding is not None:
                feeding.cancel()

    async def cancel() -> None:
        await asyncio.wait({starting})
        if starting.exception() is None:
            await starting.result().cancel()

    try:
        result = await interrupts.followed(work(), cancel)
    except BrokenPipeError:
        await (await starting).cancel()
        return EXIT_CLOSED
    finally:
        starting.cancel()
    if output.as_json:
        output.document(ordered.document("done", ok=True, result=result.model_dump(mode="json")))
    elif result.status != "completed":
        output.note(f"the command was {result.status.replace('_', ' ')}" + (f"\n{result.hint}" if result.hint else ""))
    elif result.output_files is not None and not result.output_files.whole:
        output.note("not all of the output was kept" + (f"\n{result.hint}" if result.hint else ""))
    return _exit_code_of(result)


async def _until_end(command: Command, feeding: asyncio.Future[None] | None) -> ExecResult:
    """The result of the command once all of its output is printed, or at once what keeps its input from it."""
    ending = asyncio.ensure_future(_printed_to_the_end(command))
    try:
        if feeding is not None:
            either: set[asyncio.Future[Any]] = {ending, feeding}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                feeding.result()
        return await ending
    finally:
        ending.cancel()


async def _printed_to_the_end(command: Command) -> ExecResult:
    if not output.as_json:
        await _print_output(command)
    return await command.wait()


async def _print_output(command: Command, *, follow: bool = True) -> None:
    """Print the output as it comes. Raises BrokenPipeError when nobody reads it any more."""
    async for chunk in command.output(follow=follow):
        await streams.write(sys.stdout if chunk.stream == "stdout" else sys.stderr, chunk.data)


async def _feed(command: Command) -> None:
    """Pass our standard input on to its end, or until the command reads no more.

    Attached again with the same input, nothing of it is written twice and nothing is left out. Raises ToolFailure when
    a command that goes on cannot get the rest of it.
    """
    from sandhold.contracts.errors import ErrorCode, ToolFailure

    try:
        await command.feed(lambda limit: streams.read(sys.stdin, limit))
    except ToolFailure as failure:
        # Input to a command that is over is lost at hand as well.
        if failure.error.code is ErrorCode.CONFLICT:
            return
        if (await command.state()).status == "running":
            # Whoever followed it now would perhaps wait for ever, as the command does for its input.
            output.note("the command goes on, and the end of its input has not come")
            raise
        output.note(f"input was not passed on: {failure}")


def _has_room_for_input(call_id: str) -> bool:
    from sandhold.contracts.names import is_call_id

    return not is_call_id(call_id) or is_call_id(call_id + _LAST_INPUT)


def _exit_code_of(result: ExecResult) -> int:
    match result.status:
        case "timed_out":
            return EXIT_TIMED_OUT
        case "cancelled":
            return EXIT_INTERRUPTED
        case _:
            return EXIT_FAILED if result.exit_code is None else result.exit_code
