"""Errors that are answers: what they quote of a sandbox or of its provider is redacted before anybody is told."""

from __future__ import annotations

from typing import Any

from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.redactors import Redactors, sandbox_of
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.errors import ToolError
from sandhold.contracts.steps import CommandProgress
from sandhold.security.redaction import Redactor


class RedactedErrors(Interceptor):
    """Redacts the error of each outcome that an activity returns, by the secrets of the session that it worked for."""

    def __init__(self, redactors: Redactors) -> None:
        self._redactors = redactors

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _Redacting(super().intercept_activity(next), self._redactors)


class _Redacting(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, redactors: Redactors) -> None:
        super().__init__(inner)
        self._redactors = redactors

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        told = await super().execute_activity(input)
        outcome = told.outcome if isinstance(told, CommandProgress) else told
        if not isinstance(outcome, CallOutcome) or outcome.error is None:
            return told
        ref = sandbox_of(input.args)
        if ref is None:
            return told
        error = redacted_error(outcome.error, await self._redactors.of(ref))
        outcome = outcome.model_copy(update={"error": error})
        return told.model_copy(update={"outcome": outcome}) if isinstance(told, CommandProgress) else outcome


def redacted_error(error: ToolError, redactor: Redactor) -> ToolError:
    """The error with texts that may be shown."""
    hint = None if error.hint is None else redactor.redact_text(error.hint)
    return error.model_copy(update={"message": redactor.redact_text(error.message), "hint": hint})
