"""How much time the running activity has."""

from __future__ import annotations

from datetime import UTC, datetime

from temporalio import activity


def time_left_s() -> float:
    """Seconds until the nearest deadline that Temporal gave this attempt; infinite without one."""
    info = activity.info()
    deadlines = [
        since + limit
        for since, limit in (
            (info.started_time, info.start_to_close_timeout),
            (info.scheduled_time, info.schedule_to_close_timeout),
        )
        if limit
    ]
    return (min(deadlines) - datetime.now(UTC)).total_seconds() if deadlines else float("inf")
