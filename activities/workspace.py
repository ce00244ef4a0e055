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
from sandhold.contracts.names import Activity, ToolName
from sandhold.contracts.steps import DownloadStep
from sandhold.contracts.workspaces import DownloadWorkspaceArguments
from sandhold.storage import Quota, SessionStorage

DOWNLOADS_AT_ONCE = 4
"""Of one worker: each takes up to 48 MiB of memory, and as much of a processor as it gets."""


class WorkspaceActivities:
    """Brings workspaces into session storage."""

    def __init__(self, access: ProviderAccess, storage: SessionStorage) -> None:
        self._streams = SandboxStreams(access)
        self._storage = storage
        self._places = asyncio.Semaphore(DOWNLOADS_AT_ONCE)

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


def _so_far(download: WorkspaceDownload | None) -> dict[str, int]:
    return {} if download is None else {"files": download.report.files, "bytes": download.report.bytes}
