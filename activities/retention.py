"""Removing what sessions left, once their policies do not keep it any longer.

Fails closed: only what a session left is removed of which somebody knows since when it has ended. Temporal knows it
while it retains the closed workflow; the clean-up notes it beside what the session left, for later.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pydantic import Field
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.heartbeats import heartbeats
from sandhold.contracts.base import Message
from sandhold.contracts.names import SESSION_ATTRIBUTE, Activity, session_workflow_id
from sandhold.contracts.policy import Policy
from sandhold.contracts.storage import CleanStorageStep, StorageCleaned
from sandhold.storage import SessionStorage
from sandhold.storage.remains import EndMark, Remains
from sandhold.temporal import session_start

SETTLED_AFTER = timedelta(minutes=10)
"""Nothing is removed sooner after the end, so that who waited for it can read a last result."""
UNKNOWN_MARGIN = timedelta(days=1)
"""By how much longer that is kept of which nobody ever noted the end: from when it was last written to."""
LEFTOVERS_AFTER_S = 86400.0
_AT_ONCE = 10
_NAMED = 100


class Verdict(StrEnum):
    """What is to become of what a session left."""

    OPEN = "open"
    KEPT = "kept"
    UNDECIDED = "undecided"
    DUE = "due"


class _Progress(Message):
    """How far a clean-up has come: what an attempt finds of the one before."""

    after: str = ""
    """The last session that was dealt with."""
    done: StorageCleaned = Field(default_factory=StorageCleaned)


class RetentionActivities:
    """The scheduled clean-up of session storage."""

    def __init__(
        self, client: Client, storage: SessionStorage, deployment: str, *, settled_after: timedelta = SETTLED_AFTER
    ) -> None:
        self._client = client
        self._objects = storage.objects
        self._deployment = deployment
        self._settled_after = settled_after

    @activity.defn(name=Activity.CLEAN_STORAGE)
    async def clean_storage(self, step: CleanStorageStep) -> StorageCleaned:
        """Go over all sessions that storage holds something of, and remove what is due.

        Safe to repeat, and with several at once. Raises when Temporal or the storage does not answer: what was not
        looked at stays. Goes on where the attempt before was.
        """
        progress = _progress_of_attempt_before() or _Progress(done=StorageCleaned(dry_run=step.dry_run))
        done = progress.done
        async with heartbeats(progress.model_dump):
            is_ours = await self._is_ours(step.dry_run)
            waiting = [each for each in await self._objects.sessions() if each > progress.after]
            for start in range(0, len(waiting), _AT_ONCE):
                ids = waiting[start : start + _AT_ONCE]
                now = datetime.now(UTC)
                verdicts = await asyncio.gather(*(self._verdict(each, now, is_ours, step.dry_run) for each in ids))
                for session_id, verdict in zip(ids, verdicts, strict=True):
                    await self._carry_out(session_id, verdict, done)
                    progress.after = session_id
            if not step.dry_run:
                done.leftovers_removed += await self._objects.remove_unfinished(LEFTOVERS_AFTER_S)
        activity.logger.info("storage cleaned", extra=done.model_dump(exclude={"removed"}))
        return done

    async def _is_ours(self, dry_run: bool) -> bool:
        """Whether all that lies here is this deployment's: then also what nobody knows anything of."""
        claimed_by = await self._objects.claimed_by() if dry_run else await self._objects.claim(self._deployment)
        if claimed_by not in {None, self._deployment}:
            activity.logger.warning(
                "another deployment's storage: only sessions that are known here are removed", extra={"of": claimed_by}
            )
        return claimed_by in {None, self._deployment}

    async def _verdict(self, session_id: str, now: datetime, is_ours: bool, dry_run: bool) -> Verdict:
        remains = Remains(self._objects, session_id)
        noted = await remains.mark()
        known = await self._known_end(session_id)
        if known is Verdict.OPEN:
            return Verdict.OPEN
        if isinstance(known, EndMark):
            if noted != known and not dry_run:
                await remains.put_mark(known)
            kept_until = known.kept_until
        elif noted is not None:
            if noted.deployment != self._deployment:
                return Verdict.UNDECIDED
            kept_until = noted.kept_until
        elif is_ours:
            written_at = await remains.last_written_at()
            kept_until = (written_at or now) + timedelta(days=Policy().keep_days) + UNKNOWN_MARGIN
        else:
            return Verdict.UNDECIDED
        if now < kept_until + self._settled_after:
            return Verdict.KEPT
        return Verdict.OPEN if await self._something_runs(session_id) else Verdict.DUE

    async def _known_end(self, session_id: str) -> EndMark | Verdict:
        """What Temporal knows of the session's end: OPEN while it runs, UNDECIDED when it knows nothing."""
        try:
            described = await self._client.get_workflow_handle(session_workflow_id(session_id)).describe()
            if described.status is WorkflowExecutionStatus.RUNNING or described.close_time is None:
                return Verdict.OPEN
            start = await session_start(self._client, session_id)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return Verdict.UNDECIDED
            raise
        return EndMark(
            deployment=self._deployment,
            ended_at=described.close_time,
            keep_days=start.policy.keep_days,
            owner=start.owner,
        )

    async def _something_runs(self, session_id: str) -> bool:
        """A session that was closed by force leaves sandboxes that are still being deleted, and may write."""
        query = f"{SESSION_ATTRIBUTE} = '{session_id}' AND ExecutionStatus = 'Running'"
        return (await self._client.count_workflows(query)).count > 0

    async def _carry_out(self, session_id: str, verdict: Verdict, done: StorageCleaned) -> None:
        done.looked_at += 1
        match verdict:
            case Verdict.OPEN:
                done.kept_open += 1
            case Verdict.KEPT:
                done.kept_for_now += 1
            case Verdict.UNDECIDED:
                done.kept_undecided += 1
            case Verdict.DUE:
                async for batch in Remains(self._objects, session_id).remove(dry_run=done.dry_run):
                    done.objects_removed += batch.objects
                    done.bytes_removed += batch.bytes
                done.sessions_removed += 1
                if len(done.removed) < _NAMED:
                    done.removed.append(session_id)


def _progress_of_attempt_before() -> _Progress | None:
    details = activity.info().heartbeat_details
    return _Progress.model_validate(details[0]) if details else None
