"""Failures of activities leave the worker without secrets: in their messages, their details and all their causes.

A failure that quotes none passes as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import structlog
from pydantic import BaseModel
from temporalio.exceptions import ApplicationError, CancelledError, FailureError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.redactors import Redactors, sandbox_of
from sandhold.security.process_secrets import redact_for_log, without_input
from sandhold.security.redaction import Redactor

log = structlog.get_logger("failures")

_UNTOLD = "what failed is not told: nobody knows now what of it is secret"


class RedactedFailures(Interceptor):
    """Redacts what an activity raises, by the secrets of the session that it worked for and those of this process.

    It stands outside of all that looks at failures. When the session's secrets cannot be known no text is told.
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
            told = redacted_failure(failure, await self._text(input))
            if told is failure:
                raise
            raise told from told.__cause__

    async def _text(self, input: ExecuteActivityInput) -> Callable[[str], str]:  # noqa: A002
        """What makes a text of this activity one that may be told."""
        ref = sandbox_of(input.args)
        redactor = Redactor({})
        if ref is not None:
            try:
                redactor = await self._redactors.of(ref)
            except Exception as error:
                log.warning("failures are told without their text", session=ref.session_id, reason=type(error).__name__)
                return _untold
        return lambda text: redactor.redact_text(redact_for_log(text))


def _untold(text: str) -> str:
    return _UNTOLD if text else text


def redacted_failure(failure: BaseException, shown: Callable[[str], str]) -> BaseException:
    """The failure if nothing in it changes, else one that means the same to Temporal and to workflows."""
    chain = list(_chain(failure))
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


def _told(failure: BaseException, shown: Callable[[str], str]) -> BaseException:
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
    if isinstance(value, BaseModel):
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


def _value(value: Any, shown: Callable[[str], str]) -> Any:
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _value(each, shown) for name, each in value})
    if isinstance(value, dict):
        return {_value(name, shown): _value(each, shown) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_value(each, shown) for each in value]
    return shown(value) if isinstance(value, str) and not isinstance(value, Enum) else value
