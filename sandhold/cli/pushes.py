"""Files from session storage, or from here by way of it, into a sandbox."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from sandhold.cli.progress import time_shown
from sandhold.cli.transfers import LocalFileUnusable, put_file
from sandhold.client import Session
from sandhold.contracts.transfers import FILES_LIMIT, FILES_LIMIT_BYTES, PushFilesResult

_STORED_BELOW = "pushed"

Pair = tuple[str, str]


async def push(session: Session, sandbox_id: str, sources: Sequence[str], target: str) -> PushFilesResult:
    """Bring files and folders of session storage into the sandbox.

    One becomes `target`; several, or with a slash at the end of `target`, keep their names in that directory.
    """
    into = len(sources) > 1 or target.endswith("/")
    pairs = [(each, f"{target.rstrip('/')}/{_name(each)}" if into else target) for each in sources]
    pushed = PushFilesResult()
    portions = list(_portions(pairs))
    for number, portion in enumerate(portions, 1):
        which = f" {number} of {len(portions)}" if len(portions) > 1 else ""
        async with time_shown(f"push to {sandbox_id}{which}"):
            came = await session.push_files(sandbox_id, portion)
        pushed.files_uploaded += came.files_uploaded
        pushed.bytes += came.bytes
        pushed.files_failed += came.files_failed
    return pushed


async def stored_first(session: Session, locals_: Sequence[str]) -> list[str]:
    """Copy local files into storage, where they stay; their paths there. Raises LocalFileUnusable."""
    stored: dict[str, str] = {}
    for local in locals_:
        path = f"{_STORED_BELOW}/{posixpath.basename(posixpath.abspath(local))}"
        if path in stored:
            raise LocalFileUnusable(f"{local} and {stored[path]} have the same name")
        await put_file(session.files, Path(local), path)
        stored[path] = local
    return list(stored)


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _portions(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """As many pairs as one call takes, one portion after the other."""
    portion: list[Pair] = []
    weight = 0
    for pair in pairs:
        size = sum(len(path.encode()) for path in pair)
        if portion and (len(portion) == FILES_LIMIT or weight + size > FILES_LIMIT_BYTES):
            yield portion
            portion, weight = [], 0
        portion.append(pair)
        weight += size
    yield portion
