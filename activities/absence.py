"""When a sandbox counts as gone.

The provider caches reads for 10 s, so one "not found" can be stale, and a create request whose answer was
lost can still commit a while later. Anything but "not found" - an error, a silence - is no evidence at all.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Absence:
    """Gathers the evidence for one sandbox: `confirmed` after two answers "not found" `confirm_s` apart.

    Before `not_before` nothing counts, as the sandbox may not have appeared yet.
    """

    def __init__(self, confirm_s: float, not_before: datetime | None = None) -> None:
        self._confirm_s = confirm_s
        self._not_before = not_before
        self._missing_since: float | None = None
        self.confirmed = False

    @property
    def may_still_appear(self) -> bool:
        """Whether a create request may yet commit."""
        return self._not_before is not None and datetime.now(UTC) < self._not_before

    def was_missing(self) -> None:
        """The provider answered that there is no such sandbox."""
        if self.may_still_appear:
            return
        now = time.monotonic()
        if self._missing_since is None:
            self._missing_since = now
        else:
            self.confirmed = now - self._missing_since >= self._confirm_s

    def was_there(self) -> None:
        """The provider showed the sandbox: what was missing before was a stale answer."""
        self._missing_since = None

    def was_destroyed(self) -> None:
        """The provider showed the sandbox as destroyed, which is final for this one."""
        self.confirmed = not self.may_still_appear

    @property
    def look_again_s(self) -> float:
        """How long to wait before the next look: no longer than the evidence needs, and never in a hurry."""
        now = time.monotonic()
        if self.may_still_appear and self._not_before is not None:
            left = (self._not_before - datetime.now(UTC)).total_seconds()
        elif self._missing_since is not None:
            left = self._missing_since + self._confirm_s - now
        else:
            left = 0.5
        return min(max(left, 0.05), 2.0)
