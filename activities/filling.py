"""What is brought into a sandbox: a saved workspace and files when it is new, files at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pydantic import Field
from temporalio import activity

from activities.arrivals import Arrivals
from activities.heartbeats import heartbeats
from activities.outcomes import arguments_of, failed_outcome, outcome_of
from activities.provider import ProviderAccess
from activities.session_owners import SessionOwners
from activities.shown_texts import as_shown
from activities.streams import SandboxStreams
from activities.uploads import FileUploads, Settled, Upload, raise_if_storage_is_away
from activities.workspaces.restore import WorkspaceRestore
from sandhold.contracts.base import Message
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.errors import ToolFailure
from sandhold.contracts.excerpts import beginning_of
from sandhold.contracts.names import WORKSPACE_PATH, Activity, ToolName
from sandhold.contracts.steps import CallStep, FillStep, SandboxRef
from sandhold.contracts.tools import CreateSandboxResult
from sandhold.contracts.transfers import PushFilesArguments, RestoredWorkspace, RestoreFrom
from sandhold.storage import SessionStorage

TRANSFERS_AT_ONCE = 4
"""Of one worker: each takes up to 48 MiB of memory."""


LISTED_ENTRIES = 20
"""Entries of a restored archive that a result names, of each at most so many characters:"""
LISTED_CHARS = 300


class _Progress(Message):
    """What the attempts have finished, as heartbeats tell it."""

    restored: RestoredWorkspace | None = None
    settled: dict[int, Settled] = Field(default_factory=dict)
    restoring: dict[str, int] | None = None
    """Files and bytes of the workspace that is under way."""


class FillingActivities:
    """Brings what session storage holds into sandboxes. What the agent can do something about is an outcome."""

    def __init__(self, access: ProviderAccess, storage: SessionStorage, owners: SessionOwners) -> None:
        self._arrivals = Arrivals(SandboxStreams(access))
        self._storage = storage
        self._owners = owners
        self._places = asyncio.Semaphore(TRANSFERS_AT_ONCE)

    @activity.defn(name=Activity.FILL_SANDBOX)
    async def fill_sandbox(self, step: FillStep) -> CallOutcome:
        """Bring a saved workspace and files into a new sandbox, and return the outcome of its create call.

        A workspace and each file fail for themselves, by name; the sandbox is there all the same. An attempt does not
        repeat what earlier ones have finished, and a workspace that was restored in part is restored again.
        """
        restoring: WorkspaceRestore | None = None

        def told(progress: _Progress) -> _Progress:
            if restoring is None or progress.restored is not None:
                return progress
            so_far = {"files": restoring.report.files, "bytes": restoring.report.bytes}
            return progress.model_copy(update={"restoring": so_far})

        async with self._transfer(told) as progress:
            wanted = step.restore_from
            if wanted is not None and progress.restored is None:
                files = self._storage.files(wanted.session_id or step.ref.session_id)
                restoring = WorkspaceRestore(self._arrivals, files, wanted.session_path, WORKSPACE_PATH)
                progress.restored = await self._restored(step.ref, step.call_id, wanted, restoring)
            upload = Upload(step.upload_files, progress.settled)
            await self._uploads(step.ref, step.call_id).carry_out(upload)
            came = upload.result()
            result = CreateSandboxResult(
                sandbox_id=step.ref.sandbox_id,
                files_uploaded=came.files_uploaded,
                files_failed=came.files_failed,
                restored=progress.restored,
            )
            return await outcome_of(self._storage, step.ref.session_id, step.call_id, result)

    @activity.defn(name=Activity.PUSH_FILES)
    async def push_files(self, step: CallStep) -> CallOutcome:
        """Bring files into a sandbox that is in use. An attempt does not repeat what earlier ones have finished."""
        async with self._transfer(lambda progress: progress) as progress:
            try:
                asked = await arguments_of(self._storage, step, ToolName.PUSH_FILES, PushFilesArguments)
            except ToolFailure as failure:
                return failed_outcome(failure)
            upload = Upload(asked.files, progress.settled)
            await self._uploads(step.ref, step.call_id).carry_out(upload)
            return await outcome_of(self._storage, step.ref.session_id, step.call_id, upload.result())

    @asynccontextmanager
    async def _transfer(self, told: Callable[[_Progress], _Progress]) -> AsyncIterator[_Progress]:
        """Heartbeats with the progress, which begins where the attempt before was, and a place among the transfers.

        `told` is what the heartbeats say of it.
        """
        details = activity.info().heartbeat_details
        progress = _Progress.model_validate(details[0]) if details else _Progress()
        async with heartbeats(lambda: told(progress).model_dump(mode="json")), self._places:
            yield progress

    def _uploads(self, ref: SandboxRef, call_id: str) -> FileUploads:
        return FileUploads(self._arrivals, self._storage.files(ref.session_id), ref, call_id)

    async def _restored(
        self, ref: SandboxRef, call_id: str, wanted: RestoreFrom, restore: WorkspaceRestore
    ) -> RestoredWorkspace:
        session_id = wanted.session_id or ref.session_id
        told = RestoredWorkspace(session_id=session_id, session_path=wanted.session_path)
        try:
            if session_id != ref.session_id:
                await self._owners.check(session_id, ref.owner)
            await restore.run(ref, f"{call_id}%workspace")
        except ToolFailure as failure:
            raise_if_storage_is_away(failure)
            told.error = await as_shown(failure.error)
        report = restore.report
        told.files, told.bytes = report.files, report.bytes
        told.skipped_count = report.skipped_count
        told.files_skipped = [
            each.model_copy(update={"path": beginning_of(each.path, LISTED_CHARS)})
            for each in report.skipped[:LISTED_ENTRIES]
        ]
        return told
