"""Session storage that cannot be reached for a while: activities are repeated, whatever they were about.

What an object store's client raises says nothing to a caller, and a failure that says nothing is given up after the
time in which a call is answered. A command may run by then, and its end would be told to nobody.
"""

from __future__ import annotations

from typing import Any

from obstore.exceptions import GenericError, JoinError
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from sandhold.contracts.errors import ErrorCode, ToolError

_MAY_PASS = (GenericError, JoinError)
"""What broken connections and full disks are to obstore 0.11; wrong keys and settings have types of their own."""


class StorageFaults(Interceptor):
    """Tells the faults of session storage that may pass as errors that are to be retried."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _Telling(super().intercept_activity(next))


class _Telling(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        try:
            return await super().execute_activity(input)
        except _MAY_PASS as error:
            told = ToolError(
                code=ErrorCode.INTERNAL,
                message="session storage could not be reached",
                hint="What was called for may have been done. Call again with the same call id.",
                retryable=True,
                ambiguous=True,
            )
            raise ApplicationError(told.message, told, type=told.code) from error
