"""The tool `daytona_git_clone`: a repository brought into a sandbox."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from sandhold.contracts.base import Message, Strict
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.fields import CommandStatus, SandboxId, SandboxPath, Text
from sandhold.contracts.steps import CallStep

CLONE_TIMEOUT_MS = 600_000
MAX_CLONE_TIMEOUT_MS = 86_400_000
DEPTH_LIMIT = 1_000_000

# What git-check-ref-format(1) forbids.
_NO_REVISION = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[-/.]|/\.|[/.]\Z|\.lock(?:/|\Z)|^@\Z")


def _revision(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be valid Unicode") from error
    if _NO_REVISION.search(value) is not None:
        raise ValueError("is not the name of a branch, a tag or a commit")
    return value


def _one_line(value: str) -> str:
    if any(character < " " or character == "\x7f" for character in value):
        raise ValueError("must not contain control characters")
    return value


class GitCloneArguments(Strict):
    """Clone a git repository into a sandbox, private ones with the user's GitHub connection. No credential stays in the
    sandbox."""

    sandbox_id: SandboxId
    """The sandbox to clone into."""
    repo_url: Annotated[Text, Field(min_length=1, max_length=2048)]
    """`owner/repo` on GitHub, or a full https address. Never with a password or token in it: the user's GitHub
    connection is used where the repository needs one."""
    branch: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_revision)] | None = None
    """Branch, tag or commit to check out; by default the repository's own default branch."""
    path: Annotated[SandboxPath, AfterValidator(_one_line)] | None = None
    """Directory to clone into, absolute or relative to the workspace: new, or empty. By default OWNER/REPO in the
    workspace."""
    depth: int | None = Field(None, ge=1, le=DEPTH_LIMIT)
    """How many commits of history to fetch; by default all. 1 is quickest where history is not needed."""
    submodules: bool = False
    """Clone the repository's submodules as well."""
    timeout: int = Field(CLONE_TIMEOUT_MS, ge=1, le=MAX_CLONE_TIMEOUT_MS)
    """Milliseconds after which the clone is ended and what it wrote is removed."""


class GitCloneResult(Message):
    repo_url: str
    """The repository's address, without any credential."""
    path: str
    """Where it is now."""
    branch: str | None = None
    """The branch that is checked out; null when a tag or commit is, or the repository is empty."""
    commit: str | None = None
    """The commit that is checked out; null when the repository is empty."""
    authenticated: bool
    """Whether the user's credential was used: the server asked for one, and took it."""
    hint: str | None = None


class FinishCloneStep(CallStep):
    """A clone whose command is over, or never began: `finish_clone`."""

    inside: bool
    """Whether the sandbox runs, so that it can be looked into."""
    command: CallOutcome | None = None
    """The outcome of the command; None when none is on record."""
    status: CommandStatus | None = None
    """What became of the command; None when none was started."""
    exit_code: int | None = None
