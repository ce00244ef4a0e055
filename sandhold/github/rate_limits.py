"""Waiting as GitHub says, with everybody else of this process.

https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api and best practices beside it: who goes
on asking while limited is limited for longer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from sandhold.github.errors import RateLimited

LONGEST_WAIT = timedelta(hours=1)
"""What is told beyond that is no wait but an error."""
UNTOLD_WAIT = timedelta(minutes=1)
"""Of a secondary limit that does not say how long, as its documentation asks for."""


class RateLimits:
    """The moment until which nothing is asked, for one API."""

    def __init__(self) -> None:
        self._until = 0.0

    def check(self) -> None:
        """Raise RateLimited while the last limit lasts."""
        left = self._until - time.monotonic()
        if left > 0:
            raise _limited("GitHub's rate limit is used up", timedelta(seconds=left))

    def learn(self, wait: timedelta) -> RateLimited:
        """Note that nothing is to be asked for so long, an hour at most; the error to raise."""
        asked_again = min(wait, LONGEST_WAIT)
        self._until = max(self._until, time.monotonic() + asked_again.total_seconds())
        return _limited("GitHub limits the rate of requests", wait)


def told_wait(status: int, headers: Mapping[str, str], message: str) -> timedelta | None:
    """How long an answer asks to wait; None when it is not about a rate limit. `headers` are case-insensitive."""
    if status not in {403, 429}:
        return None
    seconds = _number(headers.get("Retry-After"))
    if seconds is not None:
        return timedelta(seconds=max(seconds, 1))
    if headers.get("X-RateLimit-Remaining") == "0":
        reset = _number(headers.get("X-RateLimit-Reset"))
        if reset is not None:
            # By GitHub's own clock, and to the end of that second.
            return timedelta(seconds=max(reset + 1 - _now_there(headers).timestamp(), 1))
    if status == 429 or "rate limit" in message.lower():
        return UNTOLD_WAIT
    return None


def _limited(what: str, wait: timedelta) -> RateLimited:
    return RateLimited(what, wait, retryable=wait <= LONGEST_WAIT)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 12 else None


def _now_there(headers: Mapping[str, str]) -> datetime:
    try:
        moment = parsedate_to_datetime(headers.get("Date", ""))
    except ValueError:
        return datetime.now(UTC)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
