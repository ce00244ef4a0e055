"""What the workflows ask of the activities, and what they get back."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, JsonValue

from sandhold.contracts.base import Message
from sandhold.contracts.calls import CallOutcome, StorageRef
from sandhold.contracts.fields import CommandStatus, Size
from sandhold.contracts.policy import Policy
from sandhold.contracts.transfers import RestoreFrom, UploadFile


class SandboxRef(Message):
    """Which sandbox is meant: ours by name, the provider's once it is known."""

    session_id: str
    sandbox_id: str
    owner: str
    generation: int
    provider_id: str | None = None
    storage_quota_bytes: int = Policy().storage_quota_bytes
    """What the session may hold in storage, by its policy."""
    connection: str | None = None
    """Under which connection the provider's sandbox was created: `default`, the deployment's own, or the id of one of
    the owner's. None while that is unknown, and for what was created before owners had connections."""
    organization: str | None = None
    """The provider's organization that holds it, where known."""


class ProviderSandbox(Message):
    """What the provider holds."""

    provider_id: str
    provider_name: str
    state: str
    """The provider's own state, for example `started`."""
    connection: str | None = None
    """As in `SandboxRef`."""
    organization: str | None = None


class CreateSandboxStep(Message):
    """Create the sandbox under its deterministic name, or adopt the one that an earlier attempt created."""

    ref: SandboxRef
    size: Size | None = None
    snapshot: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    secret_env: list[str] = Field(default_factory=list)
    """Names of session secrets that its commands will want: looked for, and not told to the provider."""
    auto_stop_minutes: int
    """The provider's own backstop, longer than ours."""
    ttl_minutes: int
    timeout_s: float


class LifecycleStep(Message):
    """Bring the sandbox into a state; it is fine when it is there already."""

    ref: SandboxRef
    timeout_s: float


class DeleteSandboxStep(Message):
    """Delete the sandbox and return when its absence is confirmed."""

    ref: SandboxRef
    create_requested_at: datetime | None = None
    """When the last create request may have been sent, unless its answer is known: such a request can still commit."""
    nothing_created: bool = False
    """Whether no create request was ever sent."""


class CallStep(Message):
    """One tool call to carry out: `read_file`, `write_file`."""

    ref: SandboxRef
    call_id: str
    arguments: JsonValue = None
    arguments_ref: StorageRef | None = None


class CommandStep(CallStep):
    """One command to start, or to find running: `run_command`."""

    default_timeout_ms: int
    """Timeout of a command that names none; a background command that names none has no timeout."""
    output_cap_bytes: int
    """Bytes of stdout and stderr together above which the command is ended."""
    secret_env: list[str] = Field(default_factory=list)
    """Names of the session secrets that the command gets in its environment."""


class DownloadStep(CallStep):
    """One directory or file to bring into session storage: `download_workspace`."""

    file_quota_bytes: int
    """What one file in session storage may hold, by the policy."""


class SaveStep(Message):
    """The workspace of a sandbox that is about to be deleted: `save_workspace`."""

    ref: SandboxRef
    timeout_s: float | None = None
    """How long it may take, from when there is a place for it; None for as long as Temporal lets it."""


class FillStep(Message):
    """What to bring into a new sandbox before it is used: `fill_sandbox`."""

    ref: SandboxRef
    call_id: str
    """The create call."""
    restore_from: RestoreFrom | None = None
    upload_files: list[UploadFile] = Field(default_factory=list)


CancelReason = Literal["cancelled"]


class StoredOutput(Message):
    """How much of a command's output lies in session storage in segments that are full and stay as they are."""

    stdout_bytes: int = 0
    stderr_bytes: int = 0
    emptied_at: dict[Literal["stdout", "stderr"], int] = Field(default_factory=dict)
    """How many bytes were stored of a stream that the command has emptied: nothing that it wrote there later is."""


class CommandPlace(Message):
    """A command that runs on after its first request, as the follower needs to know it."""

    call_id: str
    output: str
    """How much output the caller wants."""
    started_at: datetime
    background: bool = False
    """Whether nobody waits for its end."""
    bounded: bool = True
    """Whether it has a timeout."""
    deadline_at: datetime | None = None
    """When its timeout is over; None when it has none, or was left by a worker that did not tell."""
    cancelled: CancelReason | None = None
    """Set once we asked for its end, so that the outcome says so."""
    stored: StoredOutput = Field(default_factory=StoredOutput)
    unsure: bool = False
    """Whether nobody knows if it was started. One that turns out not to have been is kept from starting."""
    cap_bytes: int | None = None
    """The command's `output_cap_bytes`; None when it was left by a worker that did not tell."""


class CommandProgress(Message):
    """Where a command is: ended with its outcome, or still running."""

    call_id: str
    outcome: CallOutcome | None = None
    running: CommandPlace | None = None
    status: CommandStatus | None = None
    """What became of a command that is over; null when the outcome is an error."""
    exit_code: int | None = None


class FollowCommandsStep(Message):
    """Follow running commands until at least one has ended, or much was stored: `follow_commands`."""

    ref: SandboxRef
    commands: list[CommandPlace]


class FollowCommandsResult(Message):
    """The commands that have ended, with all their output stored, and how far the storing of the others has come."""

    ended: list[CommandProgress] = Field(default_factory=list)
    stored: dict[str, StoredOutput] = Field(default_factory=dict)
    """By call id, for every followed command."""


class StopCommandsStep(Message):
    """Kill the process groups of these commands: `stop_commands`."""

    ref: SandboxRef
    call_ids: list[str]
    grace_s: float
    """Seconds between TERM and KILL."""


class TellInterruptedStep(Message):
    """Say what session storage holds of commands that were interrupted: `tell_interrupted`."""

    ref: SandboxRef
    commands: list[CommandPlace]


class TellInterruptedResult(Message):
    """Every command of the step, at its outcome; larger results only by reference."""

    ended: list[CommandProgress]


class ReadOutputStep(Message):
    """Read new output of a command, from the sandbox or, once it is cleaned away there, from storage: `read_output`."""

    ref: SandboxRef
    reader: str
    """Call id of the reading call: a result that is too large for a message is stored under it."""
    call_id: str
    """The command."""
    stdout_offset: int
    stderr_offset: int
    wait_s: float
    """How long to wait for output beyond the offsets, or for the end, when there is none yet."""
    action: Literal["read", "wait"] = "read"
    """What the caller asked for; the result repeats it."""
    status: CommandStatus = "running"
    """What the workflow knows of the command; told when the sandbox no longer can."""
    exit_code: int | None = None


class WriteInputStep(Message):
    """Write to the standard input of a command, once per `writer`: `write_input`."""

    ref: SandboxRef
    writer: str
    """Call id of the writing call."""
    call_id: str
    """The command."""
    data: str
    """Base64. Empty with `close` alone."""
    close: bool
    """End of input after the data."""


class SignalCommandStep(Message):
    """Send a signal to a command's process group, once per `sender`: `signal_command`."""

    ref: SandboxRef
    sender: str
    call_id: str
    signal: str
    """Name without SIG."""


class CleanCommandsStep(Message):
    """Remove the folders of old calls from the sandbox, bounded by number and age: `clean_commands`."""

    ref: SandboxRef
    keep: list[str]
    """Call ids whose folders stay whatever their age: those that run, and those that may be asked for again."""


class SandboxStatusesStep(Message):
    """Ask sandboxes for their status: `sandbox_statuses`."""

    workflow_ids: list[str]
