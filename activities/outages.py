"""Outages do not use up the attempts of a transfer: it waits for their end, with pauses that grow.

A transfer has a bounded number of attempts, as each may move everything again. One that fails because storage or the
provider cannot be reached moves nothing, and fails at once: with the pauses of other failures all attempts together are
over after eleven minutes.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeGuard

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.stream_requests import StreamBroken
from sandhold.contracts.errors import ToolError
from sandhold.contracts.names import Activity
from sandhold.contracts.transfers import FAILED_ATTEMPTS_LIMIT

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 300.0
_TRANSFERS = frozenset({Activity.DOWNLOAD_WORKSPACE, Activity.FILL_SANDBOX, Activity.PUSH_FILES})


class Outages(Interceptor):
    """Says of each failure of a transfer when to try again, or that this was the last attempt.

    It stands outside of `StorageFaults`, which gives the errors of the storage their meaning.
    """

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _Pausing(super().intercept_activity(next))


class _Pausing(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        info = activity.info()
        if info.activity_type not in _TRANSFERS:
            return await super().execute_activity(input)
        try:
            return await super().execute_activity(input)
        except Exception as error:
            if isinstance(error, ApplicationError) and error.non_retryable:
                raise
            if _is_outage(error):
                raise _again(error, max(pause_after(info.attempt), error.next_retry_delay or timedelta(0))) from error
            if info.attempt >= FAILED_ATTEMPTS_LIMIT:
                raise _for_good(error) from error
            raise


def pause_after(attempt: int) -> timedelta:
    """How long to wait for the end of an outage, as its length so far suggests."""
    return timedelta(seconds=min(FIRST_PAUSE_S * 2 ** min(attempt - 1, 20), LONGEST_PAUSE_S))


def _is_outage(error: Exception) -> TypeGuard[ApplicationError]:
    """Whether storage or the provider did not do its part. A stream may break each time, for what it is a stream of."""
    if isinstance(error, StreamBroken) or not isinstance(error, ApplicationError):
        return False
    told = error.details[0] if error.details else None
    return isinstance(told, ToolError) and told.retryable


def _again(error: ApplicationError, pause: timedelta) -> ApplicationError:
    return ApplicationError(error.message, *error.details, type=error.type, next_retry_delay=pause)


def _for_good(error: Exception) -> ApplicationError:
    if isinstance(error, ApplicationError):
        return ApplicationError(error.message, *error.details, type=error.type, non_retryable=True)
    return ApplicationError(str(error), type=type(error).__name__, non_retryable=True)
