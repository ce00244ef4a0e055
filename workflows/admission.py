"""Which sandbox a create call makes: its id, its generation, and whether there is room for it."""

from __future__ import annotations

import re
from datetime import datetime

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import CallRequest
    from sandhold.contracts.errors import ErrorCode, ToolFailure
    from sandhold.contracts.policy import Policy
    from sandhold.contracts.sessions import SessionCarried, SessionSandbox
    from sandhold.contracts.tools import CreateSandboxArguments

_BOOKS_LIMIT = 200
_ID_FROM_TITLE_CHARS = 40


def new_book(
    kept: SessionCarried, policy: Policy, request: CallRequest, arguments: CreateSandboxArguments, now: datetime
) -> SessionSandbox:
    """Put a new sandbox on the session's books and return its entry.

    Raises ToolFailure `quota_exceeded` when the policy has no room, `conflict` when a sandbox of the asked
    id is open. An id whose sandbox has ended may be used again: that raises its generation, and thereby
    gives the provider sandbox another name.
    """
    open_books = [book for book in kept.sandboxes if book.ended is None]
    if len(open_books) >= policy.max_sandboxes:
        raise ToolFailure(
            ErrorCode.QUOTA_EXCEEDED,
            f"the session may have {policy.max_sandboxes} sandboxes at once",
            hint=f"Delete one that is not needed: {', '.join(book.sandbox_id for book in open_books)}.",
        )
    sandbox_id = arguments.sandbox_id or _free_id(kept, arguments.title)
    earlier = next((book for book in kept.sandboxes if book.sandbox_id == sandbox_id), None)
    if earlier is not None and earlier.ended is None:
        raise ToolFailure(
            ErrorCode.CONFLICT,
            f"sandbox {sandbox_id} exists already",
            hint="Use it, delete it first, or choose another sandbox_id.",
        )
    if earlier is not None:
        kept.sandboxes.remove(earlier)
    book = SessionSandbox(
        sandbox_id=sandbox_id,
        title=arguments.title,
        generation=earlier.generation + 1 if earlier else 1,
        created_at=now,
        create_call_id=request.call_id,
    )
    kept.created_count += 1
    kept.sandboxes.append(book)
    _forget_oldest_ended(kept)
    return book


def _free_id(kept: SessionCarried, title: str | None) -> str:
    taken = {book.sandbox_id for book in kept.sandboxes}
    slug = re.sub(r"[^a-z0-9]+", "-", (title or "").lower()).strip("-")[:_ID_FROM_TITLE_CHARS].rstrip("-")
    if slug and slug not in taken:
        return slug
    number = 2 if slug else kept.created_count + 1
    while f"{slug or 'sandbox'}-{number}" in taken:
        number += 1
    return f"{slug or 'sandbox'}-{number}"


def _forget_oldest_ended(kept: SessionCarried) -> None:
    """Generations of forgotten ids start again at 1; that is safe, for their sandboxes are confirmed absent."""
    ended = [book for book in kept.sandboxes if book.ended is not None]
    for book in ended[: max(0, len(kept.sandboxes) - _BOOKS_LIMIT)]:
        kept.sandboxes.remove(book)
