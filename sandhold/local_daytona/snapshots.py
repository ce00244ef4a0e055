"""The snapshots on offer: the machine's own userland in the provider's three standard sizes.

Nothing is built or pulled here. The names and sizes are those of the hosted service's general snapshots,
so that a size chosen by snapshot means the same here and there.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from sandhold.local_daytona.errors import ApiError, timestamp


@dataclass(frozen=True)
class Snapshot:
    """A snapshot with its size in vCPUs and GiB."""

    name: str
    cpu: int
    memory: int
    disk: int

    @property
    def id(self) -> str:
        """The same in every run and on every machine, as it depends on the name alone."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"local-daytona/snapshots/{self.name}"))

    def shown(self, organization_id: str, since: datetime) -> dict[str, object]:
        """The snapshot as the provider's `SnapshotDto`."""
        return {
            "id": self.id,
            "organizationId": organization_id,
            "general": True,
            "name": self.name,
            "state": "active",
            "size": None,
            "entrypoint": None,
            "cpu": self.cpu,
            "gpu": 0,
            "mem": self.memory,
            "disk": self.disk,
            "errorReason": None,
            "createdAt": timestamp(since),
            "updatedAt": timestamp(since),
            "lastUsedAt": None,
            "regionIds": ["local"],
            "sourceSandboxId": None,
            "sandboxClass": "container",
        }


DEFAULT_SNAPSHOT = Snapshot("daytona-small", cpu=1, memory=1, disk=3)
SNAPSHOTS = (
    DEFAULT_SNAPSHOT,
    Snapshot("daytona-medium", cpu=2, memory=4, disk=8),
    Snapshot("daytona-large", cpu=4, memory=8, disk=10),
)


def find_snapshot(key: str) -> Snapshot | None:
    """The snapshot with this id or name."""
    return next((snapshot for snapshot in SNAPSHOTS if key in (snapshot.id, snapshot.name)), None)


def snapshot_for_create(key: str) -> Snapshot:
    """The snapshot that a create names. Raises the provider's 400, with what there is, for an unknown one."""
    snapshot = find_snapshot(key)
    if snapshot is None:
        names = ", ".join(each.name for each in SNAPSHOTS)
        raise ApiError(400, f"Snapshot {key} not found. This local server has: {names}")
    return snapshot
