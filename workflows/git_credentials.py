"""The tool `daytona_git_credentials`: git in a sandbox has a credential while it runs, and none that outlives that.

All that is in the sandbox or alive at GitHub is noted before it is asked for. So whatever is lost on the way, what may
be there is taken away and ended later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError
from temporalio.workflow import ActivityCancellationType, ActivityHandle

from workflows.lifecycle import Lifecycle, failure_from
from workflows.steps import HEARTBEAT_TIMEOUT, PATIENT, error_of, signal_of
from workflows.waiting import seconds_until, until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import CallOutcome
    from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolError
    from sandhold.contracts.git_credentials import (
        GitCredentialsInstalled,
        GitCredentialsKept,
        InstallGitCredentialsStep,
        RemoveGitCredentialsStep,
        RevokeGitTokensStep,
    )
    from sandhold.contracts.names import Activity
    from sandhold.contracts.sandboxes import SandboxCarried, SandboxState

_INSTALL_WITHIN = timedelta(minutes=2)
_REMOVE_WITHIN = timedelta(seconds=30)
_REVOKE_WITHIN = timedelta(seconds=30)
_LAST_REVOKE_WITHIN = timedelta(minutes=3)
"""What is not revoked by then the clean-up ends, or its own end does."""
_PAUSE = timedelta(seconds=30)
"""After a failure, before the next try."""
_PUT_BACK_WITHIN_S = 10.0
"""How long a start, or a download, waits for the credential to be back. It comes later then."""
_AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)
_RUNNING = {SandboxState.STARTED, SandboxState.STARTING}
_AT_REST = {SandboxState.STOPPED, SandboxState.ARCHIVED}


class GitCredentials:
    """Keeps one sandbox's credential: one change at a time, and what is due when it is due."""

    def __init__(self, carried: SandboxCarried) -> None:
        self._carried = carried
        self._lifecycle: Lifecycle
        self._busy = False
        self._hides = 0
        self._installing: ActivityHandle[GitCredentialsInstalled] | None = None
        self._keeps = False

    def attach(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def resume(self) -> None:
        """Go on with what the run before has kept."""
        if self._carried.git_credentials is not None:
            self._begin_keeping()

    @property
    def wanted(self) -> bool:
        kept = self._carried.git_credentials
        return kept is not None and kept.wanted

    @property
    def in_place(self) -> bool:
        """Whether the file may be in the sandbox."""
        kept = self._carried.git_credentials
        return kept is not None and kept.in_place

    async def install(self) -> CallOutcome:
        """Put a credential in place; the outcome of the call that asks for it.

        Raises ActivityError, and ToolFailure when the sandbox is stopped meanwhile.
        """
        await until(lambda: not self._hides)
        async with self._alone():
            if not self._lifecycle.ready:
                raise failure_from(ToolError(code=ErrorCode.CANCELLED, message="the sandbox is being stopped"))
            kept = self._kept()
            try:
                installed = await self._install(kept)
            except ActivityError:
                # Also without a connection: an earlier attempt may have had one, and delivered something.
                kept.due_at = None
                raise
            kept.wanted = True
        return CallOutcome(result=installed.result.model_dump(mode="json"))

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Nothing is put in place inside of this; what is there already, `remove` takes away."""
        self._hides += 1
        try:
            yield
        finally:
            self._hides -= 1
            if (kept := self._carried.git_credentials) is not None and not kept.in_place:
                kept.due_at = None

    async def remove(self) -> None:
        """Take the file out of the sandbox. Raises ActivityError when it is not known to be gone."""
        async with self._alone():
            if (kept := self._carried.git_credentials) is not None and kept.in_place:
                await self._remove(kept, for_good=False)

    async def put_back(self) -> None:
        """Put a credential in place again where one is wanted, now or, when that takes long, a little later."""
        if self.wanted:
            putting = asyncio.create_task(self._put_back())
            await until(putting.done, timeout_s=_PUT_BACK_WITHIN_S)

    def cancel(self) -> None:
        """What is being put in place is not needed: the sandbox is about to be stopped or deleted."""
        if self._installing is not None:
            self._installing.cancel()

    async def take_away(self) -> None:
        """Before the sandbox stops, or is deleted: the file is gone and the tokens are ended when this returns.

        Where that fails it is tried again later, and nothing is held up by it.
        """
        self.cancel()
        async with self._alone():
            if (kept := self._carried.git_credentials) is not None:
                await self._take_away(kept)

    async def end(self) -> None:
        """The sandbox is gone: end what may be left of its tokens."""
        self.cancel()
        async with self._alone():
            kept = self._carried.git_credentials
            if kept is not None and kept.tokens:
                await self._revoke(kept, _LAST_REVOKE_WITHIN)

    # What is due.

    def _begin_keeping(self) -> None:
        if not self._keeps:
            self._keeps = True
            asyncio.create_task(self._keep())  # noqa: RUF006 - the event loop of a workflow keeps its tasks

    async def _keep(self) -> None:
        while True:
            due_at = self._due_at()
            if due_at is not None and due_at <= workflow.now():
                await self._do_what_is_due()
                continue
            await self._wait_for(due_at)

    async def _wait_for(self, due_at: datetime | None) -> None:
        """Return when it is time, or when something else is due."""
        await until(lambda: self._due_at() != due_at, None if due_at is None else seconds_until(due_at))

    def _due_at(self) -> datetime | None:
        """When there is something to do; None while there is not, or it is not the time for it."""
        kept = self._carried.git_credentials
        if kept is None or self._busy or self._carried.ending is not None or self._lifecycle.operation is not None:
            return None
        if self._lifecycle.state is SandboxState.STARTED:
            has_to = not self._hides if kept.wanted else kept.in_place or kept.tokens
            return (kept.due_at or _AT_ONCE) if has_to else None
        if not kept.tokens or self._lifecycle.state not in _AT_REST:
            return None
        # With a version nothing was revoked yet: it was stopped from outside.
        return _AT_ONCE if kept.version is not None else kept.due_at or _AT_ONCE

    async def _do_what_is_due(self) -> None:
        async with self._alone():
            kept = self._carried.git_credentials
            if kept is None:
                return
            if not self._lifecycle.ready:
                await self._revoke(kept, _REVOKE_WITHIN)
            elif kept.wanted:
                await self._renew(kept)
            else:
                try:
                    if kept.in_place:
                        await self._remove(kept, for_good=True)
                except ActivityError as failure:
                    self._note_failure(kept, failure)
                else:
                    await self._revoke(kept, _REVOKE_WITHIN)

    async def _take_away(self, kept: GitCredentialsKept) -> None:
        try:
            if kept.in_place:
                await self._remove(kept, for_good=False)
        except ActivityError as failure:
            workflow.logger.warning("git's credential was not removed", extra={"error": error_of(failure).message})
        await self._revoke(kept, _REVOKE_WITHIN)

    async def _put_back(self) -> None:
        async with self._alone():
            kept = self._carried.git_credentials
            is_time = self._lifecycle.state in _RUNNING and self._carried.ending is None and not self._hides
            if kept is not None and kept.wanted and is_time:
                await self._renew(kept)

    async def _renew(self, kept: GitCredentialsKept) -> None:
        try:
            await self._install(kept)
        except ActivityError as failure:
            error = error_of(failure)
            if error.provider == "github" and not error.retryable:
                # It will not change its mind; the next call of the tool asks again.
                kept.wanted, kept.due_at = False, None
                workflow.logger.warning("git's credential is refused", extra={"error": error.message})
            else:
                self._note_failure(kept, failure)

    def _note_failure(self, kept: GitCredentialsKept, failure: ActivityError) -> None:
        kept.due_at = workflow.now() + _PAUSE
        match signal_of(failure):
            case SandboxSignal.LOST:
                self._lifecycle.lose(error_of(failure))
            case SandboxSignal.NOT_STARTED:
                self._lifecycle.noticed_stopped()
                kept.due_at = None
            case _:
                workflow.logger.warning("git's credential: to be tried again", extra={"error": str(failure.cause)})

    # Single changes. Each is made alone.

    def _kept(self) -> GitCredentialsKept:
        if self._carried.git_credentials is None:
            self._carried.git_credentials = GitCredentialsKept()
        self._begin_keeping()
        return self._carried.git_credentials

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        await until(lambda: not self._busy)
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    async def _install(self, kept: GitCredentialsKept) -> GitCredentialsInstalled:
        # On record before anything is minted: from here on there may be something to take away.
        kept.in_place = kept.tokens = True
        kept.requests += 1
        self._installing = workflow.start_activity(
            Activity.INSTALL_GIT_CREDENTIALS,
            InstallGitCredentialsStep(ref=self._lifecycle.ref(), number=kept.requests, version=kept.version),
            result_type=GitCredentialsInstalled,
            schedule_to_close_timeout=_INSTALL_WITHIN,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            retry_policy=PATIENT,
            # Who cancels it revokes what it has minted: it has to have ended by then.
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary="give git a credential",
        )
        try:
            installed = await self._installing
        finally:
            self._installing = None
        kept.version = installed.version
        # By a clock that is behind the server's it is not time yet when the timer has run.
        kept.due_at = installed.renew_at if installed.renew_at > workflow.now() else workflow.now() + _PAUSE
        return installed

    async def _remove(self, kept: GitCredentialsKept, *, for_good: bool) -> None:
        kept.requests += 1
        await workflow.execute_activity(
            Activity.REMOVE_GIT_CREDENTIALS,
            RemoveGitCredentialsStep(ref=self._lifecycle.ref(), number=kept.requests, for_good=for_good),
            schedule_to_close_timeout=_REMOVE_WITHIN,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            retry_policy=PATIENT,
            summary="take git's credential away",
        )
        kept.in_place, kept.due_at = False, None

    async def _revoke(self, kept: GitCredentialsKept, within: timedelta) -> None:
        # What is put in place after this is another token, whatever becomes of these.
        kept.version, kept.due_at = None, None
        if not kept.tokens:
            return
        try:
            await workflow.execute_activity(
                Activity.REVOKE_GIT_TOKENS,
                RevokeGitTokensStep(ref=self._lifecycle.ref()),
                schedule_to_close_timeout=within,
                heartbeat_timeout=HEARTBEAT_TIMEOUT,
                retry_policy=PATIENT,
                summary="revoke git's tokens",
            )
        except ActivityError as failure:
            kept.due_at = workflow.now() + _PAUSE
            workflow.logger.warning("git's tokens were not revoked", extra={"error": error_of(failure).message})
            return
        kept.tokens = False
