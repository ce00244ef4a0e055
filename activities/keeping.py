"""The work is kept: the workspace of a sandbox that is about to be deleted goes into session storage, as an archive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.heartbeats import heartbeats
from activities.provider import ProviderAccess
from activities.shown_texts import as_shown, shown_here
from activities.streams import SandboxStreams
from activities.workspaces.archive import SUFFIX
from activities.workspaces.download import WorkspaceDownload
from sandhold.contracts.base import Message
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure, as_application_error
from sandhold.contracts.names import WORKSPACE_PATH, Activity
from sandhold.contracts.policy import FILE_LIMIT_BYTES
from sandhold.contracts.steps import SandboxRef, SaveStep
from sandhold.contracts.transfers import SavedWorkspace
from sandhold.contracts.workspaces import DownloadWorkspaceArguments, DownloadWorkspaceResult
from sandhold.storage import FileStore, Quota, SessionStorage
from sandhold.storage.errors import StorageRefused

SAVES_AT_ONCE = 4
"""Of one worker, beside the downloads: each takes up to 48 MiB of memory, and as much of a processor as it gets."""
IN_USE_EVERY_S = 120.0
"""How often a sandbox that waits for a place is asked something: the provider stops one that nobody uses, after ten
minutes at the earliest."""
LONGEST_PAUSE_S = 15.0
"""Between two attempts, by their retry policy. What it was longer was time without a worker, and is not counted."""
_SAVE_CALL = "%save"
"""Stands for the call that a save is not. No call id has a %."""
_FOLDERS = ("workspaces", *(f"workspaces-{number}" for number in range(2, 10)))
"""Where archives go: the first folder in which they can lie."""
_KEPT = ("!.git", "!.hg", "!.svn")
"""Left out of downloads by default, but work that may exist nowhere else."""


class _Effort(Message):
    """What attempts that failed by themselves took of the time, as heartbeats tell it to the next one.

    An attempt that was lost with its worker tells nothing of its own time: that is not counted.
    """

    spent_s: float = 0.0
    failed_at: float | None = None
    """By the clock of the worker that failed; None while an attempt is under way."""
    why: str = ""

    @classmethod
    def of_earlier_attempts(cls) -> _Effort:
        details = activity.info().heartbeat_details
        effort = cls.model_validate(details[0]) if details else cls()
        if effort.failed_at is not None:
            effort.spent_s += min(max(0.0, time.time() - effort.failed_at), LONGEST_PAUSE_S)
            effort.failed_at = None
        return effort

    async def note(self, failure: Exception, took_s: float) -> None:
        """That an attempt failed. Session storage that does not do its part costs none of the time."""
        self.why = (await as_shown(_meaning_of(failure))).message
        if not _is_for_lack_of_storage(failure):
            self.spent_s += took_s
            self.failed_at = time.time()


class KeepingActivities:
    """Saves workspaces of sandboxes that are about to be deleted."""

    def __init__(self, access: ProviderAccess, storage: SessionStorage) -> None:
        self._access = access
        self._streams = SandboxStreams(access)
        self._storage = storage
        self._places = asyncio.Semaphore(SAVES_AT_ONCE)

    @activity.defn(name=Activity.SAVE_WORKSPACE)
    async def save_workspace(self, step: SaveStep) -> SavedWorkspace:
        """Bring the workspace into session storage as an archive, within `timeout_s` once there is a place for it.

        It is under its name as a whole or not at all. What another attempt would not mend is the error of the result,
        and so is that the time is over: the attempts' own, with the pauses between them, but not that without a place,
        without a worker, or without session storage.
        """
        effort = _Effort.of_earlier_attempts()
        saving = _Saving(self._streams, self._storage.files(step.ref.session_id), step.ref)
        async with heartbeats(lambda: {**saving.so_far(), **effort.model_dump()}), self._place(step.ref):
            began = time.monotonic()
            try:
                async with asyncio.timeout(_left_s(step, effort)) as limit:
                    return await saving.run()
            except ToolFailure as failure:
                if not failure.error.retryable and not _is_refused(failure):
                    return SavedWorkspace(error=failure.error)
                await effort.note(failure, time.monotonic() - began)
                raise as_application_error(failure.error, non_retryable=False) from failure
            except TimeoutError:
                if not limit.expired():
                    raise
                return SavedWorkspace(error=_out_of_time(step, effort))
            except Exception as failure:
                await effort.note(failure, time.monotonic() - began)
                raise
            finally:
                activity.heartbeat(effort.model_dump())

    @asynccontextmanager
    async def _place(self, ref: SandboxRef) -> AsyncIterator[None]:
        """A place among the saves, in the order of asking. Until there is one the sandbox counts as used."""
        coming = asyncio.ensure_future(self._places.acquire())
        try:
            while not (await asyncio.wait([coming], timeout=IN_USE_EVERY_S))[0]:
                await self._use(ref)
            yield
        finally:
            if not coming.cancel():
                self._places.release()

    async def _use(self, ref: SandboxRef) -> None:
        """Ask the sandbox something. Raises ApplicationError when it is at rest, or gone."""
        try:
            await self._access.toolbox(ref, lambda sandbox: sandbox.process.exec(":", timeout=10), 15.0)
        except ApplicationError as error:
            if error.non_retryable:
                raise
            activity.logger.warning(
                "a sandbox that waits to be saved did not answer", extra={"error": await shown_here(error)}
            )


class _Saving:
    """One attempt."""

    def __init__(self, streams: SandboxStreams, files: FileStore, ref: SandboxRef) -> None:
        self._streams = streams
        self._files = files
        self._ref = ref
        # The session's quota alone: the archive is no file that its user made, and is deleted with no second chance.
        session_bytes = ref.storage_quota_bytes
        self._quota = Quota(session_bytes, min(session_bytes, FILE_LIMIT_BYTES))
        self._download: WorkspaceDownload | None = None

    def so_far(self) -> dict[str, int]:
        report = None if self._download is None else self._download.report
        return {} if report is None else {"files": report.files, "bytes": report.bytes}

    async def run(self) -> SavedWorkspace:
        """Raises ToolFailure, and what may go better in another attempt as ApplicationError."""
        path = await self._free_name()
        asked = DownloadWorkspaceArguments(
            sandbox_id=self._ref.sandbox_id, session_path=path, format="archive", exclude=list(_KEPT)
        )
        self._download = WorkspaceDownload(self._streams, self._files, self._quota, WORKSPACE_PATH, asked)
        result = await self._download.run(self._ref, _SAVE_CALL)
        return SavedWorkspace(
            session_path=result.session_path,
            files=result.files_downloaded,
            bytes=result.bytes,
            archive_bytes=result.archive_bytes or 0,
            sha256=result.sha256,
            skipped_count=result.skipped_count,
            changed_count=result.changed_count,
            report_path=await self._reported(f"{path}.json", result),
        )

    async def _free_name(self) -> str:
        """Where the archive goes, less its suffix: an earlier one of this name is replaced, nothing else is."""
        for folder in _FOLDERS:
            path = f"{folder}/{self._ref.sandbox_id}-g{self._ref.generation}"
            if not await self._is_file(folder) and not await self._files.is_folder(path + SUFFIX):
                return path
        raise ToolFailure(
            ErrorCode.INVALID_ARGUMENTS, f"files in session storage are in the way of {_FOLDERS[0]} and its likes"
        )

    async def _is_file(self, path: str) -> bool:
        try:
            await self._files.find(path)
        except ToolFailure as failure:
            if failure.error.code is ErrorCode.PATH_NOT_FOUND:
                return False
            raise
        return True

    async def _reported(self, path: str, result: DownloadWorkspaceResult) -> str | None:
        """Store what the archive lacks beside it; where that is, None when it lacks nothing."""
        if not result.skipped_count and not result.changed_count:
            return None
        try:
            await self._files.write(path, result.model_dump_json(indent=1).encode(), self._quota)
        except ToolFailure as failure:
            if failure.error.retryable:
                raise
            activity.logger.warning(
                "what a saved workspace lacks was not listed", extra={"error": await shown_here(failure)}
            )
            return None
        return f"/{path}"


def _left_s(step: SaveStep, effort: _Effort) -> float | None:
    return None if step.timeout_s is None else max(0.0, step.timeout_s - effort.spent_s)


def _out_of_time(step: SaveStep, effort: _Effort) -> ToolError:
    message = f"the workspace was not saved within {step.timeout_s:g} s"
    return ToolError(code=ErrorCode.TIMEOUT, message=f"{message}: {effort.why}" if effort.why else message)


def _meaning_of(failure: Exception) -> ToolError:
    if isinstance(failure, ToolFailure):
        return failure.error
    message = failure.message if isinstance(failure, ApplicationError) else type(failure).__name__
    return ToolError(code=ErrorCode.INTERNAL, message=message)


def _is_for_lack_of_storage(failure: Exception) -> bool:
    """Whether session storage could not be reached, or has no room for now. A sandbox's full disk is not retryable."""
    codes = {ErrorCode.INTERNAL, ErrorCode.STORAGE_FULL}
    if not isinstance(failure, ToolFailure) or failure.error.code not in codes:
        return False
    return failure.error.retryable or _is_refused(failure)


def _is_refused(failure: ToolFailure) -> bool:
    """Whether session storage refuses us. Others are told at once; here work is lost unless somebody mends that."""
    return isinstance(failure.__cause__, StorageRefused)
