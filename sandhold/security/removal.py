"""Removing a key: only when nothing can need it, histories included. What is under it then is lost for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sandhold.security.errors import SecurityError
from sandhold.security.executions import NAMED, Executions, Needed, Span
from sandhold.security.holders import Holder
from sandhold.security.key_document import KeyDocument, RingKey
from sandhold.security.key_rings import FileKeyRing

MARGIN = timedelta(minutes=15)
"""For so long after its retirement a key counts as used: processes notice within seconds (SETTLES_S), but the clocks of
machines differ."""
LISTED_AFTER = timedelta(minutes=10)
"""By then visibility lists an execution that has begun."""


@dataclass(frozen=True)
class Reason:
    """Why a key cannot be removed."""

    kind: str
    """A word for scripts: `primary`, `values`, `executions`, `schedules`, `unknown`, `too_soon` or `still_used`."""
    text: str
    count: int = 0
    examples: tuple[str, ...] = ()


class KeyNeeded(SecurityError):
    """A key cannot be removed: something may need it, or nobody can tell yet."""

    def __init__(self, key_id: str, reasons: Sequence[Reason]) -> None:
        self.key_id = key_id
        self.reasons = tuple(reasons)
        super().__init__(f"the key {key_id!r} may be needed: {'; '.join(reason.text for reason in reasons)}")


@dataclass(frozen=True)
class Times:
    """When a key was used, for as much as the ring and the operator say."""

    margin: timedelta = MARGIN
    listed_after: timedelta = LISTED_AFTER
    used_until: datetime | None = None
    """When the last process stopped to encrypt under a key, where that was later than the ring says, or it does not."""

    def span(self, key: RingKey) -> Span:
        """When the key was used, at most; without an end where nobody says when that was."""
        ends = [each for each in (key.retired_at, self.used_until) if each is not None and key.state != "primary"]
        return Span(key.created_at - self.margin, max(ends) + self.margin if ends else None)


class Removal:
    """Finds out what may need a key."""

    def __init__(self, executions: Executions, holders: Sequence[Holder], times: Times) -> None:
        self._executions = executions
        self._holders = holders
        self._times = times

    async def reasons(
        self, document: KeyDocument, key: RingKey, told: Callable[[], None] = lambda: None
    ) -> list[Reason]:
        """Everything that may need the key; empty when nothing can. `told` of each execution that was looked into.

        Raises RPCError and what the holders raise: what cannot be asked counts as no answer, never as "nothing".
        """
        if key.id == document.primary.id:
            return [Reason("primary", "it is the primary key: everything is encrypted under it")]
        now = datetime.now(UTC)
        span = self._times.span(key)
        found = [*await self._values(key.id), *await self._histories(span), *await self._schedules(key.id)]
        if span.until is None:
            text = (
                "the ring does not say when it was retired: say with --used-until when a process last encrypted by it"
            )
            return [*found, Reason("unknown", text)]
        asked_from = span.until + self._times.listed_after
        if now < asked_from:
            when = f"{asked_from:%Y-%m-%d %H:%M:%S} UTC"
            found.append(Reason("too_soon", f"only from {when} on can Temporal tell that no execution began under it"))
        found += await self._kept_results(span.until)
        if not found:
            # The long way only when all else says yes.
            found += await self._still_used(key.id, span.until, told)
        return found

    async def remove(self, ring: FileKeyRing, key_id: str, told: Callable[[], None] = lambda: None) -> None:
        """Take the key's material out of the ring for ever; its id and its dates stay.

        Raises KeyNeeded, and then nothing is changed; KeyUnknown; and as `reasons`.
        """
        document = ring.document()
        reasons = await self.reasons(document, document.usable(key_id), told)
        if reasons:
            raise KeyNeeded(key_id, reasons)

        def without(now: KeyDocument) -> KeyDocument:
            if now.usable(key_id) != document.usable(key_id):
                raise KeyNeeded(key_id, [Reason("too_soon", "it was made another kind of key just now")])
            return now.removed(key_id)

        await asyncio.to_thread(ring.change, without)

    async def _values(self, key_id: str) -> list[Reason]:
        found = []
        for holder in self._holders:
            survey = await holder.survey()
            if survey.faults:
                text = (
                    f"{len(survey.faults)} values in {holder.name} tell no key, so they may be under it: "
                    "`sandhold keys verify` names them"
                )
                found.append(Reason("values", text, len(survey.faults), (holder.name,)))
            count = survey.by_key[key_id]
            if count:
                text = f"{count} values in {holder.name} are under it: `sandhold keys rotate --rewrap-only`"
                found.append(Reason("values", text, count, (holder.name,)))
        return found

    async def _histories(self, span: Span) -> list[Reason]:
        needed = await self._executions.of(span)
        if not needed:
            return []
        retention = await self._executions.retention() if any(not each.is_open for each in needed) else None
        return [
            Reason("executions", f"{_told(each)} {_until(each, retention)}", each.count, each.workflow_ids)
            for each in needed
        ]

    async def _schedules(self, key_id: str) -> list[Reason]:
        ids = await self._executions.schedules_with(key_id)
        text = f"schedules keep their arguments under it ({', '.join(ids)}): `sandhold keys rotate --rewrap-only`"
        return [Reason("schedules", text, len(ids), tuple(ids[:NAMED]))] if ids else []

    async def _kept_results(self, until: datetime) -> list[Reason]:
        ids = await self._executions.schedules_without_result_since(until)
        text = (
            f"schedules may keep the last result under it ({_names(ids)}) until a run of theirs has completed that "
            f"began after {until:%Y-%m-%d %H:%M:%S} UTC: wait for it, or `temporal schedule trigger --schedule-id ID`"
        )
        return [Reason("schedules", text, len(ids), tuple(ids[:NAMED]))] if ids else []

    async def _still_used(self, key_id: str, until: datetime, told: Callable[[], None]) -> list[Reason]:
        ids = await self._executions.later_with(key_id, until, told)
        if not ids:
            return []
        text = (
            f"{'at least ' if len(ids) >= NAMED else ''}{len(ids)} executions began after its retirement and hold "
            f"something under it ({_names(ids)}): they were reset, or a schedule gave them the result of a run before, "
            "or a process still encrypts under it"
        )
        return [Reason("still_used", text, len(ids), tuple(ids[:NAMED]))]


def _told(needed: Needed) -> str:
    kind = f"{'open' if needed.is_open else 'closed'} {needed.workflow_type}"
    return f"{needed.count} {kind} executions began while it was used ({_names(needed.workflow_ids)})"


def _until(needed: Needed, retention: timedelta | None) -> str:
    if needed.is_open:
        return "and hold it until they have ended"
    assert retention is not None
    return f"and are readable until Temporal forgets them, {_duration(retention)} after their end"


def _names(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")


def _duration(time: timedelta) -> str:
    hours = time.total_seconds() / 3600
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} hours"
