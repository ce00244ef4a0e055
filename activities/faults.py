"""The one place where an exception of the provider's client becomes a fault, and the fault an error of ours.

Seen with daytona 0.226.1: most exceptions carry their HTTP status, but a failed download is a bare
`DaytonaError` whose status is only in its cause, a wait that ends in the state `error` has neither status nor
id, and a message may be a whole HTML page of some proxy on the way.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Iterator
from datetime import timedelta
from typing import TypeVar

import aiohttp
import httpx
from daytona import DaytonaError, DaytonaTimeoutError
from daytona.common.errors import SOURCE_DAEMON
from temporalio.exceptions import ApplicationError

from activities.clients import note_answer
from sandhold.contracts.errors import (
    NOT_RUNNING_WORDS,
    ErrorCode,
    ProviderFault,
    ToolError,
    from_provider,
    retry_after_s,
)
from sandhold.contracts.excerpts import beginning_of

T = TypeVar("T")

# What the client raises. Anything else that comes out of a request is a fault of our own and passes through.
_CLIENT_ERRORS = (DaytonaError, aiohttp.ClientError, httpx.HTTPError, OSError, TimeoutError)

_STEP_PREFIX = re.compile(r"^((Failed to [a-z -]+|Failure during waiting for [a-z -]+): )+")
_MARKUP = re.compile(r"<(?:!doctype|html|head|body|title)\b", re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_TEXT_LIMIT = 300


class ProviderError(ApplicationError):
    """A request to the provider failed.

    It leaves an activity as it is: its type is the error's code, its detail the `ToolError`, and Temporal
    retries it when the error says so, after the delay that the provider asked for.
    """

    def __init__(self, fault: ProviderFault, error: ToolError) -> None:
        pause_s = retry_after_s(fault.headers)
        super().__init__(
            error.message,
            error,
            type=error.code,
            non_retryable=not error.retryable,
            next_retry_delay=None if pause_s is None else timedelta(seconds=pause_s),
        )
        self.fault = fault
        self.error = error

    @property
    def not_found(self) -> bool:
        return self.fault.status == 404

    @property
    def is_conflict(self) -> bool:
        """409: the name is taken, or a change of state is in progress, or another one came first."""
        return self.fault.status == 409

    @property
    def refuses_the_key(self) -> bool:
        """401, which nothing inside a sandbox answers whatever it says of itself; or 403 by the provider itself about
        what the key may do, not about a file or a quota."""
        if self.error.code is ErrorCode.CONNECTION_REQUIRED:
            return True
        is_about_the_key = self.fault.status == 403 and self.error.code is ErrorCode.PROVIDER_REJECTED
        return is_about_the_key and not self.came_from_inside

    @property
    def saw_error_state(self) -> bool:
        """Whether the client waited for a state and saw `error` instead: a bare error with nothing but this text."""
        return self.fault.status is None and "entered error state" in self.fault.message

    @property
    def came_from_inside(self) -> bool:
        """Whether the toolbox inside the sandbox answered of its own accord, so that the sandbox runs."""
        return self.fault.source == SOURCE_DAEMON and (self.fault.status or 0) < 500 and not self._speaks_of_stopped

    @property
    def says_not_running(self) -> bool:
        """Whether the proxy before the toolbox refused because nothing runs behind it: not the 5xx of a bad moment."""
        return self.fault.status in {400, 404} and not self.came_from_inside

    @property
    def _speaks_of_stopped(self) -> bool:
        # Some proxies answer in the name of the toolbox; only the words tell them from it.
        return re.search(NOT_RUNNING_WORDS, self.fault.message, re.IGNORECASE) is not None


async def request(call: Awaitable[T], within_s: float) -> T:
    """Await one call of the client, for at most `within_s` seconds. Raises ProviderError; cancellation passes."""
    try:
        async with asyncio.timeout(within_s):
            answer = await call
    except _CLIENT_ERRORS as error:
        failure = provider_error(error)
        if failure.refuses_the_key:
            note_answer(failure.fault.status)
        raise failure from error
    note_answer(None)
    return answer


def provider_error(error: BaseException) -> ProviderError:
    """What an exception of the client means, by the table in the contracts."""
    fault = fault_of(error)
    return ProviderError(fault, from_provider(fault))


def fault_of(error: BaseException) -> ProviderFault:
    """What an exception of the client tells, its causes included."""
    message = str(error)
    status = code = source = None
    headers: dict[str, str] = {}
    timed_out = False
    for each in _with_causes(error):
        timed_out = timed_out or isinstance(each, (TimeoutError, DaytonaTimeoutError, httpx.TimeoutException))
        if isinstance(each, DaytonaError):
            status = status or each.status_code
            code = code or each.code
            source = source or each.source
            headers = headers or {str(name): str(value) for name, value in each.headers.items()}
        elif isinstance(each, aiohttp.ClientResponseError):
            status = status or each.status
            headers = headers or dict(each.headers or {})
            message = each.message or message
    return ProviderFault(
        status=status,
        code=code,
        source=source,
        message=readable(message),
        timed_out=timed_out and status is None,
        headers=headers,
    )


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__


def readable(message: str) -> str:
    """One line for a person: without the client's prefixes, and without the pages that proxies answer with."""
    text = _STEP_PREFIX.sub("", message)
    if markup := _MARKUP.search(text):
        text = text[: markup.start()]
    return beginning_of(_UNPRINTABLE.sub(" ", text).strip(), _TEXT_LIMIT)
