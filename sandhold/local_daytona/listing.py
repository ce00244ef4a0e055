"""`GET /sandbox`: filters, order and cursor.

The cursor names the last row seen, not a position: sandboxes that come and go between two pages neither
repeat nor hide others.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, TypeVar

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from sandhold.local_daytona.errors import bad_request, timestamp
from sandhold.local_daytona.records import SandboxRecord, State
from sandhold.local_daytona.requests import refusal

_REPEATED = frozenset({"states", "snapshots", "regionIds", "sandboxClasses"})


def _labels_from_json(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError("must be JSON") from error


def _moment(value: object) -> object:
    """A time as the client writes it, which ends in `+0000`."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


Value = TypeVar("Value", float, datetime)
Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]


class ListQuery(BaseModel):
    """The query of a list. Every filter that is given must hold; labels must all be equal."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")

    cursor: str | None = None
    limit: int = Field(default=100, ge=1, le=200)
    id: str | None = None
    name: str | None = None
    labels: Annotated[dict[str, str], BeforeValidator(_labels_from_json)] = Field(default_factory=dict)
    states: list[str] | None = None
    snapshots: list[str] | None = None
    region_ids: list[str] | None = None
    sandbox_classes: list[str] | None = None
    min_cpu: float | None = None
    max_cpu: float | None = None
    min_memory: float | None = Field(default=None, alias="minMemoryGiB")
    max_memory: float | None = Field(default=None, alias="maxMemoryGiB")
    min_disk: float | None = Field(default=None, alias="minDiskGiB")
    max_disk: float | None = Field(default=None, alias="maxDiskGiB")
    is_public: bool | None = None
    is_recoverable: bool | None = None
    created_at_after: Moment | None = None
    created_at_before: Moment | None = None
    last_event_after: Moment | None = None
    last_event_before: Moment | None = None
    auto_destroy_at_after: Moment | None = None
    auto_destroy_at_before: Moment | None = None
    sort: Literal["name", "cpu", "memoryGib", "diskGib", "lastActivityAt", "createdAt"] = "createdAt"
    order: Literal["asc", "desc"] = "desc"

    def admits(self, record: SandboxRecord) -> bool:
        """Whether the sandbox passes every filter."""
        return (
            _starts(record.id, self.id)
            and _starts(record.name, self.name)
            and self.labels.items() <= record.labels.items()
            and _among(record.state.value, self.states)
            and _among(record.snapshot, self.snapshots)
            and _among(record.target, self.region_ids)
            and _among("container", self.sandbox_classes)
            and _between(record.cpu, self.min_cpu, self.max_cpu)
            and _between(record.memory, self.min_memory, self.max_memory)
            and _between(record.disk, self.min_disk, self.max_disk)
            and self.is_public in (None, record.public)
            and self.is_recoverable in (None, record.recoverable)
            and _between(record.created_at, self.created_at_after, self.created_at_before)
            and _between(record.last_activity_at, self.last_event_after, self.last_event_before)
            and _between(record.auto_destroy_at, self.auto_destroy_at_after, self.auto_destroy_at_before)
        )


@dataclass(frozen=True)
class Page:
    """Some sandboxes of a list; `next_cursor` is None on the last page."""

    records: list[SandboxRecord]
    next_cursor: str | None


def read_list_query(request: web.Request) -> ListQuery:
    """The request's query. Raises a 400 that names the first wrong parameter."""
    values: dict[str, object] = {}
    for name in request.query:
        given = request.query.getall(name)
        values[name] = given if name in _REPEATED else given[-1]
    try:
        return ListQuery.model_validate(values)
    except ValidationError as error:
        raise refusal(error) from error


def page_of(records: Iterable[SandboxRecord], query: ListQuery) -> Page:
    """The page of `records` that the query asks for. A destroyed sandbox is never listed."""
    key = _SORT_KEYS[query.sort]

    def place(record: SandboxRecord) -> tuple[str | int, str]:
        return key(record), record.id

    descending = query.order == "desc"
    rows = sorted(
        (record for record in records if record.state is not State.DESTROYED and query.admits(record)),
        key=place,
        reverse=descending,
    )
    if query.cursor is not None:
        seen = _open_cursor(query.cursor, query.sort)
        rows = [row for row in rows if (place(row) < seen if descending else place(row) > seen)]
    shown = rows[: query.limit]
    more = len(rows) > query.limit
    return Page(shown, _make_cursor(place(shown[-1])) if more else None)


_SORT_KEYS: Mapping[str, Callable[[SandboxRecord], str | int]] = {
    "name": lambda record: record.name,
    "cpu": lambda record: record.cpu,
    "memoryGib": lambda record: record.memory,
    "diskGib": lambda record: record.disk,
    "lastActivityAt": lambda record: timestamp(record.last_activity_at),
    "createdAt": lambda record: timestamp(record.created_at),
}
_SORT_TYPES = {"cpu": int, "memoryGib": int, "diskGib": int}


def _make_cursor(place: tuple[str | int, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _open_cursor(cursor: str, sort: str) -> tuple[str | int, str]:
    try:
        value, sandbox_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (binascii.Error, ValueError, TypeError) as error:
        raise bad_request("cursor: is not one that this server gave out") from error
    if type(value) is not _SORT_TYPES.get(sort, str) or not isinstance(sandbox_id, str):
        raise bad_request("cursor: belongs to a list in another order")
    return value, sandbox_id


def _starts(value: str, prefix: str | None) -> bool:
    return prefix is None or value.lower().startswith(prefix.lower())


def _among(value: str, allowed: list[str] | None) -> bool:
    return allowed is None or value in allowed


def _between(value: Value | None, low: Value | None, high: Value | None) -> bool:
    if value is None:
        return low is None and high is None
    return (low is None or low <= value) and (high is None or value <= high)
