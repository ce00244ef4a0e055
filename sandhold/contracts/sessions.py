"""The session's workflow: what starts it, what it keeps, what it tells."""

from __future__ import annotations

from datetime import datetime
from difflib import get_close_matches
from typing import Literal

from pydantic import Field

from sandhold.contracts.base import Message
from sandhold.contracts.errors import ErrorCode, ToolError
from sandhold.contracts.names import sandbox_workflow_id
from sandhold.contracts.policy import Policy
from sandhold.contracts.sandboxes import LedgerEntry, SandboxEnding, SandboxStatus, ShownSandbox
from sandhold.contracts.tools import ListSandboxesResult, SandboxRow
from sandhold.contracts.transfers import SavedWorkspace, ToldWhenSaved

SessionState = Literal["open", "ending", "ended"]


class SessionSandbox(Message):
    """A sandbox on the session's books, from before its creation."""

    sandbox_id: str
    title: str | None = None
    generation: int = 1
    created_at: datetime
    ended: SandboxEnding | None = None
    reason: str | None = None
    error: ToolError | None = None
    saved: SavedWorkspace | None = None
    create_call_id: str | None = None


class SessionCarried(Message):
    """What a session's workflow keeps from run to run."""

    created_at: datetime
    last_used_at: datetime
    sandboxes: list[SessionSandbox] = Field(default_factory=list)
    ledger: list[LedgerEntry] = Field(default_factory=list)
    forwarded: dict[str, str] = Field(default_factory=dict)
    """Submitted calls that were passed on, by call id: the sandbox that each went to."""
    created_count: int = 0


class SessionStart(Message):
    """Starts the workflow of a session."""

    session_id: str
    owner: str
    policy: Policy
    carried: SessionCarried | None = None


class SessionRecord(Message):
    """What Temporal has on record of a session, also after its end."""

    start: SessionStart
    run_id: str
    """The first run of its workflow. No other session has it, not even one of the same id."""
    created_at: datetime


class SessionStatus(Message):
    """The answer to the query `status`."""

    session_id: str
    workflow_id: str
    owner: str
    state: SessionState
    ending: str | None = None
    """Why the session is ending, once it is."""
    policy: Policy
    created_at: datetime
    ends_at: datetime
    """When the maximum lifetime is reached."""
    sandboxes: list[SessionSandbox]


class EndRequest(Message):
    """The argument of the update `end`."""

    reason: str = "ended"


class EndAnswer(Message):
    """The answer to the update `end`; the end itself is the workflow's result."""

    session_id: str
    state: SessionState


class EndedSandbox(ToldWhenSaved):
    sandbox_id: str
    outcome: SandboxEnding
    saved: SavedWorkspace | None = None
    """What was saved of it, or why nothing was; null where the policy asks for nothing, or there was nothing yet."""


class SessionOutcome(Message):
    """The result of a session's workflow: every sandbox it had is confirmed absent."""

    session_id: str
    state: Literal["ended"] = "ended"
    reason: str
    sandboxes: list[EndedSandbox]


class SandboxStatuses(Message):
    """Answer of the activity `sandbox_statuses`: a status, or null where the workflow did not answer."""

    by_workflow_id: dict[str, SandboxStatus | None]


def why_gone(sandbox_id: str, books: list[SessionSandbox]) -> ToolError:
    """What to tell whoever names a sandbox that the books do not have as open."""
    open_ids = [book.sandbox_id for book in books if book.ended is None]
    book = next((book for book in books if book.sandbox_id == sandbox_id), None)
    if book is not None and book.ended in {"lost", "failed"}:
        lost = book.ended == "lost"
        return book.error or ToolError(
            code=ErrorCode.SANDBOX_LOST if lost else ErrorCode.SANDBOX_FAILED,
            message=f"sandbox {sandbox_id!r} " + ("is gone at the provider" if lost else "could not be created"),
        )
    deleted = f"sandbox {sandbox_id!r} was deleted ({book.reason})" if book else None
    return ToolError(
        code=ErrorCode.SANDBOX_NOT_FOUND,
        message=deleted or f"this session has no sandbox {sandbox_id!r}",
        hint=_those_that_exist(sandbox_id, open_ids),
        sandbox_ids=open_ids,
    )


def _those_that_exist(sandbox_id: str, open_ids: list[str]) -> str:
    if not open_ids:
        return "The session has no sandbox. Create one with daytona_create_sandbox."
    exist = f"The session's sandboxes are: {', '.join(open_ids)}."
    near = get_close_matches(sandbox_id, open_ids, n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}? {exist}" if near else exist


def shown_sandboxes(
    session_id: str, books: list[SessionSandbox], statuses: dict[str, SandboxStatus | None]
) -> list[ShownSandbox]:
    """The session's books joined with what each open sandbox said of itself; `statuses` by sandbox id.

    An open sandbox without a status is shown as `unknown`: its workflow did not answer.
    """
    return [statuses.get(book.sandbox_id) or _from_book(session_id, book) for book in books]


def _from_book(session_id: str, book: SessionSandbox) -> ShownSandbox:
    return ShownSandbox(
        sandbox_id=book.sandbox_id,
        title=book.title,
        state=book.ended or "unknown",
        created_at=book.created_at,
        error=book.error,
        saved=book.saved,
        generation=book.generation,
        workflow_id=sandbox_workflow_id(session_id, book.sandbox_id),
    )


def listed(sandboxes: list[ShownSandbox]) -> ListSandboxesResult:
    """The list tool's result: what the agent may see, without the provider's ids. Deleted ones are left out."""
    rows = [SandboxRow.model_validate(row.model_dump()) for row in sandboxes if row.state != "deleted"]
    return ListSandboxesResult(sandboxes=rows, count=len(rows))
