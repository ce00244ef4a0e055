"""What the client raises. A failed tool call raises nothing: its error is in the envelope."""

from __future__ import annotations


class SandholdError(Exception):
    """Base of what the client raises about sessions and requests."""


class InvalidRequest(SandholdError, ValueError):
    """An id, an owner or a policy that cannot be one. Nothing was sent."""


class SessionNotFound(SandholdError, LookupError):
    """There is no session of this id, or its record has passed the retention of Temporal."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"there is no session {session_id[:100]!r}")
        self.session_id = session_id


class SessionEnded(SandholdError):
    """The session has ended; its id is never used again."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} has ended; open one under another id")
        self.session_id = session_id


class OwnerMismatch(SandholdError, PermissionError):
    """The session is open and belongs to someone else."""

    def __init__(self, session_id: str, owner: str) -> None:
        super().__init__(f"session {session_id!r} does not belong to {owner!r}")
        self.session_id = session_id
        self.owner = owner


class WaitTimeout(SandholdError, TimeoutError):
    """The caller's own timeout passed first. What was asked for goes on."""


class EndNotConfirmed(SandholdError):
    """The session is over, but nothing proves that these sandboxes are gone: their workflows were ended by force."""

    def __init__(self, session_id: str, sandbox_ids: list[str]) -> None:
        super().__init__(
            f"session {session_id!r} is over, but the workflows of {', '.join(sandbox_ids)} were closed from outside "
            "before they confirmed the deletion; look for them at the provider"
        )
        self.session_id = session_id
        self.sandbox_ids = sandbox_ids


class SearchAttributesMissing(SandholdError):
    """The namespace lacks search attributes that a session is started with."""


class TemporalRefused(SandholdError):
    """Temporal answered with an error that sending again does not mend, for example a missing permission."""
