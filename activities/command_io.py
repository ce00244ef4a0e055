"""Work with commands that were started before: read their output, write to their input, signal them, clean up."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass, replace

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.deadlines import time_left_s
from activities.heartbeats import heartbeats_if_wanted
from activities.launcher import (
    LauncherRequest,
    Position,
    Slice,
    clean_request,
    inline_input,
    read_request,
    signal_request,
    write_request,
)
from activities.launcher.access import ANSWER_MARGIN_S, Launcher, only_report, torn
from activities.outcomes import failed_outcome, outcome_of
from activities.output import status_of, whole_characters
from activities.provider import ProviderAccess
from activities.redactors import Redactors, as_text, window_of
from activities.refusals import sending_refused
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.commands import READ_WINDOW_BYTES, CommandAction, CommandResult
from sandhold.contracts.errors import SandboxSignal, ToolFailure
from sandhold.contracts.fields import CommandStatus
from sandhold.contracts.names import Activity
from sandhold.contracts.steps import CleanCommandsStep, ReadOutputStep, SandboxRef, SignalCommandStep, WriteInputStep
from sandhold.security.redaction import Redactor
from sandhold.storage import OutputWindow, SegmentReader, SessionStorage

REQUEST_WAIT_S = 8.0
"""How long one request waits for output."""
READ_WAIT_S = 30.0
"""How long one activity does."""
_NOTHING_RUNS = frozenset({SandboxSignal.NOT_STARTED.value, SandboxSignal.LOST.value})


@dataclass(frozen=True)
class _Found:
    """What there is of a command's output from the wanted offsets on, as it may be shown."""

    status: CommandStatus
    exit_code: int | None
    stdout: OutputWindow
    stderr: OutputWindow
    stdout_bytes: int
    stderr_bytes: int
    """How many bytes the command has written."""
    hint: str | None = None


