"""The provider's own timers: auto-stop, auto-archive, auto-delete and time to live.

They are looked at once in a period (10 s at the provider), so nothing here happens to the second. All but
the time to live count from the last activity, which every change of state renews.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from sandhold.local_daytona.errors import ApiError
from sandhold.local_daytona.records import SandboxRecord, State
from sandhold.local_daytona.transitions import Sandbox, Sandboxes

log = logging.getLogger(__name__)

#: What an auto-archive interval of 0 means, in minutes.
MAX_AUTO_ARCHIVE_MINUTES = 30 * 24 * 60


class Housekeeping:
    """Applies the timers of every sandbox, once in `period_s` seconds."""

    def __init__(self, sandboxes: Sandboxes, period_s: float) -> None:
        self._sandboxes = sandboxes
        self._period_s = period_s

    async def run(self) -> None:
        """Until cancelled. What fails for one sandbox is logged and tried again in the next round."""
        while True:
            await asyncio.sleep(self._period_s)
            for sandbox in self._sandboxes:
                try:
                    await self._look_after(sandbox)
                except ApiError as error:
                    log.info("sandbox %s: not now: %s", sandbox.record.id, error)
                except Exception:
                    log.exception("sandbox %s: housekeeping failed", sandbox.record.id)

    async def _look_after(self, sandbox: Sandbox) -> None:
        record = sandbox.record
        now = datetime.now(UTC)
        if record.pending:
            return
        if record.auto_destroy_at is not None and record.auto_destroy_at <= now:
            log.info("sandbox %s: its time to live is over", record.id)
            await self._sandboxes.delete(record.id)
        elif record.state is State.STARTED:
            if record.auto_stop_interval > 0 and self._idle_for(record, now, record.auto_stop_interval):
                log.info("sandbox %s: stopped after %d idle minutes", record.id, record.auto_stop_interval)
                await self._sandboxes.stop(record.id)
        elif record.state in (State.STOPPED, State.ARCHIVED):
            if record.auto_delete_interval >= 0 and self._idle_for(record, now, record.auto_delete_interval):
                log.info("sandbox %s: deleted %d minutes after its stop", record.id, record.auto_delete_interval)
                await self._sandboxes.delete(record.id)
            elif record.state is State.STOPPED and self._idle_for(
                record, now, record.auto_archive_interval or MAX_AUTO_ARCHIVE_MINUTES
            ):
                log.info("sandbox %s: archived", record.id)
                await self._sandboxes.archive(record.id)

    def _idle_for(self, record: SandboxRecord, now: datetime, minutes: int) -> bool:
        return now - record.last_activity_at >= self._minutes(minutes)

    def _minutes(self, minutes: int) -> timedelta:
        return minutes * self._sandboxes.minute
