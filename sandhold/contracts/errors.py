"""The errors a caller can see, and the one table from the provider's errors to them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import Field

from sandhold.contracts.base import Message
from sandhold.contracts.excerpts import beginning_of

if TYPE_CHECKING:
    from temporalio.exceptions import ApplicationError


class ErrorCode(StrEnum):
    """What went wrong, as the agent sees it."""

    INVALID_ARGUMENTS = "invalid_arguments"
    CONNECTION_REQUIRED = "connection_required"
    SANDBOX_NOT_FOUND = "sandbox_not_found"
    SANDBOX_LOST = "sandbox_lost"
    SANDBOX_FAILED = "sandbox_failed"
    QUOTA_EXCEEDED = "quota_exceeded"
    SESSION_ENDING = "session_ending"
    SESSION_NOT_FOUND = "session_not_found"
    SESSION_ENDED = "session_ended"
    SESSION_FULL = "session_full"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PROVIDER_REJECTED = "provider_rejected"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    TOO_LARGE = "too_large"
    WRONG_TARGET = "wrong_target"
    CALL_ID_CONFLICT = "call_id_conflict"
    CONFLICT = "conflict"
    PATH_NOT_FOUND = "path_not_found"
    PERMISSION_DENIED = "permission_denied"
    STORAGE_FULL = "storage_full"
    REPOSITORY_NOT_FOUND = "repository_not_found"
    BRANCH_NOT_FOUND = "branch_not_found"
    AUTHENTICATION_FAILED = "authentication_failed"
    NETWORK_ERROR = "network_error"
    DISK_FULL = "disk_full"
    GIT_FAILED = "git_failed"
    CREDENTIAL_FOUND = "credential_found"
    INTERNAL = "internal"


class ToolError(Message):
    """An error as the agent reads it: what happened, what to do, and whether the effect may have happened."""

    code: ErrorCode
    message: str
    hint: str | None = None
    retryable: bool = False
    ambiguous: bool = False
    """True when the call may have had its effect although it failed."""
    provider: str | None = None
    """With `connection_required`: the provider that the owner has to connect."""
    sandbox_ids: list[str] | None = None
    """With `sandbox_not_found`: the sandboxes that exist."""
    workflow_id: str | None = None
    """With `wrong_target`: the workflow that takes this call."""


class ToolFailure(Exception):
    """Raised where a call cannot succeed; becomes the `error` of its envelope."""

    def __init__(self, code: ErrorCode, message: str, **fields: object) -> None:
        super().__init__(message)
        self.error = ToolError.model_validate({"code": code, "message": message, **fields})


def as_application_error(error: ToolError, *, non_retryable: bool = True) -> ApplicationError:
    """The failure that carries `error` through Temporal; its type is the error's code."""
    # Imported here: whoever only reads the contracts, such as a tool list, need not load Temporal's client (0.5 s).
    from temporalio.exceptions import ApplicationError

    return ApplicationError(error.message, error, type=error.code, non_retryable=non_retryable)


class SandboxSignal(StrEnum):
    """Failure types by which an activity tells the sandbox's workflow something about the sandbox itself."""

    NOT_STARTED = "SandboxNotStarted"
    """The provider says that the sandbox is not running; nothing was done. Start it and call again."""
    NOTHING_CREATED = "NothingCreated"
    """No create request was sent, by this attempt or an earlier one: there is nothing to delete."""
    LOST = ErrorCode.SANDBOX_LOST.value
    """The sandbox is confirmed absent."""
    FAILED = ErrorCode.SANDBOX_FAILED.value
    """The provider holds the sandbox in a state of error that it does not recover from."""


class ProviderFault(Message):
    """What an exception of the provider's client tells, without its class."""

    status: int | None = None
    """HTTP status of the answer; None when there was no answer."""
    code: str | None = None
    """The provider's own error code, for example `FILE_NOT_FOUND`."""
    source: str | None = None
    """Which of the provider's services answered, when it says so; `DAYTONA_DAEMON` runs inside the sandbox."""
    message: str = ""
    timed_out: bool = False
    headers: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class ProviderRule:
    """One row of the table: the first row that matches decides."""

    becomes: ErrorCode
    status: range | None = None
    code: str | None = None
    message: str | None = None
    retryable: bool = False
    ambiguous: bool = False
    hint: str | None = None

    def matches(self, fault: ProviderFault) -> bool:
        if self.status is not None and fault.status not in self.status:
            return False
        if self.code is not None and (fault.code or "").upper() != self.code:
            return False
        return self.message is None or re.search(self.message, fault.message, re.IGNORECASE) is not None


