"""Work with commands that were started before: read their output, write to their input, signal them, clean up."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass

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
from activities.output import status_of, window
from activities.provider import ProviderAccess
from activities.refusals import sending_refused
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.commands import READ_WINDOW_BYTES, CommandAction, CommandResult
from sandhold.contracts.errors import SandboxSignal, ToolFailure
from sandhold.contracts.fields import CommandStatus
from sandhold.contracts.names import Activity
from sandhold.contracts.steps import CleanCommandsStep, ReadOutputStep, SandboxRef, SignalCommandStep, WriteInputStep
from sandhold.storage import SegmentReader, SessionStorage, Stream

REQUEST_WAIT_S = 8.0
"""How long one request waits for output."""
READ_WAIT_S = 30.0
"""How long one activity does."""
_NOTHING_RUNS = frozenset({SandboxSignal.NOT_STARTED.value, SandboxSignal.LOST.value})


@dataclass(frozen=True)
class _Found:
    """What there is of a command's output from the wanted offsets on."""

    status: CommandStatus
    exit_code: int | None
    stdout: Slice
    stderr: Slice
    hint: str | None = None


class CommandIoActivities:
    """The tool `daytona_command`, as far as it touches the sandbox."""

    def __init__(self, access: ProviderAccess, storage: SessionStorage) -> None:
        self._launcher = Launcher(access)
        self._storage = storage
        self._stored = SegmentReader(storage)

    @activity.defn(name=Activity.READ_OUTPUT)
    async def read_output(self, step: ReadOutputStep) -> CallOutcome:
        """Read the command's output from the offsets on, at most READ_WINDOW_BYTES of each stream.

        Waits, at most READ_WAIT_S, for output beyond the offsets or for the command's end. Reads session storage
        when the sandbox does not run or has cleaned the command away. Offsets count what the command wrote; no
        character is cut, so that the next window begins with a whole one.
        """
        async with heartbeats_if_wanted():
            found = await self._in_sandbox(step) or await self._in_storage(step)
            stdout, stdout_bytes = _window(found.stdout, step.stdout_offset, found.status)
            stderr, stderr_bytes = _window(found.stderr, step.stderr_offset, found.status)
            result = CommandResult(
                action=step.action,
                call_id=step.call_id,
                status=found.status,
                exit_code=found.exit_code,
                stdout=stdout,
                stderr=stderr,
                stdout_offset=step.stdout_offset + stdout_bytes,
                stderr_offset=step.stderr_offset + stderr_bytes,
                stdout_bytes=found.stdout.size,
                stderr_bytes=found.stderr.size,
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

    async def _in_sandbox(self, step: ReadOutputStep) -> _Found | None:
        """What the sandbox holds; None when it does not run, or no longer holds the command."""
        wanted = known = Position(step.call_id, step.stdout_offset, step.stderr_offset)
        until = time.monotonic() + min(step.wait_s, READ_WAIT_S, max(0.0, time_left_s() - ANSWER_MARGIN_S))
        while True:
            left_s = max(0.0, until - time.monotonic())
            order = read_request(wanted, known, wait_s=min(left_s, REQUEST_WAIT_S), budget_bytes=2 * READ_WINDOW_BYTES)
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
            found = _Found(
                step.status if known_end else status_of(report),
                step.exit_code if known_end else report.exit_code,
                report.stdout_slice,
                report.stderr_slice,
            )
            news = (
                _window(found.stdout, step.stdout_offset, found.status)[1],
                _window(found.stderr, step.stderr_offset, found.status)[1],
            )
            if any(news) or report.state != "running" or left_s <= 0:
                return found
            # Nothing yet, or half a character: wait for more than that.
            known = Position(
                step.call_id,
                max(step.stdout_offset, found.stdout.size),
                max(step.stderr_offset, found.stderr.size),
            )

    async def _in_storage(self, step: ReadOutputStep) -> _Found:
        """What session storage holds; the command is over, as nothing of it is in the sandbox."""
        stdout = await self._stored_slice(step, "stdout", step.stdout_offset)
        stderr = await self._stored_slice(step, "stderr", step.stderr_offset)
        hint = None
        if not stdout.size and not stderr.size:
            hint = (
                "No output of this command is kept outside of its sandbox. Either it wrote none, or all of it was in "
                "the answer to its daytona_exec."
            )
        status = "interrupted" if step.status == "running" else step.status
        return _Found(status, step.exit_code, stdout, stderr, hint)

    async def _stored_slice(self, step: ReadOutputStep, stream: Stream, offset: int) -> Slice:
        at = (step.ref.session_id, step.call_id, stream)
        return Slice(await self._stored.size(*at), offset, await self._stored.read(*at, offset, READ_WINDOW_BYTES))

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


def _window(piece: Slice, offset: int, status: CommandStatus) -> tuple[str, int]:
    """The text to show from `offset` on, and how many bytes it stands for."""
    raw = piece.beyond(offset)
    last = status != "running" and offset + len(raw) >= piece.size
    return window(raw, READ_WINDOW_BYTES, last=last)
