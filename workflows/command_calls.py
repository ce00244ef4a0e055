"""The tool `daytona_command`: calls about a command that another call has started."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from temporalio import workflow

from workflows.commands import Commands
from workflows.ledger import Call
from workflows.lifecycle import Lifecycle
from workflows.steps import step_in_two_tries
from workflows.waiting import until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import ANSWER_WITHIN_S, CallOutcome
    from sandhold.contracts.commands import WAIT_LIMIT_MS, CommandArguments, CommandResult
    from sandhold.contracts.errors import ErrorCode, ToolFailure
    from sandhold.contracts.names import Activity, ToolName
    from sandhold.contracts.sandboxes import CommandRecord
    from sandhold.contracts.steps import ReadOutputStep, SignalCommandStep, WriteInputStep
    from sandhold.contracts.tools import parse_arguments

_QUICK_READ_WAIT_S = 6.0
_SLOW_READ_WAIT_S = 25.0
"""How long one reading activity waits for output, before and after the call was answered `running`."""
_LAST_WORDS_S = 20.0
"""How long a cancelled command may take to end."""


class CommandCalls:
    """Reads, waits for, feeds, signals, cancels and lists commands. Never starts a stopped sandbox: no command runs in
    it, and the output of those that did is in storage."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
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
            return _outcome(CommandResult(action=asked.action, commands=self._commands.rows()))
        record = self._commands.known(asked.call_id)
        match asked.action:
            case "read":
                return await self._read(call, asked, record)
            case "wait":
                return await self._wait(call, asked, record)
            case "cancel":
                return await self._cancel(call, record)
            case _:
                return await self._send(call, asked, record)

    async def _read(self, call: Call, asked: CommandArguments, record: CommandRecord) -> CallOutcome:
        """New output, at once when there is some; else as soon as there is, at most `wait_ms` after the call began."""
        until_at = call.entry.asked_at + timedelta(milliseconds=asked.wait_ms or 0)
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
        wait_ms = WAIT_LIMIT_MS if asked.wait_ms is None else asked.wait_ms
        until_at = call.entry.asked_at + timedelta(milliseconds=wait_ms)
        await _patiently(call, lambda: record.outcome is not None, (until_at - workflow.now()).total_seconds())
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

    async def _cancel(self, call: Call, record: CommandRecord) -> CallOutcome:
        if record.outcome is None:
            await self._commands.kill([record.place.call_id])
            await _patiently(call, lambda: record.outcome is not None, _LAST_WORDS_S)
        return _outcome(
            CommandResult(
                action="cancel", call_id=record.place.call_id, status=record.status, exit_code=record.exit_code
            )
        )

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


def _outcome(result: CommandResult) -> CallOutcome:
    return CallOutcome(result=result.model_dump(mode="json"))
