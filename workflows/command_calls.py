"""The tool `daytona_command`: calls about a command that another call has started."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from temporalio import workflow

from workflows.command_results import row_of_call
from workflows.commands import Commands
from workflows.ledger import Call, Ledger
from workflows.lifecycle import Lifecycle
from workflows.patches import Patch
from workflows.steps import step_in_two_tries
from workflows.waiting import until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import ANSWER_WITHIN_S, CallOutcome
    from sandhold.contracts.commands import WAIT_LIMIT_MS, CommandArguments, CommandResult, CommandRow
    from sandhold.contracts.errors import ErrorCode, ToolFailure
    from sandhold.contracts.names import COMMAND_TOOLS, Activity, ToolName
    from sandhold.contracts.sandboxes import CommandRecord
    from sandhold.contracts.steps import ReadOutputStep, SignalCommandStep, WriteInputStep
    from sandhold.contracts.tools import parse_arguments

_QUICK_READ_WAIT_S = 6.0
_SLOW_READ_WAIT_S = 25.0
"""How long one reading activity waits for output, before and after the call was answered `running`."""
_LAST_WORDS_S = 20.0
"""How long a cancelled command may take to end."""
_ON_RECORD_WITHIN_S = 60.0
"""How long a command that is being started is waited for: its first request takes up to 8 s, the start of its sandbox
may come before that."""


class CommandCalls:
    """Reads, waits for, feeds, signals, cancels and lists commands. Never starts a stopped sandbox: no command runs in
    it, and the output of those that did is in storage.

    A command is known from the admission of its call on, though it comes on record only with its first request."""

    def __init__(self, commands: Commands, ledger: Ledger, call_off: Callable[[Call], bool]) -> None:
        """`call_off` ends a call whose command is not being started yet, and says whether it did."""
        self._commands = commands
        self._ledger = ledger
        self._call_off = call_off
        self._lifecycle: Lifecycle

    def attach(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def outcome(self, call: Call) -> CallOutcome:
        """Carry the call out. Raises ToolFailure, or ActivityError as the step left it."""
        request = call.entry.request
        assert request is not None
        asked = parse_arguments(ToolName.COMMAND, request.arguments)
        assert isinstance(asked, CommandArguments)
        if asked.call_id is None:
            return _outcome(CommandResult(action=asked.action, commands=self._rows()))
        if asked.action == "cancel":
            return await self._cancel(call, asked.call_id)
        record = await self._on_record(call, asked, asked.call_id)
        if record is None:
            return _not_started_yet(asked)
        match asked.action:
            case "read":
                return await self._read(call, asked, record)
            case "wait":
                return await self._wait(call, asked, record)
            case _:
                return await self._send(call, asked, record)

    def _rows(self) -> list[CommandRow]:
        """All commands, those that started last first."""
        starting = [row_of_call(each.entry) for each in self._ledger.running() if self._starting(each.call_id)]
        return [*reversed(starting), *self._commands.rows()]

    def _starting(self, command: str) -> Call | None:
        """The running call of a command that is not on record yet."""
        call = self._ledger.get(command)
        if call is None or not call.running or call.entry.tool not in COMMAND_TOOLS:
            return None
        return call if self._commands.get(command) is None else None

    async def _on_record(self, call: Call, asked: CommandArguments, command: str) -> CommandRecord | None:
        """The command, once it is on record; None while it still is not after the time in which it should be.

        Raises ToolFailure when there is none, and none will be.
        """
        if self._starting(command) and workflow.patched(Patch.COMMANDS_FROM_THEIR_CALL):
            await _patiently(call, lambda: self._starting(command) is None, self._within_s(call, asked))
            if self._starting(command):
                return None
        return self._commands.known(command)

    def _within_s(self, call: Call, asked: CommandArguments) -> float:
        if asked.action == "wait":
            return (_until_at(call, asked) - workflow.now()).total_seconds()
        return _ON_RECORD_WITHIN_S

    async def _read(self, call: Call, asked: CommandArguments, record: CommandRecord) -> CallOutcome:
        """New output, at once when there is some; else as soon as there is, at most `wait_ms` after the call began."""
        until_at = _until_at(call, asked)
        while True:
            left_s = max(0.0, (until_at - workflow.now()).total_seconds())
            outcome = await self._output(call, asked, record, left_s)
            found = outcome.result
            news = not isinstance(found, dict) or (
                found["stdout_offset"] != asked.stdout_offset or found["stderr_offset"] != asked.stderr_offset
            )
            if outcome.error is not None or news or record.outcome is not None or workflow.now() >= until_at:
                return outcome

    async def _wait(self, call: Call, asked: CommandArguments, record: CommandRecord) -> CallOutcome:
        left_s = (_until_at(call, asked) - workflow.now()).total_seconds()
        await _patiently(call, lambda: record.outcome is not None, left_s)
        return await self._output(call, asked, record, 0.0)

    async def _output(self, call: Call, asked: CommandArguments, record: CommandRecord, wait_s: float) -> CallOutcome:
        record.read_at = workflow.now()
        step = ReadOutputStep(
            ref=self._lifecycle.ref(),
            reader=call.call_id,
            action="wait" if asked.action == "wait" else "read",
            call_id=record.place.call_id,
            stdout_offset=asked.stdout_offset,
            stderr_offset=asked.stderr_offset,
            wait_s=0.0 if record.outcome else min(wait_s, self._bound_s(call)),
            status=record.status,
            exit_code=record.exit_code,
        )
        outcome = await step_in_two_tries(call, Activity.READ_OUTPUT, step, CallOutcome)
        record.read_at = workflow.now()
        return outcome

    def _bound_s(self, call: Call) -> float:
        if call.slow:
            return _SLOW_READ_WAIT_S
        left = ANSWER_WITHIN_S - (workflow.now() - call.begun_at).total_seconds()
        if left < _QUICK_READ_WAIT_S / 2:
            call.slow = True
            return _SLOW_READ_WAIT_S
        return min(_QUICK_READ_WAIT_S, left - 2.0)

    async def _cancel(self, call: Call, command: str) -> CallOutcome:
        before, starting = self._commands.get(command), self._starting(command)
        if starting is None or not workflow.patched(Patch.COMMANDS_FROM_THEIR_CALL):
            self._commands.known(command)
            starting = None
        called_off = starting is not None and self._call_off(starting)
        if not called_off and not self._is_over(command):
            await self._commands.kill([command])
            await _patiently(call, lambda: self._is_over(command), _LAST_WORDS_S)
        if self._starting(command):
            return _outcome(CommandResult(action="cancel", call_id=command, status="running"))
        record = before or self._commands.known(command)
        return _outcome(
            CommandResult(action="cancel", call_id=command, status=record.status, exit_code=record.exit_code)
        )

    def _is_over(self, command: str) -> bool:
        record = self._commands.get(command)
        return self._starting(command) is None if record is None else record.outcome is not None

    async def _send(self, call: Call, asked: CommandArguments, record: CommandRecord) -> CallOutcome:
        """Write or signal. Both happen once per call id, and only to a command that runs."""
        command = record.place.call_id
        if record.outcome is not None:
            raise ToolFailure(
                ErrorCode.CONFLICT,
                f"the command {command} has ended ({record.status})",
                hint="Read its output with action read.",
            )
        ref = self._lifecycle.ref()
        if asked.action == "signal":
            assert asked.signal is not None
            signal = SignalCommandStep(ref=ref, sender=call.call_id, call_id=command, signal=asked.signal)
            return await step_in_two_tries(call, Activity.SIGNAL_COMMAND, signal, CallOutcome)
        write = WriteInputStep(
            ref=ref, writer=call.call_id, call_id=command, data=asked.data_base64(), close=asked.close
        )
        return await step_in_two_tries(call, Activity.WRITE_INPUT, write, CallOutcome)


async def _patiently(call: Call, condition: Callable[[], bool], within_s: float) -> None:
    """Wait for `condition`, at most `within_s`; a call that waits too long for its answer is answered `running`."""
    left_s = ANSWER_WITHIN_S - (workflow.now() - call.begun_at).total_seconds()
    if within_s > left_s and not call.slow:
        if await until(condition, timeout_s=left_s):
            return
        call.slow = True
        within_s -= max(0.0, left_s)
    await until(condition, timeout_s=within_s)


def _until_at(call: Call, asked: CommandArguments) -> datetime:
    """When the time is over for which the caller asked to wait."""
    wait_ms = WAIT_LIMIT_MS if asked.wait_ms is None and asked.action == "wait" else asked.wait_ms or 0
    return call.entry.asked_at + timedelta(milliseconds=wait_ms)


def _not_started_yet(asked: CommandArguments) -> CallOutcome:
    """The outcome of a call about a command that is still not on record. Raises ToolFailure for what changes it."""
    if asked.action in {"write", "signal"}:
        raise ToolFailure(
            ErrorCode.CONFLICT,
            f"the command {asked.call_id} has not been started yet; nothing was sent",
            hint="Wait for it with action wait, then call again under a new call id.",
            retryable=True,
        )
    return _outcome(
        CommandResult(
            action=asked.action,
            call_id=asked.call_id,
            status="running",
            stdout_offset=asked.stdout_offset,
            stderr_offset=asked.stderr_offset,
            hint="The command has not been started yet.",
        )
    )


def _outcome(result: CommandResult) -> CallOutcome:
    return CallOutcome(result=result.model_dump(mode="json"))
