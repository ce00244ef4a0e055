"""The policy of a session: every timer and bound that its owner can choose. Seconds are floats."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sandhold.contracts.base import Strict

DAY_S = 86400.0
MIB = 1024**2
GIB = 1024**3
FILE_LIMIT_BYTES = 32 * GIB
"""The most that one object of session storage may have: a bucket takes 10,000 parts."""


class Policy(Strict):
    """Given when a session starts; unknown names and values out of bounds are refused."""

    idle_stop_s: float = Field(300.0, gt=0, le=7 * DAY_S)
    """A sandbox without a running call is stopped after this long."""
    archive_after_s: float | None = Field(None, gt=0, le=30 * DAY_S)
    """A stopped sandbox is archived after this long; null turns it off."""
    session_idle_s: float = Field(DAY_S, gt=0, le=30 * DAY_S)
    """A session whose sandboxes are all unused for this long ends."""
    max_lifetime_s: float = Field(7 * DAY_S, gt=0, le=30 * DAY_S)
    """A session ends after this long, whatever runs."""
    create_timeout_s: float = Field(300.0, gt=0, le=3600)
    """A sandbox that has not started after this long has failed, and is deleted."""
    lifecycle_timeout_s: float = Field(120.0, gt=0, le=3600)
    """Bound on one start, stop or archive, retries included."""
    end_grace_s: float = Field(30.0, ge=0, le=3600)
    """How long running calls may go on once the session ends; then they are cancelled."""
    command_timeout_s: float = Field(120.0, gt=0, le=DAY_S)
    """Timeout of a command that names none."""
    background_use_s: float = Field(1800.0, gt=0, le=7 * DAY_S)
    """A background command without a timeout counts as use of its sandbox for this long after its start, or after its
    output was last read. Then the idle time begins, and the stop ends the command."""
    max_sandboxes: int = Field(10, ge=1, le=100)
    """Sandboxes that may be open at once."""
    output_cap_bytes: int = Field(GIB, ge=1024, le=64 * GIB)
    """A command that writes more than this is stopped."""
    storage_quota_bytes: int = Field(5 * GIB, ge=MIB, le=1024 * GIB)
    """What the session may hold in storage: files, the output of commands, arguments and results."""
    file_quota_bytes: int = Field(GIB, ge=1, le=FILE_LIMIT_BYTES)
    """What one file in session storage may hold."""
    on_end: Literal["delete", "download"] = "delete"
    """What happens to a sandbox at its end, whoever ends it: it is deleted; with `download`, its workspace is saved to
    session storage before."""
    save_timeout_s: float = Field(600.0, gt=0, le=DAY_S / 4)
    """How long saving one workspace may take, from when a worker has a place for it, all attempts included. Then the
    sandbox is deleted as it is."""
    save_wait_s: float = Field(DAY_S / 4, gt=0, le=DAY_S)
    """How long a save may be held up beyond that, while there is no place for it, no worker or no session storage."""
    keep_days: float = Field(30.0, ge=0, le=3650)
    """How long the session's storage is kept after its end."""
