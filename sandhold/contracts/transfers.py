"""What is brought from session storage into a sandbox, and what is kept of a sandbox that is deleted."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from sandhold.contracts.base import Message, Strict
from sandhold.contracts.errors import ToolError
from sandhold.contracts.fields import SandboxId, SandboxPath, Text
from sandhold.contracts.names import ID_PATTERN
from sandhold.contracts.session_paths import PATH_LIMIT_BYTES, session_folder, session_path
from sandhold.contracts.workspaces import SkippedEntry

ATTEMPTS_LIMIT = 90
"""Of a transfer: with the pauses of an outage they span its six hours."""
FAILED_ATTEMPTS_LIMIT = 30
"""A failure other than an outage is final when so many attempts have been made: each may move everything again."""

FILES_LIMIT = 100
FILES_LIMIT_BYTES = 32 * 1024
"""Of all paths together: they go through the workflow, and with what went wrong back again."""


def _a_path(value: str) -> str:
    session_path(value)
    return value


def _a_path_or_everything(value: str) -> str:
    session_folder(value)
    return value


class UploadFile(Strict):
    """One file to bring into a sandbox, or a folder with all that lies in it."""

    session_path: Annotated[Text, Field(min_length=1, max_length=PATH_LIMIT_BYTES), AfterValidator(_a_path)]
    """A file in session storage, or a folder."""
    sandbox_path: SandboxPath
    """The file that it becomes, absolute or relative to the workspace; a directory with a slash at its end, to keep
    the name. A folder's files go into the directory of this name."""


def _bounded(files: list[UploadFile]) -> list[UploadFile]:
    if sum(len(file.session_path.encode()) + len(file.sandbox_path.encode()) for file in files) > FILES_LIMIT_BYTES:
        raise ValueError(f"must be at most {FILES_LIMIT_BYTES} bytes in all; a folder is one entry")
    return files


UploadFiles = Annotated[list[UploadFile], Field(max_length=FILES_LIMIT), AfterValidator(_bounded)]


class FailedUpload(Message):
    """A file that is not in the sandbox, and why."""

    session_path: str
    sandbox_path: str
    error: ToolError


class PushFilesArguments(Strict):
    """Bring files from the session's storage into a running sandbox. A stopped sandbox is started first."""

    sandbox_id: SandboxId
    """The sandbox to bring them into."""
    files: Annotated[UploadFiles, Field(min_length=1)]
    """What to bring, and where to."""


class PushFilesResult(Message):
    files_uploaded: int = 0
    bytes: int = 0
    files_failed: list[FailedUpload] = Field(default_factory=list)


class RestoreFrom(Strict):
    """A saved workspace in session storage."""

    session_path: Annotated[
        Text, Field(min_length=1, max_length=PATH_LIMIT_BYTES), AfterValidator(_a_path_or_everything)
    ]
    """An archive (`.tar`, `.tar.gz` or `.tar.zst`), or a folder of files."""
    session_id: Annotated[str, Field(pattern=ID_PATTERN, max_length=63)] | None = None
    """The session that saved it, by default this one. It may have ended, and must belong to the same owner."""


class RestoredWorkspace(Message):
    """What of a saved workspace is in the new sandbox. With an error: what came before it may be there."""

    session_id: str
    session_path: str
    files: int = 0
    bytes: int = 0
    files_skipped: list[SkippedEntry] = Field(default_factory=list)
    """Entries of the archive that a workspace cannot have; the first 20."""
    skipped_count: int = 0
    error: ToolError | None = None


class SavedWorkspace(Message):
    """What is kept of a sandbox that was deleted. With an error: nothing."""

    session_path: str | None = None
    """The archive in session storage."""
    files: int = 0
    bytes: int = 0
    """Of the files' contents."""
    archive_bytes: int = 0
    sha256: str | None = None
    """Of the archive."""
    skipped_count: int = 0
    """Entries that could not be saved."""
    changed_count: int = 0
    """Files that changed while they were read."""
    report_path: str | None = None
    """Where session storage says which entries those are; null when there are none."""
    error: ToolError | None = None


class ToldWhenSaved(Message):
    """Has a field `saved` that is told only where there is something to tell: scripts rely on the other keys alone."""

    @model_serializer(mode="wrap")
    def _document(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = serialize(self)
        if document.get("saved") is None:
            document.pop("saved", None)
        return document
