"""How long GitHub's answers ask to wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from multidict import CIMultiDict

from sandhold.github import RateLimited
from sandhold.github.rate_limits import RateLimits, told_wait

THERE = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
"""What GitHub's clock says: nobody else's."""


def headers(**given: str) -> CIMultiDict[str]:
    return CIMultiDict({name.replace("_", "-"): value for name, value in given.items()})


def reset_in(seconds: int) -> CIMultiDict[str]:
    at = THERE + timedelta(seconds=seconds)
    return headers(
        date=format_datetime(THERE, usegmt=True),
        x_ratelimit_remaining="0",
        x_ratelimit_reset=str(int(at.timestamp())),
    )


@pytest.mark.parametrize(
    ("status", "given", "message", "seconds"),
    [
        (403, headers(retry_after="30"), "", 30),
        (429, headers(retry_after="30"), "", 30),
        (429, headers(retry_after="0"), "", 1),
        (403, reset_in(120), "", 121),
        (429, reset_in(-5), "", 1),
        (403, CIMultiDict({"Retry-After": "30", **reset_in(120)}), "", 30),
        (403, headers(), "You have exceeded a secondary rate limit.", 60),
        (429, headers(), "", 60),
        (429, headers(retry_after="soon"), "", 60),
        (403, headers(), "This installation has been suspended", None),
        (403, headers(x_ratelimit_remaining="4999", x_ratelimit_reset="1"), "", None),
        (401, headers(retry_after="30"), "", None),
        (500, headers(retry_after="30"), "", None),
        (200, headers(x_ratelimit_remaining="0", x_ratelimit_reset="1"), "", None),
    ],
)
def test_the_wait_is_what_the_headers_say(
    status: int, given: CIMultiDict[str], message: str, seconds: int | None
) -> None:
    wait = told_wait(status, given, message)
    assert wait == (None if seconds is None else timedelta(seconds=seconds))


def test_what_is_told_beyond_an_hour_is_not_waited_for() -> None:
    assert RateLimits().learn(timedelta(hours=1)).error.retryable
    assert not RateLimits().learn(timedelta(hours=1, seconds=1)).error.retryable


def test_a_shorter_wait_does_not_end_a_longer_one() -> None:
    limits = RateLimits()
    limits.check()
    limits.learn(timedelta(minutes=30))
    limits.learn(timedelta(seconds=1))
    with pytest.raises(RateLimited) as limited:
        limits.check()
    assert limited.value.retry_after is not None
    assert limited.value.retry_after > timedelta(minutes=20)