class CommandIoActivities:
    """The tool `daytona_command`, as far as it touches the sandbox."""

    def __init__(self, access: ProviderAccess, storage: SessionStorage, redactors: Redactors) -> None:
        self._launcher = Launcher(access)
        self._storage = storage
        self._stored = SegmentReader(storage)
        self._redactors = redactors

    @activity.defn(name=Activity.READ_OUTPUT)
    async def read_output(self, step: ReadOutputStep) -> CallOutcome:
        """Read the command's output from the offsets on, at most READ_WINDOW_BYTES of each stream.

        Waits, at most READ_WAIT_S, for output beyond the offsets or for the command's end. Reads session storage
        when the sandbox does not run or has cleaned the command away. Offsets count what the command wrote; no
        character is cut, so that the next window begins with a whole one, and no secret: what may be the beginning of
        one is left for the next window while the command runs.
        """
        async with heartbeats_if_wanted():
            redactor = await self._redactors.of(step.ref, fresh=True)
            found = await self._in_sandbox(step, redactor) or await self._in_storage(step)
            result = CommandResult(
                action=step.action,
                call_id=step.call_id,
                status=found.status,
                exit_code=found.exit_code,
                stdout=as_text(found.stdout.data, redactor),
                stderr=as_text(found.stderr.data, redactor),
                stdout_offset=found.stdout.end,
                stderr_offset=found.stderr.end,
                stdout_bytes=found.stdout_bytes,
                stderr_bytes=found.stderr_bytes,
                redactions=found.stdout.redactions + found.stderr.redactions,
                hint=found.hint,
            )
            return await outcome_of(self._storage, step.ref.session_id, step.reader, result)

    @activity.defn(name=Activity.WRITE_INPUT)
    async def write_input(self, step: WriteInputStep) -> CallOutcome:
        """Write to the command's standard input, and end it if asked to, once for each call id of a writer.

        When this returns the command will get the data in its turn, whenever it reads. What cannot be written is
        an outcome.
        """
        async with heartbeats_if_wanted():
            data = base64.b64decode(step.data)
            text = inline_input(data)
            upload_path = await self._launcher.upload(step.ref, data, "input") if text is None else None
            order = write_request(step.writer, step.call_id, close=step.close, text=text or "", upload_path=upload_path)
            return await self._send(step.ref, order, "write", step.call_id)

    @activity.defn(name=Activity.SIGNAL_COMMAND)
    async def signal_command(self, step: SignalCommandStep) -> CallOutcome:
        """Send a signal to the command and what it started, at most once for each call id of a sender."""
        async with heartbeats_if_wanted():
            order = signal_request(step.sender, step.call_id, step.signal)
            return await self._send(step.ref, order, "signal", step.call_id)

    @activity.defn(name=Activity.CLEAN_COMMANDS)
    async def clean_commands(self, step: CleanCommandsStep) -> None:
        """Remove the folders of old calls from the sandbox; what they were is remembered, so that none runs again."""
        async with heartbeats_if_wanted():
            try:
                await self._launcher.ask(step.ref, clean_request(step.keep))
            except ApplicationError as error:
                # The next time will do.
                if error.type not in _NOTHING_RUNS:
                    raise

    async def _in_sandbox(self, step: ReadOutputStep, redactor: Redactor) -> _Found | None:
        """What the sandbox holds; None when it does not run, or no longer holds the command."""
        # What stands before an offset tells whether it is in the middle of a secret, and what follows a window whether
        # it ends in one.
        wanted = Position(
            step.call_id,
            max(0, step.stdout_offset - redactor.longest),
            max(0, step.stderr_offset - redactor.longest),
        )
        budget_bytes = 2 * (READ_WINDOW_BYTES + 3 * redactor.longest)
        known = Position(step.call_id, step.stdout_offset, step.stderr_offset)
        until = time.monotonic() + min(step.wait_s, READ_WAIT_S, max(0.0, time_left_s() - ANSWER_MARGIN_S))
        while True:
            left_s = max(0.0, until - time.monotonic())
            order = read_request(wanted, known, wait_s=min(left_s, REQUEST_WAIT_S), budget_bytes=budget_bytes)
            try:
                # Nothing is concluded about a command that is known to be over.
                report = only_report(await self._launcher.ask(step.ref, order, sure=step.status == "running"))
            except ApplicationError as error:
                if error.type in _NOTHING_RUNS:
                    return None
                raise
            if report.state in {"absent", "cleaned"}:
                return None
            if report.stdout_slice is None or report.stderr_slice is None:
                raise torn("the launcher did not tell the sizes of the output")
            known_end = step.status != "running"
            status = step.status if known_end else status_of(report)
            found = _Found(
                status,
                step.exit_code if known_end else report.exit_code,
                _live(report.stdout_slice, wanted.stdout, step.stdout_offset, redactor, over=status != "running"),
                _live(report.stderr_slice, wanted.stderr, step.stderr_offset, redactor, over=status != "running"),
                report.stdout_slice.size,
                report.stderr_slice.size,
            )
            news = found.stdout.end > step.stdout_offset or found.stderr.end > step.stderr_offset
            if news or report.state != "running" or left_s <= 0:
                return found
            # Nothing yet, or half a character, or what may become a secret: wait for more than that.
            known = Position(
                step.call_id,
                max(step.stdout_offset, found.stdout_bytes),
                max(step.stderr_offset, found.stderr_bytes),
            )

    async def _in_storage(self, step: ReadOutputStep) -> _Found:
        """What session storage holds; the command is over, as nothing of it is in the sandbox."""
        at = (step.ref.session_id, step.call_id)
        stdout_bytes = (await self._stored.extent(*at, "stdout")).size
        stderr_bytes = (await self._stored.extent(*at, "stderr")).size
        stdout = await self._stored.read(*at, "stdout", step.stdout_offset, READ_WINDOW_BYTES)
        stderr = await self._stored.read(*at, "stderr", step.stderr_offset, READ_WINDOW_BYTES)
        hint = None
        if not stdout_bytes and not stderr_bytes:
            hint = (
                "No output of this command is kept outside of its sandbox. Either it wrote none, or all of it was in "
                "the answer to its daytona_exec."
            )
        status = "interrupted" if step.status == "running" else step.status
        return _Found(
            status,
            step.exit_code,
            _uncut(stdout, stdout_bytes, over=True),
            _uncut(stderr, stderr_bytes, over=True),
            stdout_bytes,
            stderr_bytes,
            hint,
        )

    async def _send(self, ref: SandboxRef, order: LauncherRequest, action: CommandAction, call_id: str) -> CallOutcome:
        try:
            answer = await self._launcher.ask(ref, order)
            if answer.refusal is not None:
                raise sending_refused(answer.refusal, call_id)
        except ToolFailure as failure:
            return failed_outcome(failure)
        report = only_report(answer)
        result = CommandResult(action=action, call_id=call_id, status=status_of(report), exit_code=report.exit_code)
        return CallOutcome(result=result.model_dump(mode="json"))


def _live(piece: Slice, wanted: int, offset: int, redactor: Redactor, *, over: bool) -> OutputWindow:
    """What may be shown of a slice from `offset` on, of which everything from `wanted` on was asked for."""
    data = piece.beyond(wanted)
    stream = redactor.stream()
    pieces = stream.feed(data)
    if over and wanted + len(data) >= piece.size:
        pieces += stream.end()
    return _uncut(window_of(pieces, wanted, offset, READ_WINDOW_BYTES), piece.size, over=over)


def _uncut(output: OutputWindow, written: int, *, over: bool) -> OutputWindow:
    """The window without a character that its end cuts, unless nothing follows."""
    if over and output.end >= written:
        return output
    cut = len(output.data) - whole_characters(output.data)
    return replace(output, size=output.size - cut, data=output.data[: len(output.data) - cut])
