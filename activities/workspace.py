"""The tool `daytona_download_workspace`."""

from __future__ import annotations

import asyncio

from temporalio import activity

from activities.files import absolute
from activities.heartbeats import heartbeats
from activities.outcomes import arguments_of, failed_outcome, outcome_of
from activities.provider import ProviderAccess
from activities.streams import SandboxStreams
from activities.workspaces.download import WorkspaceDownload
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.errors import ErrorCode, ToolFailure, as_application_error
from sandhold.contracts.names import WORKSPACE_PATH, Activity, ToolName
from sandhold.contracts.steps import DownloadStep, SaveStep
from sandhold.contracts.transfers import SavedWorkspace
from sandhold.contracts.workspaces import DownloadWorkspaceArguments, DownloadWorkspaceResult
from sandhold.storage import FileStore, Quota, SessionStorage

DOWNLOADS_AT_ONCE = 4
"""Of one worker: each takes up to 48 MiB of memory, and as much of a processor as it gets."""
SAVES_AT_ONCE = 4
"""Beside the downloads: their sandboxes are deleted whether they had a place or not."""
_SAVE_CALL = "%save"
"""Stands for the call that a save is not. No call id has a %."""
_KEPT = ("!.git", "!.hg", "!.svn")
"""Left out of downloads by default, but work that may exist nowhere else."""


class WorkspaceActivities:
    """Brings workspaces into session storage."""

    def __init__(self, access: ProviderAccess, storage: SessionStorage) -> None:
        self._streams = SandboxStreams(access)
        self._storage = storage
        self._places = asyncio.Semaphore(DOWNLOADS_AT_ONCE)
        self._places_for_saves = asyncio.Semaphore(SAVES_AT_ONCE)

    @activity.defn(name=Activity.DOWNLOAD_WORKSPACE)
    async def download_workspace(self, step: DownloadStep) -> CallOutcome:
        """Bring a directory or a file into session storage, as single files or as one archive.

        An archive is under its name as a whole or not at all, and so is each single file. An attempt starts over; it
        ends what earlier ones of the same call left in the sandbox. What the agent can do something about is an
        outcome. The requests that this makes all the time are use of the sandbox to the provider.
        """
        download: WorkspaceDownload | None = None
        async with heartbeats(lambda: _so_far(download)), self._places:
            try:
                asked = await arguments_of(self._storage, step, ToolName.DOWNLOAD_WORKSPACE, DownloadWorkspaceArguments)
                download = await asyncio.to_thread(
                    WorkspaceDownload,
                    self._streams,
                    self._storage.files(step.ref.session_id),
                    Quota(step.ref.storage_quota_bytes, step.file_quota_bytes),
                    absolute(asked.sandbox_path),
                    asked,
                )
                result = await download.run(step.ref, step.call_id)
            except ToolFailure as failure:
                if failure.error.code is ErrorCode.INTERNAL and failure.error.retryable:
                    # Session storage cannot be reached.
                    raise as_application_error(failure.error, non_retryable=False) from failure
                return failed_outcome(failure)
            return await outcome_of(self._storage, step.ref.session_id, step.call_id, result)

    @activity.defn(name=Activity.SAVE_WORKSPACE)
    async def save_workspace(self, step: SaveStep) -> SavedWorkspace:
        """Bring the workspace of a sandbox that is about to be deleted into session storage, as an archive.

        It is under its name as a whole or not at all. What another attempt would not mend is the error of the result.
        """
        ref = step.ref
        path = f"workspaces/{ref.sandbox_id}-g{ref.generation}"
        asked = DownloadWorkspaceArguments(
            sandbox_id=ref.sandbox_id, session_path=path, format="archive", exclude=list(_KEPT)
        )
        files = self._storage.files(ref.session_id)
        quota = Quota(ref.storage_quota_bytes, step.file_quota_bytes)
        download = WorkspaceDownload(self._streams, files, quota, WORKSPACE_PATH, asked)
        async with heartbeats(lambda: _so_far(download)), self._places_for_saves:
            try:
                result = await download.run(ref, _SAVE_CALL)
                report_path = await _reported(files, quota, f"{path}.json", result)
            except ToolFailure as failure:
                if failure.error.retryable:
                    raise as_application_error(failure.error, non_retryable=False) from failure
                return SavedWorkspace(error=failure.error)
        return SavedWorkspace(
            session_path=result.session_path,
            files=result.files_downloaded,
            bytes=result.bytes,
            archive_bytes=result.archive_bytes or 0,
            sha256=result.sha256,
            skipped_count=result.skipped_count,
            changed_count=result.changed_count,
            report_path=report_path,
        )


async def _reported(files: FileStore, quota: Quota, path: str, result: DownloadWorkspaceResult) -> str | None:
    """Store what an archive lacks beside it; where that is, None when it lacks nothing."""
    if not result.skipped_count and not result.changed_count:
        return None
    try:
        await files.write(path, result.model_dump_json(indent=1).encode(), quota)
    except ToolFailure as failure:
        if failure.error.retryable:
            raise
        activity.logger.warning("what a saved workspace lacks was not listed", extra={"error": str(failure)})
        return None
    return f"/{path}"


def _so_far(download: WorkspaceDownload | None) -> dict[str, int]:
    return {} if download is None else {"files": download.report.files, "bytes": download.report.bytes}
