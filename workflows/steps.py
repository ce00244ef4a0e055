"""How activities are scheduled: timeouts and retries by error type, and what their failures mean for a caller."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, RetryState
from temporalio.exceptions import TimeoutError as TimedOut

from workflows.ledger import Call

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.base import Message
    from sandhold.contracts.calls import ANSWER_WITHIN_S
    from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolError
    from sandhold.contracts.names import Activity

HEARTBEAT_TIMEOUT = timedelta(seconds=5)
"""Long activities heartbeat every second; a dead worker is noticed after this (measured: no false alarm under load)."""

# Repeating these changes nothing. The provider table decides by itself for everything that the provider
# said; this list is for what never reached it.
NON_RETRYABLE = [
    ErrorCode.INVALID_ARGUMENTS.value,
    ErrorCode.CONNECTION_REQUIRED.value,
    ErrorCode.SANDBOX_FAILED.value,
    ErrorCode.SANDBOX_LOST.value,
    ErrorCode.PROVIDER_REJECTED.value,
    ErrorCode.TOO_LARGE.value,
    ErrorCode.CALL_ID_CONFLICT.value,
    SandboxSignal.NOT_STARTED.value,
    "PayloadsTooLarge",
]

PROMPT = RetryPolicy(
    initial_interval=timedelta(milliseconds=100),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=2),
    non_retryable_error_types=NON_RETRYABLE,
)
"""For calls that somebody waits for."""

PATIENT = RetryPolicy(
    initial_interval=timedelta(milliseconds=100),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=15),
    non_retryable_error_types=NON_RETRYABLE,
)
"""For changes of state and for following commands."""

FOR_EVER = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(minutes=5),
)
"""For deletion: nothing makes it give up."""

_SLOW_STEP_TIMEOUT = timedelta(minutes=2)
_STEP_TIMEOUTS = {Activity.RUN_COMMAND: timedelta(minutes=30), Activity.CLONE_REPOSITORY: timedelta(minutes=90)}
"""For a command that may have been started: giving up on it would lose its outcome, so that takes longer. A clone may
also have to wait for its token, for up to an hour, while GitHub limits the rate."""

Result = TypeVar("Result", bound=Message)


async def step_in_two_tries(call: Call, activity: Activity, step: Message, result_type: type[Result]) -> Result:
    """One activity in two tries: one within the time in which the call is answered, one that may take longer.

    The bound of the first is the server's, so a short call costs no timer. Activities are idempotent by
    call id: the second finds what the first began.
    """
    summary = f"{call.entry.tool} {call.call_id}"
    left = ANSWER_WITHIN_S - (workflow.now() - call.begun_at).total_seconds()
    if left > 1 and not call.slow:
        try:
            result: Result = await workflow.execute_activity(
                activity,
                step,
                result_type=result_type,
                schedule_to_close_timeout=timedelta(seconds=left),
                retry_policy=PROMPT,
                summary=summary,
            )
            return result
        except ActivityError as failure:
            if signal_of(failure) is not None or not error_of(failure).retryable:
                raise
    call.slow = True
    slow_result: Result = await workflow.execute_activity(
        activity,
        step,
        result_type=result_type,
        schedule_to_close_timeout=_STEP_TIMEOUTS.get(activity, _SLOW_STEP_TIMEOUT),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=PATIENT,
        summary=summary,
    )
    return slow_result


def error_of(failure: ActivityError) -> ToolError:
    """What a failed activity means for the caller."""
    cause: BaseException | None = failure.cause
    if isinstance(cause, TimedOut):
        earlier = cause.cause
        if isinstance(earlier, ApplicationError) and (told := _told(earlier)) is not None:
            return told
        return ToolError(
            code=ErrorCode.TIMEOUT,
            message=f"{failure.activity_type} did not end in time",
            hint="The effect may have happened. Look before calling again.",
            retryable=True,
            ambiguous=True,
        )
    if isinstance(cause, CancelledError):
        return ToolError(code=ErrorCode.CANCELLED, message=f"{failure.activity_type} was cancelled", ambiguous=True)
    if isinstance(cause, ApplicationError) and (told := _told(cause)) is not None:
        return told
    kind = cause.type if isinstance(cause, ApplicationError) else type(cause).__name__
    return ToolError(
        code=ErrorCode.INTERNAL, message=f"{failure.activity_type} failed inside ({kind}); the worker's log has more"
    )


def signal_of(failure: ActivityError) -> SandboxSignal | None:
    """What a failed activity says about the sandbox itself, if anything."""
    cause = failure.cause
    earlier = cause.cause if isinstance(cause, TimedOut) else cause
    if isinstance(earlier, ApplicationError) and earlier.type in set(SandboxSignal):
        return SandboxSignal(earlier.type)
    return None


def may_have_been_done(failure: ActivityError) -> bool:
    """Whether an attempt of the failed activity may have had its effect, with nobody there to hear of it.

    Not when the activity gave up by itself with an error that says nothing of the kind, or one about the sandbox.
    """
    if signal_of(failure) is not None:
        return False
    error = error_of(failure)
    gave_up_by_itself = failure.retry_state is RetryState.NON_RETRYABLE_FAILURE
    return error.ambiguous or error.code is ErrorCode.INTERNAL or not gave_up_by_itself


def _told(error: ApplicationError) -> ToolError | None:
    """The typed error that the failure carries; None when it carries none (a bug, not a refusal)."""
    if not error.details or not isinstance(error.details[0], dict | ToolError):
        return None
    detail = error.details[0]
    if isinstance(detail, ToolError):
        return detail
    if "code" not in detail or detail["code"] not in set(ErrorCode):
        return None
    return ToolError.model_validate(detail)
