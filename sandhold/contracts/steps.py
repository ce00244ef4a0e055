"""What the workflows ask of the activities, and what they get back."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, JsonValue

from sandhold.contracts.base import Message
from sandhold.contracts.calls import CallOutcome, StorageRef
from sandhold.contracts.tools import Size


class SandboxRef(Message):
    """Which sandbox is meant: ours by name, the provider's once it is known."""

    session_id: str
    sandbox_id: str
    owner: str
    generation: int
    provider_id: str | None = None


class ProviderSandbox(Message):
    """What the provider holds."""

    provider_id: str
    provider_name: str
    state: str
    """The provider's own state, for example `started`."""


class CreateSandboxStep(Message):
    """Create the sandbox under its deterministic name, or adopt the one that an earlier attempt created."""

    ref: SandboxRef
    size: Size | None = None
    snapshot: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
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


class CallStep(Message):
    """One tool call to carry out: `read_file`, `write_file`."""

    ref: SandboxRef
    call_id: str
    arguments: JsonValue = None
    arguments_ref: StorageRef | None = None


class CommandStep(CallStep):
    """One command to start, or to find running: `run_command`."""

    default_timeout_ms: int
    """Timeout of a command that names none."""


class CommandPlace(Message):
    """A command that runs on after its first request, as the follower needs to know it."""

    call_id: str
    output: str
    """How much output the caller wants."""
    started_at: datetime
    cancelled: Literal["cancelled"] | None = None
    """Set once we asked for its end, so that the outcome says so."""


class CommandProgress(Message):
    """Where a command is: ended with its outcome, or still running."""

    call_id: str
    outcome: CallOutcome | None = None
    running: CommandPlace | None = None


class FollowCommandsStep(Message):
    """Follow running commands until at least one has ended: `follow_commands`."""

    ref: SandboxRef
    commands: list[CommandPlace]


class FollowCommandsResult(Message):
    ended: list[CommandProgress]


class StopCommandsStep(Message):
    """Kill the process groups of these commands: `stop_commands`."""

    ref: SandboxRef
    call_ids: list[str]
    grace_s: float
    """Seconds between TERM and KILL."""


class SandboxStatusesStep(Message):
    """Ask sandboxes for their status: `sandbox_statuses`."""

    workflow_ids: list[str]
