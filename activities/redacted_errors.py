"""Errors in answers: what they quote of a sandbox or of its provider is redacted before anybody is told."""

from __future__ import annotations

from typing import Any

from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.redactors import Redactors, sandbox_of
from activities.shown_texts import as_shown, showing


class RedactedErrors(Interceptor):
    """Redacts every error in what an activity returns, by the secrets of the session that it worked for.

    What the activity stores, or tells by heartbeats, it redacts by itself: inside of this it can, by `as_shown`.
    """

    def __init__(self, redactors: Redactors) -> None:
        self._redactors = redactors

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _Redacting(super().intercept_activity(next), self._redactors)


class _Redacting(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, redactors: Redactors) -> None:
        super().__init__(inner)
        self._redactors = redactors

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        if sandbox_of(input.args) is None:
            return await super().execute_activity(input)
        with showing(self._redactors, input.args):
            return await as_shown(await super().execute_activity(input))
