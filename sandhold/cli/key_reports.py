"""What the commands about keys tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sandhold.security.holders import Fault
from sandhold.security.renewals import Renewals
from sandhold.security.rotation import HolderReport

_NAMED = 100
"""So many faults are named; all are counted."""


@dataclass
class Verified:
    """What `keys verify` found."""

    reports: list[HolderReport]

    @property
    def ok(self) -> bool:
        return not any(report.faults for report in self.reports)

    def document(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "holders": [
                {"name": report.name, "opened": report.done, **_faults(report.faults)} for report in self.reports
            ],
        }

    def text(self) -> str:
        lines = []
        for report in self.reports:
            lines.append(f"{report.name}: {report.done} values open, {len(report.faults)} do not")
            lines += [f"  {_place(fault)}: {fault.reason}" for fault in report.faults[:_NAMED]]
        return "\n".join(lines)


@dataclass
class Rotated:
    """What `keys rotate` did."""

    primary: str
    added: bool
    reports: list[HolderReport] = field(default_factory=list)
    renewals: Renewals = field(default_factory=Renewals)
    schedules: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not any(report.faults or report.overtaken for report in self.reports) and not self.renewals.failed

    def document(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "primary": self.primary,
            "added": self.added,
            "holders": [
                {
                    "name": report.name,
                    "rewrapped": report.done,
                    "already": report.already,
                    "overtaken": report.overtaken,
                    **_faults(report.faults),
                }
                for report in self.reports
            ],
            "sandboxes": {"asked": len(self.renewals.asked), "failed": self.renewals.failed},
            "schedules": self.schedules,
        }

    def text(self) -> str:
        lines = [f"primary key: {self.primary}{', which is new' if self.added else ''}"]
        for report in self.reports:
            counts = f"{report.done} values brought under it, {report.already} were, {len(report.faults)} failed"
            lines.append(f"{report.name}: {counts}")
            lines += [f"  {_place(fault)}: {fault.reason}" for fault in report.faults[:_NAMED]]
            if report.overtaken:
                lines.append(f"  {report.overtaken} were replaced meanwhile, again and again: rotate --rewrap-only")
        lines.append(f"asked {len(self.renewals.asked)} open sandboxes to continue as new")
        lines += [f"  {workflow_id}: {reason}" for workflow_id, reason in self.renewals.failed.items()]
        return "\n".join(lines)


def _faults(faults: list[Fault]) -> dict[str, Any]:
    named = [{"place": vars(fault.place), "reason": fault.reason} for fault in faults[:_NAMED]]
    return {"failed": len(faults), "faults": named}


def _place(fault: Fault) -> str:
    place = fault.place
    return " ".join(part for part in (place.kind, place.owner, place.record, place.name) if part)
