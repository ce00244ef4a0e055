"""Removing what sessions left, once their policies do not keep it any longer.

Fails closed: only what a session left is removed of which somebody knows since when it has ended. Temporal knows it
while it retains the closed workflow; the clean-up notes it beside what the session left, for later. What cannot be read
is kept, counted and named, and holds up nothing else.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial

from pydantic import Field
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.ended_git_tokens import EndedGitTokens
from activities.ended_secrets import EndedSecrets, something_runs
from activities.heartbeats import heartbeats
from sandhold.contracts.base import Message
from sandhold.contracts.names import Activity, session_workflow_id
from sandhold.contracts.policy import Policy
from sandhold.contracts.storage import CleanStorageStep, StorageCleaned
from sandhold.github import GitHub
from sandhold.storage import SessionStorage
from sandhold.storage.claims import Claims
from sandhold.storage.errors import StorageDamaged, StorageOfAnother, StorageRefused
from sandhold.storage.remains import EndMark, MarkUnreadable, Remains
from sandhold.temporal import SessionUnreadable, session_if_known, session_record
from sandhold.vault import Vault

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
    UNREADABLE = "unreadable"
    DUE = "due"


class _Progress(Message):
    """How far a clean-up has come: what an attempt finds of the one before."""

    after: str = ""
    """The last session that was dealt with."""
    done: StorageCleaned = Field(default_factory=StorageCleaned)


class RetentionActivities:
    """The scheduled clean-up of session storage, and of sessions' secrets in the vault."""

    def __init__(
        self,
        client: Client,
        storage: SessionStorage,
        deployment: str,
        vault: Vault,
        *,
        settled_after: timedelta = SETTLED_AFTER,
        github: GitHub | None = None,
    ) -> None:
        """Without `github` tokens of git are left to end by themselves."""
        self._client = client
        self._objects = storage.objects
        self._claims = Claims(storage.objects, partial(session_if_known, client))
        self._deployment = deployment
        self._settled_after = settled_after
        self._secrets = EndedSecrets(client, vault, deployment, settled_after)
        self._git_tokens = None if github is None else EndedGitTokens(client, vault, github, deployment, settled_after)

    @activity.defn(name=Activity.CLEAN_STORAGE)
    async def clean_storage(self, step: CleanStorageStep) -> StorageCleaned:
        """Go over all sessions that storage holds something of, and remove what is due.

        Secrets and tokens of git go with their sessions' ends: see `EndedSecrets` and `EndedGitTokens`.

        Safe to repeat, and with several at once. Raises when Temporal, the storage or the vault does not answer: what
        was not looked at stays. What of one session cannot be read, or is refused, stays for itself. Goes on where the
        attempt before was.
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
            # Last: a vault that is away holds up no storage.
            done.secrets_removed += await self._secrets.remove(dry_run=step.dry_run)
            if self._git_tokens is not None:
                ended, done.git_tokens_left = await self._git_tokens.end(dry_run=step.dry_run)
                done.git_tokens_ended += ended
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
        try:
            return await self._judged(session_id, now, is_ours, dry_run)
        except (MarkUnreadable, StorageDamaged, StorageRefused, StorageOfAnother, SessionUnreadable) as error:
            return _unreadable(session_id, error)

    async def _judged(self, session_id: str, now: datetime, is_ours: bool, dry_run: bool) -> Verdict:
        remains = Remains(self._objects, session_id)
        known = await self._known_end(session_id)
        if known is Verdict.OPEN:
            return Verdict.OPEN
        if isinstance(known, EndMark):
            if not dry_run:
                await _note(remains, known)
            kept_until = known.kept_until
        elif (noted := await remains.mark()) is not None:
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
        return Verdict.OPEN if await something_runs(self._client, session_id) else Verdict.DUE

    async def _known_end(self, session_id: str) -> EndMark | Verdict:
        """What Temporal knows of the session's end: OPEN while it runs, UNDECIDED when it knows nothing.

        Nor does it when what lies here was left by an earlier session of the same id.
        """
        try:
            described = await self._client.get_workflow_handle(session_workflow_id(session_id)).describe()
            if described.status is WorkflowExecutionStatus.RUNNING or described.close_time is None:
                return Verdict.OPEN
            known = await session_record(self._client, session_id)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return Verdict.UNDECIDED
            raise
        if not await self._claims.is_of(session_id, known):
            return Verdict.UNDECIDED
        return EndMark(
            deployment=self._deployment,
            ended_at=described.close_time,
            keep_days=known.start.policy.keep_days,
            owner=known.start.owner,
        )

    async def _carry_out(self, session_id: str, verdict: Verdict, done: StorageCleaned) -> None:
        done.looked_at += 1
        match verdict:
            case Verdict.OPEN:
                done.kept_open += 1
            case Verdict.KEPT:
                done.kept_for_now += 1
            case Verdict.UNDECIDED:
                done.kept_undecided += 1
            case Verdict.UNREADABLE:
                _count_unreadable(session_id, done)
            case Verdict.DUE:
                await self._remove(session_id, done)

    async def _remove(self, session_id: str, done: StorageCleaned) -> None:
        try:
            async for batch in Remains(self._objects, session_id).remove(dry_run=done.dry_run):
                done.objects_removed += batch.objects
                done.bytes_removed += batch.bytes
        except StorageRefused as error:
            _unreadable(session_id, error)
            _count_unreadable(session_id, done)
            return
        done.sessions_removed += 1
        if len(done.removed) < _NAMED:
            done.removed.append(session_id)


async def _note(remains: Remains, known: EndMark) -> None:
    """Have the mark say what Temporal knows, whatever it said, or could not say, before."""
    try:
        if await remains.mark() == known:
            return
    except MarkUnreadable:
        activity.logger.warning("a mark that nobody can read is written anew", extra={"session": remains.session_id})
    await remains.put_mark(known)


def _unreadable(session_id: str, error: Exception) -> Verdict:
    activity.logger.warning("what a session left is kept", extra={"session": session_id, "reason": str(error)})
    return Verdict.UNREADABLE


def _count_unreadable(session_id: str, done: StorageCleaned) -> None:
    done.kept_unreadable += 1
    if len(done.unreadable) < _NAMED:
        done.unreadable.append(session_id)


def _progress_of_attempt_before() -> _Progress | None:
    details = activity.info().heartbeat_details
    return _Progress.model_validate(details[0]) if details else None
