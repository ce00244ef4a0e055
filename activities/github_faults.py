"""GitHub that does not do its part: what it refuses is told, what may pass is tried again, when it says so itself."""

from __future__ import annotations

from typing import Any

from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from sandhold.github import GitHubFault


def failure_of(fault: GitHubFault) -> ApplicationError:
    """The failure of the attempt that met it."""
    told = fault.error
    return ApplicationError(
        told.message,
        told,
        type=told.code,
        non_retryable=not told.retryable,
        next_retry_delay=fault.retry_after if told.retryable else None,
    )


class GitHubFaults(Interceptor):
    """Tells the faults of GitHub as typed errors; a rate limit's with the wait until the next attempt."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _Telling(super().intercept_activity(next))


class _Telling(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        try:
            return await super().execute_activity(input)
        except GitHubFault as fault:
            raise failure_of(fault) from fault
