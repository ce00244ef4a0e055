"""Arguments and results of calls: in the message while they are small, in session storage above that."""

from __future__ import annotations

from typing import TypeVar

from activities.shown_texts import as_shown
from sandhold.contracts.base import Message, Strict
from sandhold.contracts.calls import (
    INLINE_LIMIT_BYTES,
    LEDGER_RESULT_LIMIT_BYTES,
    CallOutcome,
    json_bytes,
)
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import ToolName, call_folder
from sandhold.contracts.steps import CallStep, CommandProgress
from sandhold.contracts.tools import ExecResult, parse_arguments
from sandhold.storage import DocumentMissing, SessionStorage, StorageError, StorageFault

A = TypeVar("A", bound=Strict)


async def arguments_of(storage: SessionStorage, step: CallStep, tool: ToolName, model: type[A]) -> A:
    """The typed arguments of a call, wherever they are.

    Raises ToolFailure: `invalid_arguments` when they do not fit the tool, or are not what was stored under their
    reference; `internal` when this storage has nothing there, which is the deployment's fault and not the agent's.
    """
    arguments = step.arguments
    if step.arguments_ref is not None:
        try:
            arguments = await storage.get_json(step.ref.session_id, step.arguments_ref)
        except DocumentMissing as error:
            raise ToolFailure(
                ErrorCode.INTERNAL,
                f"the client stored the arguments, but the worker cannot find them ({error}): "
                "client and worker seem to see different storages",
                hint="Set SANDHOLD_STORAGE_URL for the client and the workers so that both reach the same storage; "
                "then call again under a new call id.",
            ) from error
        except StorageFault:
            raise
        except StorageError as error:
            raise ToolFailure(
                ErrorCode.INVALID_ARGUMENTS,
                f"the arguments cannot be read: {error}",
                hint="Call again under a new call id.",
            ) from error
    parsed = parse_arguments(tool, arguments)
    if not isinstance(parsed, model):
        raise TypeError(f"{tool} has arguments of {type(parsed).__name__}, not {model.__name__}")
    return parsed


async def outcome_of(storage: SessionStorage, session_id: str, call_id: str, result: Message) -> CallOutcome:
    """The outcome of a call that succeeded.

    Errors in the result are told as they may be shown. A result above LEDGER_RESULT_LIMIT_BYTES is in session storage
    when this returns, and above INLINE_LIMIT_BYTES only there. Saying the same outcome again writes the same document
    again.
    """
    value = (await as_shown(result)).model_dump(mode="json")
    size = len(json_bytes(value))
    if size <= LEDGER_RESULT_LIMIT_BYTES:
        return CallOutcome(result=value)
    ref = await storage.put_json(session_id, f"calls/{call_folder(call_id)}/result.json", value)
    return CallOutcome(result=value if size <= INLINE_LIMIT_BYTES else None, result_ref=ref)


async def progress_of(storage: SessionStorage, session_id: str, result: ExecResult) -> CommandProgress:
    """Where a command is that is over: at its outcome."""
    return CommandProgress(
        call_id=result.call_id,
        outcome=await outcome_of(storage, session_id, result.call_id, result),
        status=result.status,
        exit_code=result.exit_code,
    )


def failed_outcome(failure: ToolFailure) -> CallOutcome:
    """The outcome of a call that cannot succeed: its error is an answer, not a failure of the activity."""
    return CallOutcome(error=failure.error)
