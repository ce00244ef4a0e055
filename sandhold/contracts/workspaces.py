"""The tool `daytona_download_workspace`: what is brought from a sandbox into session storage, and what is not."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from sandhold.contracts.base import Message, Strict
from sandhold.contracts.fields import SandboxId, SandboxPath, Text
from sandhold.contracts.names import WORKSPACE_PATH
from sandhold.contracts.patterns import fault_of
from sandhold.contracts.session_paths import session_folder

PATTERNS_LIMIT_BYTES = 32 * 1024
LISTED_ENTRIES = 200
"""Entries that a result names; beyond that they are only counted."""
LEFT_OUT_BY_DEFAULT = (
    ".git",
    ".hg",
    ".svn",
    "node_modules",
    ".venv",
    "venv",
    "__pycache__",
    ".cache",
    ".npm",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".tox",
    ".nox",
)
"""Patterns that `exclude` adds to. Plain names: tar can leave them out in the sandbox already."""


def _pattern(value: str) -> str:
    if "\n" in value or "\r" in value:
        raise ValueError("a pattern is one line")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be valid Unicode") from error
    fault = fault_of(value)
    if fault is not None:
        raise ValueError(f"is no pattern of .gitignore: it {fault}")
    return value


def _patterns(value: list[str]) -> list[str]:
    if sum(len(pattern.encode()) for pattern in value) > PATTERNS_LIMIT_BYTES:
        raise ValueError(f"must be at most {PATTERNS_LIMIT_BYTES} bytes in all")
    return value


Patterns = Annotated[
    list[Annotated[Text, Field(min_length=1, max_length=1000), AfterValidator(_pattern)]],
    Field(max_length=500),
    AfterValidator(_patterns),
]


class DownloadWorkspaceArguments(Strict):
    """Save a directory or a file of a sandbox to the session's storage, where it outlives the sandbox. A stopped
    sandbox is started first. Links are never followed out of the directory; what cannot be saved is listed, with the
    reason."""

    sandbox_id: SandboxId
    """The sandbox to save from."""
    sandbox_path: SandboxPath = WORKSPACE_PATH
    """The directory or file, absolute or relative to the workspace."""
    session_path: Annotated[Text, Field(min_length=1, max_length=800)] = "/workspace"
    """Where it goes in session storage: a folder, or with `archive` the name of the archive without its suffix."""
    include: Patterns | None = None
    """Only what matches one of these patterns, in the syntax of .gitignore, for example `src/` or `*.py`."""
    exclude: Patterns | None = None
    """Leave out what matches, in the syntax of .gitignore, beside .git, node_modules, virtual environments and caches,
    which are left out already. `!.git` brings one of those back."""
    format: Literal["files", "archive"] = "files"
    """`files` saves each file by itself; `archive` saves one tar archive, which keeps links, modes and empty
    directories."""

    @model_validator(mode="after")
    def _session_path_is_one(self) -> DownloadWorkspaceArguments:
        if not session_folder(self.session_path) and self.format == "archive":
            raise ValueError("session_path: an archive needs a name")
        return self


SkipReason = Literal[
    "symlink",
    "hard_link_target_left_out",
    "socket",
    "fifo",
    "device",
    "unknown_type",
    "unreadable",
    "vanished",
    "too_large",
    "unsafe_name",
    "duplicate_name",
    "below_a_link",
    "name_not_storable",
]


class SkippedEntry(Message):
    path: str
    """Relative to the directory; bytes that are not UTF-8 as \\xNN."""
    reason: SkipReason


class DownloadWorkspaceResult(Message):
    session_path: str
    """The folder, or the archive, in session storage."""
    format: Literal["files", "archive"]
    files_downloaded: int
    bytes: int
    """Of the files' contents."""
    archive_bytes: int | None = None
    sha256: str | None = None
    """Of the archive."""
    files_skipped: list[SkippedEntry] = Field(default_factory=list)
    """What is not saved, though no pattern leaves it out; the first 200."""
    skipped_count: int = 0
    more_skipped: bool = False
    """More is not saved than `skipped_count` counts: the sandbox's tar said more about it than is kept."""
    files_changed: list[str] = Field(default_factory=list)
    """What is saved, but changed while it was read, so that old and new content may be mixed; the first 200."""
    changed_count: int = 0
    empty_directories: int = 0
    """Directories that came empty: an archive has them, `files` cannot."""
    hint: str | None = None
