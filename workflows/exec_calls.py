"""Calls that are commands, of `daytona_exec` and `daytona_git_clone`: started once, found again, and called off before
they begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows.command_results import called_off, in_background, may_run
from workflows.commands import Commands
from workflows.ledger import Call, Ledger, conflict
from workflows.lifecycle import Lifecycle, failure_from
from workflows.patches import Patch
from workflows.steps import error_of, may_have_been_done, step_in_two_tries
from workflows.waiting import until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import CallOutcome, CallRequest
    from sandhold.contracts.errors import ErrorCode, ToolError
    from sandhold.contracts.names import COMMAND_TOOLS, Activity, ToolName
    from sandhold.contracts.sandboxes import CommandRecord, SandboxStart
    from sandhold.contracts.steps import CommandPlace, CommandProgress, CommandStep

COMMANDS_LIMIT = 200
"""Commands that run in one sandbox at once. A follower is told of all of them in one message, and names them in one
argument of a request, which holds 128 KiB: with the longest ids they weigh 80 KB in the one and 31 KB in the other."""

_ACTIVITY = {ToolName.EXEC: Activity.RUN_COMMAND, ToolName.GIT_CLONE: Activity.CLONE_REPOSITORY}

Finish: TypeAlias = Callable[[str, CallOutcome], None]


class ExecCalls:
    """Carries out calls that are commands, from their admission to the end of their commands.

    What the outcome of a clone's command means for its call is up to `GitClones`."""

    def __init__(
        self, start: SandboxStart, ledger: Ledger, commands: Commands, inside: set[str], finish: Finish
    ) -> None:
        """`inside` is the set of calls that use the inside of the sandbox; `finish` gives a call its outcome."""
        self._start = start
        self._ledger = ledger
        self._commands = commands
        self._inside = inside
        self._finish = finish
        self._lifecycle: Lifecycle

    def attach(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def check_room(self, request: CallRequest) -> None:
        """Raises ToolFailure `quota_exceeded` when too many commands run to start another one."""
        refused = self.no_room(request)
        if refused is not None and workflow.patched(Patch.COMMAND_LIMIT):
            raise failure_from(refused)

    def no_room(self, request: CallRequest) -> ToolError | None:
        """Why no other command can be started now; None when it can."""
        running = {call.call_id for call in self._ledger.running() if call.entry.tool in COMMAND_TOOLS}
        running.update(record.place.call_id for record in self._commands.running())
        if len(running) < COMMANDS_LIMIT or request.call_id in running:
            return None
        return ToolError(
            code=ErrorCode.QUOTA_EXCEEDED,
            message=f"{len(running)} commands run in sandbox {self._start.sandbox_id} already, at most "
            f"{COMMANDS_LIMIT} may; nothing was run",
            hint="Wait for some of them to end, or end some: daytona_command lists, waits for and cancels them.",
            retryable=True,
        )

    async def run(self, call: Call, request: CallRequest) -> CallOutcome:
        """Start the command, or find it running, and follow it to its end, unless nobody waits for that.

        Raises ActivityError when nothing was started. Not when that is unknown: then the command is followed, and the
        outcome says that it may run.
        """
        policy = self._start.policy
        self._commands.count_start()
        command = CommandStep(
            ref=self._lifecycle.ref(),
            call_id=call.call_id,
            arguments=request.arguments,
            arguments_ref=request.arguments_ref,
            default_timeout_ms=max(1, round(policy.command_timeout_s * 1000)),
            output_cap_bytes=policy.output_cap_bytes,
            secret_env=self._start.arguments.secret_env or [],
        )
        try:
            progress = await step_in_two_tries(call, _ACTIVITY[ToolName(request.tool)], command, CommandProgress)
        except ActivityError as failure:
            if not may_have_been_done(failure) or not workflow.patched(Patch.UNSURE_COMMANDS):
                raise
            self._record(call, CommandProgress(call_id=call.call_id, running=_unsure(call, policy.output_cap_bytes)))
            return may_run(call.call_id, error_of(failure))
        if progress.outcome is not None and progress.outcome.error is not None:
            return progress.outcome  # Nothing was started.
        record = self._record(call, progress)
        if progress.outcome is not None:
            return progress.outcome
        if record.place.background:
            return in_background(call.call_id)
        return await self._end_of(call, record)

    async def of_record(self, call: Call, record: CommandRecord) -> CallOutcome:
        """The outcome of a call whose command is on record: one carried over, or one that the ledger had forgotten.

        Raises ToolFailure `call_id_conflict` when another call has started the command.
        """
        same = record.fingerprint in {"", call.entry.fingerprint}
        is_waited_for = record.outcome is None and not record.place.background
        if (same and is_waited_for) or not workflow.patched(Patch.REPEATED_COMMANDS):
            return await self._end_of(call, record)
        if not same:
            raise conflict(call.call_id)
        return record.outcome or in_background(call.call_id)

    def call_off(self, call: Call) -> bool:
        """End a call whose command is not being started; False when it is, or was.

        After True nothing will be started under its id.
        """
        if call.call_id in self._inside or self._commands.get(call.call_id) is not None:
            return False
        progress = called_off(call.call_id, sent=call.sent)
        self._record(call, progress)
        outcome = progress.outcome
        if call.entry.tool == ToolName.GIT_CLONE:
            message = "the clone was cancelled before it began"
            outcome = CallOutcome(error=ToolError(code=ErrorCode.CANCELLED, message=message))
        assert outcome is not None
        self._finish(call.call_id, outcome)
        return True

    def _record(self, call: Call, progress: CommandProgress) -> CommandRecord:
        return self._commands.add(progress, call.begun_at, call.entry.fingerprint)

    async def _end_of(self, call: Call, record: CommandRecord) -> CallOutcome:
        """The outcome of a command that is followed. Its end finishes the call, unless that is a clone."""
        call.slow = True
        if call.entry.tool == ToolName.GIT_CLONE:
            self._inside.add(call.call_id)
            await until(lambda: record.outcome is not None or not call.running)
            outcome = record.outcome or call.entry.outcome
            assert outcome is not None
            return outcome
        call.forget_arguments()
        self._inside.add(call.call_id)
        await until(lambda: not call.running)
        assert call.entry.outcome is not None
        return call.entry.outcome


def _unsure(call: Call, cap_bytes: int) -> CommandPlace:
    """The place of a command of which nobody knows whether it was started; its call has been answered."""
    return CommandPlace(
        call_id=call.call_id,
        output="auto",
        started_at=call.entry.asked_at,
        background=True,
        bounded=False,
        unsure=True,
        cap_bytes=cap_bytes,
    )
