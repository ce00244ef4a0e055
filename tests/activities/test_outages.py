"""Storage or a provider that is away for hours: a transfer waits for it, and gives up other failures early."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.outages import Outages
from activities.storage_faults import StorageFaults
from activities.stream_requests import StreamBroken
from sandhold.contracts.errors import ErrorCode, ToolFailure, as_application_error
from sandhold.contracts.names import Activity
from sandhold.contracts.transfers import ATTEMPTS_LIMIT, FAILED_ATTEMPTS_LIMIT
from sandhold.storage.errors import StorageUnavailable

AWAY = StorageUnavailable("session storage could not be reached")
TYPED = as_application_error(
    ToolFailure(ErrorCode.PROVIDER_UNAVAILABLE, "503", retryable=True).error, non_retryable=False
)


class Failing(ActivityInboundInterceptor):
    """An activity that fails."""

    def __init__(self, failure: Exception) -> None:
        self._failure = failure

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        raise self._failure


async def told_of(attempt: int, failure: Exception, kind: Activity = Activity.FILL_SANDBOX) -> Exception:
    """What Temporal is told of an attempt that fails so, by a worker's interceptors in their order."""
    chain = Outages().intercept_activity(StorageFaults().intercept_activity(Failing(failure)))
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, attempt=attempt, activity_type=kind)
    asked: Any = None
    with pytest.raises(Exception) as raised:  # noqa: PT011
        await environment.run(chain.execute_activity, asked)
    return raised.value


@pytest.mark.parametrize("failure", [AWAY, TYPED], ids=["storage", "provider"])
async def test_an_outage_of_six_hours_does_not_use_up_the_attempts_of_a_transfer(failure: Exception) -> None:
    pauses = []
    for attempt in range(1, ATTEMPTS_LIMIT):
        told = await told_of(attempt, failure)
        assert isinstance(told, ApplicationError)
        assert told.non_retryable is False
        assert told.next_retry_delay is not None
        pauses.append(told.next_retry_delay)
    assert sum(pauses, timedelta(0)) > timedelta(hours=6)
    assert (pauses[0], max(pauses)) == (timedelta(seconds=0.1), timedelta(minutes=5))


async def test_a_longer_pause_that_the_provider_asks_for_is_kept() -> None:
    asked = ApplicationError("429", *TYPED.details, type=TYPED.type, next_retry_delay=timedelta(seconds=70))
    told = await told_of(2, asked)
    assert isinstance(told, ApplicationError)
    assert (told.next_retry_delay, told.type, told.details) == (asked.next_retry_delay, asked.type, asked.details)


@pytest.mark.parametrize("failure", [StreamBroken("each time"), KeyError("a bug")], ids=["stream", "bug"])
async def test_what_fails_by_itself_is_given_up_after_thirty_attempts(failure: Exception) -> None:
    assert await told_of(FAILED_ATTEMPTS_LIMIT - 1, failure) is failure
    last = await told_of(FAILED_ATTEMPTS_LIMIT, failure)
    assert isinstance(last, ApplicationError)
    assert last.non_retryable is True
    assert last.details == (failure.details if isinstance(failure, ApplicationError) else ())


async def test_followers_and_saves_have_their_own_patience() -> None:
    for kind in (Activity.FOLLOW_COMMANDS, Activity.SAVE_WORKSPACE):
        assert await told_of(FAILED_ATTEMPTS_LIMIT, TYPED, kind) is TYPED
