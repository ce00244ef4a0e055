"""The typed client for agent runtimes: open a session, call its tools, end it."""

from sandhold.client.connection import Sandhold
from sandhold.client.errors import (
    EndNotConfirmed,
    InvalidRequest,
    OwnerMismatch,
    SandholdError,
    SearchAttributesMissing,
    SessionEnded,
    SessionNotFound,
    TemporalRefused,
    WaitTimeout,
)
from sandhold.client.files import SessionFiles
from sandhold.client.rows import Capability, SessionRow, ShownSession
from sandhold.client.session import Session
from sandhold.temporal import NamespaceMissing, TemporalUnreachable

__all__ = [
    "Capability",
    "EndNotConfirmed",
    "InvalidRequest",
    "NamespaceMissing",
    "OwnerMismatch",
    "Sandhold",
    "SandholdError",
    "SearchAttributesMissing",
    "Session",
    "SessionEnded",
    "SessionFiles",
    "SessionNotFound",
    "SessionRow",
    "ShownSession",
    "TemporalRefused",
    "TemporalUnreachable",
    "WaitTimeout",
]
