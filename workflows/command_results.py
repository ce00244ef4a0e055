"""What is told of a command without asking its sandbox."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import CallOutcome
    from sandhold.contracts.commands import CommandRow
    from sandhold.contracts.errors import ToolError
    from sandhold.contracts.names import output_folder
    from sandhold.contracts.sandboxes import CommandRecord, LedgerEntry
    from sandhold.contracts.steps import CommandProgress
    from sandhold.contracts.tools import ExecResult, OutputFiles


def output_files(call_id: str) -> OutputFiles:
    return OutputFiles(stdout=output_folder(call_id, "stdout"), stderr=output_folder(call_id, "stderr"))


def row_of(record: CommandRecord) -> CommandRow:
    return CommandRow(
        call_id=record.place.call_id,
        status=record.status,
        background=record.place.background,
        started_at=record.place.started_at,
        ended_at=record.ended_at,
        exit_code=record.exit_code,
    )


def row_of_call(entry: LedgerEntry) -> CommandRow:
    """The row of a command whose call runs and that is not on record yet."""
    given = entry.request.arguments if entry.request is not None else None
    background = isinstance(given, dict) and given.get("background") is True
    return CommandRow(call_id=entry.call_id, status="running", background=background, started_at=entry.asked_at)


def in_background(call_id: str) -> CallOutcome:
    return _outcome(
        ExecResult(
            status="running",
            call_id=call_id,
            output_files=output_files(call_id),
            hint="The command runs in the background. daytona_command reads its output, waits for it and ends it.",
        )
    )


def interrupted(call_id: str) -> CallOutcome:
    """The outcome of an interrupted command of whose output nothing can be told."""
    return _outcome(
        ExecResult(
            status="interrupted",
            call_id=call_id,
            output_files=output_files(call_id),
            hint="The sandbox stopped while the command ran. It may have had part of its effect; it was not run again.",
        )
    )


def called_off(call_id: str, *, sent: bool) -> CommandProgress:
    """The end of a command that was cancelled while its call waited for the sandbox to start.

    `sent` says that it may have been started before, in a sandbox that has stopped since.
    """
    hint = "The command was cancelled before it was started; nothing was run."
    if sent:
        hint = "The command was cancelled; the sandbox had stopped. It may have had part of its effect."
    result = ExecResult(status="cancelled", call_id=call_id, hint=hint)
    return CommandProgress(call_id=call_id, outcome=_outcome(result), status="cancelled")


def may_run(call_id: str, error: ToolError) -> CallOutcome:
    """The outcome of a call that gave up on a command that may have been started."""
    hint = f"The command may run: daytona_command with the call_id {call_id} follows it and cancels it."
    hint = hint if error.hint is None else f"{error.hint} {hint}"
    return CallOutcome(error=error.model_copy(update={"ambiguous": True, "retryable": False, "hint": hint}))


def _outcome(result: ExecResult) -> CallOutcome:
    return CallOutcome(result=result.model_dump(mode="json"))
