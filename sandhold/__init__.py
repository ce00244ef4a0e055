"""Durable owners for the sandboxes of AI-agent sessions.

The names below are loaded when they are first used: importing `sandhold.contracts` costs no Temporal client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandhold.client import (
        OwnerMismatch,
        Sandhold,
        SandholdError,
        Session,
        SessionEnded,
        SessionNotFound,
        TemporalUnreachable,
    )
    from sandhold.contracts.calls import CallEnvelope
    from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure
    from sandhold.contracts.policy import Policy
    from sandhold.contracts.transfers import RestoreFrom

_HOMES = {
    "CallEnvelope": "sandhold.contracts.calls",
    "ErrorCode": "sandhold.contracts.errors",
    "OwnerMismatch": "sandhold.client",
    "Policy": "sandhold.contracts.policy",
    "RestoreFrom": "sandhold.contracts.transfers",
    "Sandhold": "sandhold.client",
    "SandholdError": "sandhold.client",
    "Session": "sandhold.client",
    "SessionEnded": "sandhold.client",
    "SessionNotFound": "sandhold.client",
    "TemporalUnreachable": "sandhold.client",
    "ToolError": "sandhold.contracts.errors",
    "ToolFailure": "sandhold.contracts.errors",
}

__all__ = [
    "CallEnvelope",
    "ErrorCode",
    "OwnerMismatch",
    "Policy",
    "RestoreFrom",
    "Sandhold",
    "SandholdError",
    "Session",
    "SessionEnded",
    "SessionNotFound",
    "TemporalUnreachable",
    "ToolError",
    "ToolFailure",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sandhold' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
