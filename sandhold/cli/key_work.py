"""The longer work of `sandhold keys`: opening everything, wrapping everything anew, and looking before a key goes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from temporalio.client import Client
from temporalio.service import RPCError

from sandhold.cli.connecting import connected
from sandhold.cli.key_holders import open_holders, verified_objects
from sandhold.cli.key_reports import Rotated, Verified
from sandhold.cli.output import output
from sandhold.cli.progress import CountProgress
from sandhold.client import TemporalRefused
from sandhold.schedules import renew_schedules
from sandhold.security import KeyRing, removal, rotation
from sandhold.security.executions import Executions
from sandhold.security.holders import Holder, Survey
from sandhold.security.key_document import KeyDocument
from sandhold.security.key_rings import EnvironmentKeyRing, FileKeyRing
from sandhold.security.removal import Removal, Times
from sandhold.security.renewals import Renewals, renew_sandboxes
from sandhold.settings import Settings


async def uses_of_keys(ring: KeyRing, document: KeyDocument) -> dict[str, dict[str, int]]:
    """By key, how many values of each holder are under it, and how many executions may hold payloads under it.

    Executions are told by their times: for the primary key these are all since it was made.
    """
    settings = Settings.load()
    executions = Executions(await _client(settings))
    async with open_holders(settings, ring) as holders:
        surveys = await _surveys(holders)
    uses = {}
    with _asking_temporal():
        for key in document.keys:
            uses[key.id] = {name: survey.by_key[key.id] for name, survey in surveys.items()}
            uses[key.id]["executions"] = 0 if key.state == "removed" else await executions.count(Times().span(key))
    return uses


async def values_by_key(ring: KeyRing) -> dict[str, dict[str, int]]:
    """By key of a service's, how many values of each holder are under it: the primary key first, then others."""
    async with open_holders(Settings.load(), ring) as holders:
        surveys = await _surveys(holders)
    ids = sorted({key_id for survey in surveys.values() for key_id in survey.by_key})
    return {
        key_id: {name: survey.by_key[key_id] for name, survey in surveys.items()}
        for key_id in dict.fromkeys([await ring.primary(), *ids])
    }


async def verify_all(ring: KeyRing, *, deep: bool) -> Verified:
    """Open every value, and the header of every stored object, or where `deep` all of it."""
    settings = Settings.load()
    async with open_holders(settings, ring) as holders:
        with CountProgress("values", _values(await _surveys(holders))) as progress:
            reports = await rotation.verify(holders, lambda _, step: progress.advance(step.values))
    with CountProgress("objects") as progress:
        return Verified([*reports, await verified_objects(settings, ring, deep=deep, told=progress.advance)])


async def rotate_all(ring: KeyRing, *, rewrap_only: bool, new_key: bool) -> Rotated:
    """Add a primary key, unless a rotation before has not come to its end, and bring everything under it.

    No key is added to a ring that was handed out, or whose keys are a service's. Each step is safe to repeat.
    Everything that is needed is asked for before the ring is changed.
    """
    settings = Settings.load()
    client = await _client(settings)
    async with open_holders(settings, ring) as holders:
        surveys = await _surveys(holders)
        added = False
        if isinstance(ring, FileKeyRing):
            document = ring.document()
            if not rewrap_only:
                document, added = await _next(ring, document, list(surveys.values()), new_key=new_key)
            began_before = await _settled(document)
        else:
            if not isinstance(ring, EnvironmentKeyRing):
                # Nobody tells since when the service has its primary key: it may have turned a moment ago.
                await asyncio.sleep(rotation.SETTLES_S)
            began_before = datetime.now(UTC)
        with _asking_temporal():
            schedules = await renew_schedules(client)
            first = await renew_sandboxes(client, began_before)
        with CountProgress("values", _values(surveys)) as progress:
            reports = await rotation.rewrap(holders, lambda _, step: progress.advance(step.values))
        with _asking_temporal():
            # Visibility may not have listed those that had just begun.
            renewals = _both(first, await renew_sandboxes(client, began_before))
        return Rotated(await ring.primary(), added, reports, renewals, schedules)


async def _next(
    ring: FileKeyRing, document: KeyDocument, surveys: Sequence[Survey], *, new_key: bool
) -> tuple[KeyDocument, bool]:
    """The ring to bring everything under, and whether it has a new primary key."""
    left = rotation.unfinished(document, surveys)
    if left and not new_key:
        output.note(
            f"{left} values are still under older keys: they are brought under {document.primary.id}, no key is added "
            "(--new-key adds one)"
        )
        return document, False
    changed = await asyncio.to_thread(ring.change, rotation.with_fresh_primary(document))
    return changed, changed.primary.id != document.primary.id


async def _settled(document: KeyDocument) -> datetime:
    """Wait until all processes encrypt under the primary key of the file; since when they do."""
    retired = [key.retired_at for key in document.keys if key.retired_at is not None]
    settled_at = max([document.primary.created_at, *retired]) + timedelta(seconds=rotation.SETTLES_S)
    await asyncio.sleep(min(rotation.SETTLES_S, max(0.0, (settled_at - datetime.now(UTC)).total_seconds())))
    return settled_at


async def remove_key(ring: FileKeyRing, key_id: str, used_until: datetime | None) -> None:
    """Remove a key that nothing can need. Raises KeyNeeded."""
    settings = Settings.load()
    ring.document().usable(key_id)
    executions = Executions(await _client(settings))
    times = Times(margin=removal.MARGIN, listed_after=removal.LISTED_AFTER, used_until=used_until)
    async with open_holders(settings, ring) as holders:
        with CountProgress("executions looked into") as progress, _asking_temporal():
            await Removal(executions, holders, times).remove(ring, key_id, progress.advance)


async def _client(settings: Settings) -> Client:
    return (await connected(settings)).client


async def _surveys(holders: Sequence[Holder]) -> dict[str, Survey]:
    return {holder.name: await holder.survey() for holder in holders}


def _values(surveys: dict[str, Survey]) -> int:
    return sum(survey.values for survey in surveys.values())


def _both(first: Renewals, second: Renewals) -> Renewals:
    asked = list(dict.fromkeys([*first.asked, *second.asked]))
    return Renewals(asked, {name: why for name, why in (first.failed | second.failed).items() if name not in asked})


@contextmanager
def _asking_temporal() -> Iterator[None]:
    """Say it when Temporal does not do what it was asked for. What was done stays done, and can be done again."""
    try:
        yield
    except RPCError as error:
        raise TemporalRefused(f"Temporal refused: {error.message}; do the same again") from error
