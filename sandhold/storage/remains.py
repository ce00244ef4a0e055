"""What is left of sessions that have ended: since when, for how long it is kept, and its removal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from sandhold.contracts.base import Message
from sandhold.storage.errors import StorageDamaged, StorageError
from sandhold.storage.objects import SessionObjects

_MARK = "ended.json"
_AT_ONCE = 500


class EndMark(Message):
    """Lies beside what an ended session left. Temporal may forget the session long before its storage goes."""

    deployment: str
    """The deployment whose session it was."""
    ended_at: datetime
    keep_days: float
    owner: str | None = None
    """Whose session it was; null in marks from before that was noted."""

    @property
    def kept_until(self) -> datetime:
        return self.ended_at + timedelta(days=self.keep_days)


class MarkUnreadable(StorageError):
    """There is a mark, but it is none that we write."""

    retryable = False


@dataclass(frozen=True)
class Batch:
    """Objects that were removed together."""

    objects: int
    bytes: int


class Remains:
    """The storage of one session, as a clean-up sees it."""

    def __init__(self, objects: SessionObjects, session_id: str) -> None:
        self._objects = objects
        self.session_id = session_id

    async def mark(self) -> EndMark | None:
        """The mark of the session's end; None before somebody has noticed it. Raises MarkUnreadable."""
        try:
            data = await self._objects.get(self.session_id, _MARK)
            return None if data is None else EndMark.model_validate_json(data)
        except ValidationError:
            raise MarkUnreadable(f"nobody can read {_MARK} of session {self.session_id!r}") from None
        except StorageDamaged as error:
            raise MarkUnreadable(f"nobody can read {_MARK} of session {self.session_id!r}: {error}") from None

    async def put_mark(self, mark: EndMark) -> None:
        await self._objects.put(self.session_id, _MARK, mark.model_dump_json().encode())

    async def last_written_at(self) -> datetime | None:
        """When the newest object was written, or where none is left the session's key; None when nothing is there."""
        newest = None
        async for each in self._objects.list(self.session_id):
            newest = each.modified_at if newest is None else max(newest, each.modified_at)
        return newest or await self._objects.key_laid_at(self.session_id)

    async def remove(self, *, dry_run: bool) -> AsyncIterator[Batch]:
        """Remove everything; a dry run only counts.

        The mark goes behind all else, so that whoever is interrupted finds it again, and the key that opens it last.
        """
        paths: list[str] = []
        size = 0
        async for each in self._objects.list(self.session_id):
            if each.path == _MARK:
                continue
            paths.append(each.path)
            size += each.size
            if len(paths) == _AT_ONCE:
                yield await self._removed(paths, size, dry_run)
                paths, size = [], 0
        yield await self._removed(paths, size, dry_run)
        if not dry_run:
            await self._objects.delete(self.session_id, [_MARK])
            await self._objects.remove_key(self.session_id)

    async def _removed(self, paths: list[str], size: int, dry_run: bool) -> Batch:
        if paths and not dry_run:
            await self._objects.delete(self.session_id, paths)
        return Batch(len(paths), size)
