"""Sessions as the client shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sandhold.contracts.base import Message
from sandhold.contracts.policy import Policy
from sandhold.contracts.sandboxes import ShownSandbox
from sandhold.contracts.sessions import SessionState


class SessionRow(Message):
    """One session in a list."""

    session_id: str
    workflow_id: str
    owner: str
    state: SessionState
    started_at: datetime | None = None
    ended_at: datetime | None = None


class Capability(Message):
    """Something that the session's tools can use, or why they cannot."""

    name: Literal["sandboxes", "git"]
    available: bool | None = None
    """None where whoever tells cannot know."""
    connection: Literal["own", "deployment"] | None = None
    """By whose connection: the owner's own, or the deployment's."""
    reason: str
    """Where it comes from, or what is missing."""


class ShownSession(Message):
    """A session with everything that it owns, live."""

    session_id: str
    workflow_id: str
    owner: str
    state: SessionState
    ending: str | None = None
    """Why the session is ending, once it is."""
    created_at: datetime
    ends_at: datetime
    """When the maximum lifetime is reached."""
    policy: Policy
    capabilities: list[Capability]
    """What its tools can use; empty unless told by somebody who can read the vault, as the command line does."""
    sandboxes: list[ShownSandbox]
