"""Session storage that does not do its part for a while: activities are repeated, whatever they were about.

A failure that says nothing is given up after the time in which a call is answered. A command may run by then, and its
end would be told to nobody. What does not pass by itself, as wrong credentials do not, is told at once.
"""

from __future__ import annotations

from typing import Any

from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from sandhold.contracts.errors import ToolError
from sandhold.storage import StorageFault

_MAY_BE_DONE = "What was called for may have been done."


class StorageFaults(Interceptor):
    """Tells the faults of session storage as typed errors, those that may pass as errors that are to be retried."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _Telling(super().intercept_activity(next))


class _Telling(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        try:
            return await super().execute_activity(input)
        except StorageFault as fault:
            next_step = "Call again with the same call id." if fault.retryable else fault.hint
            told = ToolError(
                code=fault.code,
                message=str(fault),
                hint=f"{_MAY_BE_DONE} {next_step}",
                retryable=fault.retryable,
                ambiguous=True,
            )
            raise ApplicationError(told.message, told, type=told.code, non_retryable=not fault.retryable) from fault
