"""What is kept about a sandbox, and how the provider shows it.

A `SandboxRecord` is the durable truth of one sandbox. Its JSON form for clients is written field by
field, because the official client is strict: a missing `kvm`, or a float where an integer is expected,
fails the whole answer (`daytona` 0.226.1, `Sandbox` and `SandboxListItem`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel, Field

from sandhold.local_daytona.errors import timestamp


class State(StrEnum):
    """The states of the provider that this server can be in."""

    CREATING = "creating"
    STARTING = "starting"
    RESTORING = "restoring"
    STARTED = "started"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ARCHIVING = "archiving"
    ARCHIVED = "archived"
    ERROR = "error"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"


class DesiredState(StrEnum):
    STARTED = "started"
    STOPPED = "stopped"
    ARCHIVED = "archived"
    DESTROYED = "destroyed"


#: On the way to `started`.
COMING_UP = frozenset({State.CREATING, State.STARTING, State.RESTORING})

#: A change is under way and the provider refuses another one. Archiving is not among them: the provider
#: does not count it as pending.
PENDING = COMING_UP | {State.STOPPING, State.DESTROYING}


class SandboxRecord(BaseModel):
    """One sandbox. Intervals are in minutes, sizes in vCPUs and GiB, times in UTC."""

    id: str
    name: str
    state: State
    desired_state: DesiredState
    labels: dict[str, str] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    snapshot: str
    target: str
    user: str = "daytona"
    public: bool = False
    network_block_all: bool = False
    cpu: int
    memory: int
    disk: int
    auto_stop_interval: int = 15
    auto_pause_interval: int = 0
    auto_archive_interval: int = 10_080
    auto_delete_interval: int = -1
    ttl_minutes: int = 0
    queue_timeout: int | None = None
    auto_destroy_at: datetime | None = None
    error_reason: str | None = None
    recoverable: bool = False
    created_at: datetime
    updated_at: datetime
    last_activity_at: datetime

    @property
    def ephemeral(self) -> bool:
        """Whether the sandbox is deleted as soon as it stops."""
        return self.auto_delete_interval == 0

    @property
    def pending(self) -> bool:
        return self.state in PENDING

    def enter(self, state: State, *, reason: str | None = None, recoverable: bool = False) -> None:
        """Be in `state` from now on. A change of state counts as activity."""
        self.state = state
        self.error_reason = reason
        self.recoverable = recoverable
        self.updated_at = self.last_activity_at = datetime.now(UTC)

    def set_ttl(self, minutes: int, minute: timedelta) -> None:
        """Be destroyed `minutes` after creation whatever the state; 0 is never."""
        self.ttl_minutes = minutes
        self.auto_destroy_at = self.created_at + minutes * minute if minutes else None

    def list_item(self, organization_id: str, toolbox_url: str) -> dict[str, object]:
        """The sandbox as a row of a list: without `env`, `kvm` and the other details."""
        return {
            "id": self.id,
            "organizationId": organization_id,
            "name": self.name,
            "target": self.target,
            "runnerId": "local",
            "sandboxClass": "container",
            "state": self.state.value,
            "desiredState": self.desired_state.value,
            "snapshot": self.snapshot,
            "user": self.user,
            "errorReason": self.error_reason,
            "recoverable": self.recoverable,
            "public": self.public,
            "networkBlockAll": self.network_block_all,
            "cpu": self.cpu,
            "gpu": 0,
            "spot": False,
            "memory": self.memory,
            "disk": self.disk,
            "labels": self.labels,
            "backupState": "None",
            "autoStopInterval": self.auto_stop_interval,
            "autoPauseInterval": self.auto_pause_interval,
            "autoArchiveInterval": self.auto_archive_interval,
            "autoDeleteInterval": self.auto_delete_interval,
            "autoDestroyAt": timestamp(self.auto_destroy_at) if self.auto_destroy_at else None,
            "queueTimeout": self.queue_timeout,
            "createdAt": timestamp(self.created_at),
            "updatedAt": timestamp(self.updated_at),
            "lastActivityAt": timestamp(self.last_activity_at),
            "daemonVersion": "local",
            "toolboxProxyUrl": toolbox_url,
        }

    def details(self, organization_id: str, toolbox_url: str) -> dict[str, object]:
        """The sandbox as a single read, a change or an event shows it."""
        return self.list_item(organization_id, toolbox_url) | {
            "env": self.env,
            "kvm": False,
            "volumes": [],
        }
