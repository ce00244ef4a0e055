"""Rotation: a fresh primary key, under which everything that can be wrapped anew then is.

Each step is safe to repeat, and a crash between any two of them loses nothing: the old keys go on opening what is not
yet wrapped anew. So a rotation that was cut off is gone on with by doing it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sandhold.security.holders import Fault, Holder, Step, Survey
from sandhold.security.key_document import KeyDocument, RingKey

SETTLES_S = 5.0
"""After so long every process that reads the ring's file encrypts under its primary key: it looks at the file every two
seconds, and looks every two seconds whether the data key that it goes on with is wrapped by that key."""
_PASSES = 5

Told = Callable[[str, Step], None]
"""Told the name of a holder and what became of its next values."""


@dataclass
class HolderReport:
    """What became of the values of one holder."""

    name: str
    done: int = 0
    already: int = 0
    overtaken: int = 0
    faults: list[Fault] = field(default_factory=list)

    def add(self, step: Step) -> None:
        self.done += step.done
        self.already += step.already
        self.overtaken += step.overtaken
        self.faults += step.faults


def unfinished(document: KeyDocument, surveys: Sequence[Survey]) -> int:
    """How many values still lie under a key that was retired: a rotation that has not come to its end."""
    retired = {key.id for key in document.keys if key.state == "decrypt_only"}
    by_key: Counter[str] = sum((survey.by_key for survey in surveys), Counter())
    return sum(count for key_id, count in by_key.items() if key_id in retired)


def with_fresh_primary(seen: KeyDocument) -> Callable[[KeyDocument], KeyDocument]:
    """The change of a ring that was `seen` so: a fresh primary key, unless somebody has made another one since."""

    def changed(document: KeyDocument) -> KeyDocument:
        return document.added(RingKey.new("primary")) if document.primary.id == seen.primary.id else document

    return changed


async def rewrap(holders: Sequence[Holder], told: Told = lambda name, step: None) -> list[HolderReport]:
    """Bring all values of the holders under the primary key, in batches; what became of them.

    Values that do not open are left as they are, and reported. Raises what the holders raise: then do it again.
    """
    return [await _rewrapped(holder, told) for holder in holders]


async def _rewrapped(holder: Holder, told: Told) -> HolderReport:
    """One holder; again while others have replaced values meanwhile, perhaps by what lies under an older key."""
    total = HolderReport(holder.name)
    for _ in range(_PASSES):
        report = HolderReport(holder.name)
        async for step in holder.rewrap():
            report.add(step)
            told(holder.name, step)
        rewrapped = total.done + report.done
        total = HolderReport(
            holder.name, rewrapped, max(0, report.already - total.done), report.overtaken, report.faults
        )
        if not report.overtaken:
            break
    return total


async def verify(holders: Sequence[Holder], told: Told = lambda name, step: None) -> list[HolderReport]:
    """Open all values of the holders; `done` counts those that open. Raises what the holders raise."""
    reports = []
    for holder in holders:
        report = HolderReport(holder.name)
        async for step in holder.verify():
            report.add(step)
            told(holder.name, step)
        reports.append(report)
    return reports
