"""The sandbox's workflow: what starts it, what it keeps, what it tells."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, Field

from sandhold.contracts.base import Message
from sandhold.contracts.calls import CallOutcome, CallRequest
from sandhold.contracts.commands import CommandRow
from sandhold.contracts.errors import ToolError
from sandhold.contracts.fields import CommandStatus
from sandhold.contracts.git_credentials import GitCredentialsKept
from sandhold.contracts.policy import Policy
from sandhold.contracts.steps import CommandPlace
from sandhold.contracts.tools import CreateSandboxArguments, OutputFiles, SandboxRow
from sandhold.contracts.transfers import SavedWorkspace


class Renewal(Message):
    """Asks a workflow to continue as new, so that what it holds is written anew: under the present key."""

    began_before: AwareDatetime
    """Only a run that began before this is meant; a later one is new already."""


class SandboxState(StrEnum):
    """The states of a sandbox."""

    CREATING = "creating"
    STARTED = "started"
    STOPPING = "stopping"
    STOPPED = "stopped"
    STARTING = "starting"
    ARCHIVED = "archived"
    DELETING = "deleting"
    DELETED = "deleted"
    FAILED = "failed"
    LOST = "lost"


SandboxEnding = Literal["deleted", "failed", "lost"]
"""How a sandbox can have ended: deleted as asked; never started; gone without our doing."""


class LedgerEntry(Message):
    """One call that the workflow knows: running while there is no outcome."""

    call_id: str
    tool: str
    fingerprint: str
    asked_at: datetime
    outcome: CallOutcome | None = None
    request: CallRequest | None = None
    """Kept while the call runs, so that it can go on after a continue-as-new."""
    refused_for_now: bool = False
    """Whether it was refused, with nothing done, for something that passes: it may come again under its id."""


class CommandRecord(Message):
    """One command of the sandbox: running while there is no outcome."""

    place: CommandPlace
    read_at: datetime
    """When it was started, or its output was last asked for."""
    fingerprint: str = ""
    """Of the call that started it; empty when that was not noted."""
    ended_at: datetime | None = None
    outcome: CallOutcome | None = None
    status: CommandStatus = "running"
    exit_code: int | None = None


class SandboxStart(Message):
    """Starts the workflow of one sandbox."""

    session_id: str
    sandbox_id: str
    owner: str
    generation: int
    policy: Policy
    created_at: datetime
    arguments: CreateSandboxArguments
    idle_stop_s: float
    """The policy's, unless the create call named its own."""
    create_call: CallRequest | None = None
    """The call that asked for the sandbox; its result is read by the query `result`."""
    delete_only: bool = False
    """True when an earlier run closed without confirming the deletion: delete, do nothing else."""
    git_tokens: bool = False
    """With `delete_only`: whether git in the sandbox may have tokens that the earlier run would have ended."""
    carried: SandboxCarried | None = None
    """State of the run before, after a continue-as-new."""


class SandboxCarried(Message):
    """What a sandbox's workflow keeps from run to run."""

    state: SandboxState
    provider_id: str | None = None
    provider_name: str | None = None
    connection: str | None = None
    """As in `SandboxRef`."""
    organization: str | None = None
    nothing_created: bool = False
    """Whether the provider was never asked for a sandbox."""
    create_requested_at: datetime | None = None
    last_used_at: datetime
    stopped_at: datetime | None = None
    error: ToolError | None = None
    ending: str | None = None
    """Why the sandbox is being deleted, once it is."""
    saved: SavedWorkspace | None = None
    """What was saved before the deletion, once that was tried."""
    ledger: list[LedgerEntry] = Field(default_factory=list)
    commands: list[CommandRecord] = Field(default_factory=list)
    commands_started: int = 0
    git_credentials: GitCredentialsKept | None = None
    """Of git in the sandbox; None until they are first asked for."""
    runs: int = 1


class ShownSandbox(SandboxRow):
    """A sandbox as `session show` gives it: the list tool's row and what operators look it up by."""

    generation: int
    workflow_id: str
    provider_id: str | None = None
    saved: SavedWorkspace | None = None
    """What was saved of a sandbox that has ended, or is about to, where the policy says so."""


class SandboxStatus(ShownSandbox):
    """The answer to the query `status`."""

    session_id: str
    owner: str
    provider_name: str | None = None
    connection: str | None = None
    """As in `SandboxRef`."""
    organization: str | None = None
    ending: str | None = None
    calls: list[str] = Field(default_factory=list)
    """The ids of the running calls."""
    next: str
    """What the sandbox waits for, in words."""
    runs: int = 1
    """How many runs the workflow has had; each continue-as-new begins one."""


class CommandState(CommandRow):
    """The answer to the query `command`."""

    output_files: OutputFiles
    """Where the whole output of a command that outlasts its first request grows in session storage."""
    outcome: CallOutcome | None = None
    """What the command came to; null while it runs."""
    use_ends_at: datetime | None = None
    """When a running command without a timeout stops to count as use of its sandbox, unless its output is read."""
    use_s: float | None = None
    """For how many seconds each read makes it count."""


class SandboxOutcome(Message):
    """The result of a sandbox's workflow: its absence at the provider is confirmed."""

    sandbox_id: str
    generation: int
    outcome: SandboxEnding
    reason: str
    error: ToolError | None = None
    saved: SavedWorkspace | None = None


SandboxStart.model_rebuild()
