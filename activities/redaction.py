"""Failures of activities leave the worker without secrets: in their messages, their details and all their causes.

A failure that quotes none passes as it is, and so does one of the vault or the key ring, whose texts are ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from enum import Enum
from typing import Any

from pydantic import BaseModel
from temporalio.exceptions import ApplicationError, CancelledError, FailureError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.redactors import Redactors, sandbox_of
from activities.shown_texts import UNTOLD, Shown, ShownTexts, shown_error, texts_of
from activities.vault_faults import VaultFailure
from sandhold.contracts.errors import ToolError
from sandhold.security import SecurityError
from sandhold.security.process_secrets import redact_for_log, without_input
from sandhold.vault import VaultError

_OURS = (VaultFailure, VaultError, SecurityError)
"""What these say is all by us, and nothing of it secret."""


class RedactedFailures(Interceptor):
    """Redacts what an activity raises, by the secrets of the session that it worked for and those of this process.

    It stands outside of all that looks at failures. When the session's secrets cannot be known no text of others is
    told: type and typed fields of an error are all the same.
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
        try:
            return await super().execute_activity(input)
        except (Exception, asyncio.CancelledError) as failure:
            shown = await ShownTexts(self._redactors, sandbox_of(input.args)).shown()
            told = redacted_failure(failure, shown)
            if told is failure:
                raise
            raise told from told.__cause__


def redacted_failure(failure: BaseException, of_others: Shown) -> BaseException:
    """The failure if nothing in it changes, else one that means the same to Temporal and to workflows."""
    chain = list(_chain(failure))
    # Also where others pass them on.
    ours = {text for each in chain if isinstance(each, _OURS) for text in _texts(each)}

    def shown(text: str) -> str:
        told = of_others(text)
        return redact_for_log(text) if told == UNTOLD and text in ours else told

    if all(shown(without_input(text)) == text for each in chain for text in _texts(each)):
        return failure
    told: BaseException | None = None
    for each in reversed(chain):
        replaced = _told(each, shown)
        replaced.__traceback__ = each.__traceback__
        replaced.__cause__ = told
        told = replaced
    assert told is not None
    return told


def _told(failure: BaseException, shown: Shown) -> BaseException:
    if isinstance(failure, asyncio.CancelledError):
        return asyncio.CancelledError(shown(str(failure)))
    if isinstance(failure, CancelledError):
        return CancelledError(shown(failure.message), *(_value(detail, shown) for detail in failure.details))
    if isinstance(failure, ApplicationError):
        return ApplicationError(
            shown(without_input(failure.message)),
            *(_value(detail, shown) for detail in failure.details),
            type=failure.type,
            non_retryable=failure.non_retryable,
            next_retry_delay=failure.next_retry_delay,
            category=failure.category,
        )
    return ApplicationError(shown(without_input(str(failure))), type=type(failure).__name__)


def _chain(failure: BaseException) -> Iterator[BaseException]:
    """The failure and its causes, as Temporal's converter finds them."""
    seen: set[int] = set()
    each: BaseException | None = failure
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _texts(failure: BaseException) -> Iterator[str]:
    yield failure.message if isinstance(failure, FailureError) else str(failure)
    if isinstance(failure, ApplicationError | CancelledError):
        for detail in failure.details:
            yield from _strings(detail)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, ToolError):
        yield from texts_of(value)
    elif isinstance(value, BaseModel):
        yield from _strings(dict(value))
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _strings(name)
            yield from _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)
    elif isinstance(value, str) and not isinstance(value, Enum):
        yield value


def _value(value: Any, shown: Shown) -> Any:
    if isinstance(value, ToolError):
        return shown_error(value, shown)
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _value(each, shown) for name, each in value})
    if isinstance(value, dict):
        return {_value(name, shown): _value(each, shown) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_value(each, shown) for each in value]
    return shown(value) if isinstance(value, str) and not isinstance(value, Enum) else value