def _only(status: int) -> range:
    return range(status, status + 1)


NOT_RUNNING_WORDS = (
    r"is the sandbox started|failed to resolve container|container not found|no such container|not found: sandbox"
)
"""The toolbox proxy's words for a sandbox that does not run, or not yet (daytonaio/daytona#4142, #4632)."""

# Order matters: a provider's own code tells more than its text, its text more than its status.
PROVIDER_ERRORS: tuple[ProviderRule, ...] = (
    ProviderRule(ErrorCode.PATH_NOT_FOUND, code="FILE_NOT_FOUND"),
    ProviderRule(ErrorCode.PERMISSION_DENIED, code="FILE_ACCESS_DENIED"),
    ProviderRule(ErrorCode.INVALID_ARGUMENTS, code="INVALID_FILE_PATH"),
    ProviderRule(ErrorCode.PROVIDER_UNAVAILABLE, status=range(400, 405), message=NOT_RUNNING_WORDS, retryable=True),
    # Before the disk of a sandbox: "Total disk quota exceeded" is about the account.
    ProviderRule(
        ErrorCode.QUOTA_EXCEEDED,
        status=range(400, 404),
        message=r"\b(limit|quota)\b.{0,40}\bexceeded\b|\bexceed(s|ed|ing)?\b.{0,40}\b(limit|quota)\b",
        hint="The provider account has no capacity left. Stop or delete sandboxes that are not needed.",
    ),
    ProviderRule(ErrorCode.STORAGE_FULL, status=_only(507)),
    ProviderRule(
        ErrorCode.STORAGE_FULL,
        status=range(400, 600),
        message=r"no space left|disk quota exceeded",
        hint="Delete what is not needed in the sandbox, or use a larger one.",
    ),
    ProviderRule(
        ErrorCode.CONNECTION_REQUIRED,
        status=_only(401),
        hint="The Daytona API key is missing, wrong or expired. Ask the user to connect Daytona again.",
    ),
    ProviderRule(
        ErrorCode.PROVIDER_REJECTED,
        status=_only(403),
        hint="The Daytona API key does not allow this operation.",
    ),
    ProviderRule(ErrorCode.TIMEOUT, status=_only(408), ambiguous=True, retryable=True),
    ProviderRule(ErrorCode.CONFLICT, status=_only(409), retryable=True),
    ProviderRule(ErrorCode.TOO_LARGE, status=_only(413)),
    ProviderRule(ErrorCode.PROVIDER_UNAVAILABLE, status=_only(429), retryable=True),
    ProviderRule(ErrorCode.PROVIDER_REJECTED, status=_only(501)),
    ProviderRule(ErrorCode.PROVIDER_REJECTED, status=range(400, 500)),
    # A 5xx, no answer, or one that the client could not read: it may have been done.
    ProviderRule(ErrorCode.PROVIDER_UNAVAILABLE, retryable=True, ambiguous=True),
)

_MESSAGE_LIMIT = 500


def from_provider(fault: ProviderFault) -> ToolError:
    """What a fault of the provider means for the caller, by the table above."""
    rule = next(rule for rule in PROVIDER_ERRORS if rule.matches(fault))
    told = beginning_of(fault.message.strip(), _MESSAGE_LIMIT)
    if fault.status is not None:
        what = f"the provider answered {fault.status}"
    else:
        what = "the provider did not answer in time" if fault.timed_out else "the request to the provider failed"
    return ToolError(
        code=rule.becomes,
        message=f"{what}: {told}" if told else what,
        hint=rule.hint,
        retryable=rule.retryable,
        ambiguous=rule.ambiguous,
        provider="daytona" if rule.becomes is ErrorCode.CONNECTION_REQUIRED else None,
    )


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a 429 asks to wait, at most 300; None when it does not say.

    Daytona suffixes the header with the limit's name (`Retry-After-sandbox-create`), and the client's
    headers are case-sensitive (seen with daytona 0.226.1).
    """
    for name, value in headers.items():
        if name.lower().startswith("retry-after"):
            try:
                seconds = float(value)
            except ValueError:
                continue
            if math.isfinite(seconds):
                return min(max(seconds, 0.0), 300.0)
    return None
