"""What a run of the bench found: the figures as JSON, and as tables for people."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, computed_field
from rich.console import Console, Group
from rich.table import Column, Table


class Latency(BaseModel):
    """How long one kind of operation took, in milliseconds."""

    n: int
    p50_ms: float
    p95_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        ranked = sorted(seconds)
        p95 = ranked[math.ceil(0.95 * len(ranked)) - 1]
        return cls(n=len(ranked), p50_ms=statistics.median(ranked) * 1000, p95_ms=p95 * 1000)


class Machine(BaseModel):
    """Where it was measured, and how busy that was before the run began."""

    cpus: int
    system: str
    python: str
    load_before: float
    """Load average of the last minute."""

    @classmethod
    def this(cls) -> Machine:
        return cls(
            cpus=len(os.sched_getaffinity(0)),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
            load_before=os.getloadavg()[0],
        )


class Rounds(BaseModel):
    """Five operations on one sandbox, taken in turns so that noise hits all alike."""

    raw_exec: Latency
    """`true` by the provider's own client."""
    launcher_exec: Latency
    """`true` by the launcher, carried by the provider's own client."""
    update: Latency
    """An update `call` that needs no activity: `daytona_list_sandboxes` of a session that has none."""
    floor: Latency
    """An update with one activity that returns at once."""
    exec: Latency
    """`daytona_exec` of `true`."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def k_of_floor(self) -> float:
        """k in: exec = raw exec + k x floor."""
        return (self.exec.p50_ms - self.raw_exec.p50_ms) / self.floor.p50_ms

    @computed_field  # type: ignore[prop-decorator]
    @property
    def k_of_update(self) -> float:
        """k in: exec = raw exec + k x update."""
        return (self.exec.p50_ms - self.raw_exec.p50_ms) / self.update.p50_ms

    @computed_field  # type: ignore[prop-decorator]
    @property
    def launcher_share(self) -> float:
        """What the launcher adds to a plain exec, in floors."""
        return (self.launcher_exec.p50_ms - self.raw_exec.p50_ms) / self.floor.p50_ms


class Codec(BaseModel):
    """`daytona_exec` of `true` in turns by two workers and clients, of which one encrypts all payloads."""

    encrypted: Latency
    plain: Latency

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ratio(self) -> float:
        return self.encrypted.p50_ms / self.plain.p50_ms


class Ageing(BaseModel):
    """Calls late in a sandbox's life against early ones: medians of windows of `window` calls."""

    window: int
    early_call: int
    late_call: int
    early_ms: float
    late_ms: float
    young_ms: float
    """A second, young sandbox at `early_call`, taken in turns with the late window: the noise of that moment."""
    runs: int
    """How many runs the old sandbox's workflow had: one more than its continue-as-news."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def late_by_early(self) -> float:
        return self.late_ms / self.early_ms

    @computed_field  # type: ignore[prop-decorator]
    @property
    def late_by_young(self) -> float:
        return self.late_ms / self.young_ms


class Concurrent(BaseModel):
    """Callers at once on one sandbox."""

    callers: int
    calls: int
    calls_per_s: float


class Target(BaseModel):
    """Something the design promises of these figures."""

    name: str
    measured: float
    at_most: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def met(self) -> bool:
        return self.measured <= self.at_most


class Report(BaseModel):
    """Everything that one run measured."""

    started_at: datetime
    took_s: float
    machine: Machine
    rounds: Rounds
    codec: Codec
    events_per_call: float
    """What a short command adds to its sandbox's history."""
    ageing: Ageing
    concurrent: Concurrent
    create: Latency
    """From asking the local Daytona for a sandbox to its being started."""
    worker_rss_bytes_before: int
    worker_rss_bytes_after: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def targets(self) -> list[Target]:
        late = self.ageing.late_call
        return [
            Target(name="(exec - raw exec) / floor", measured=self.rounds.k_of_floor, at_most=1.6),
            Target(name="(launcher - raw exec) / floor", measured=self.rounds.launcher_share, at_most=0.5),
            Target(name="exec, encrypted / plain", measured=self.codec.ratio, at_most=1.1),
            Target(name="history events of a short command", measured=self.events_per_call, at_most=11),
            Target(
                name=f"call {late:,} / call {self.ageing.early_call}", measured=self.ageing.late_by_early, at_most=1.1
            ),
        ]


def show(report: Report, console: Console) -> None:
    """Print the figures and how they stand against the targets."""
    rounds = report.rounds
    times = Table("operation", *_right("p50 ms", "p95 ms", "in floors", "n"), title="Latency", title_justify="left")
    for name, latency in (
        ("raw exec of `true`, the provider's own client", rounds.raw_exec),
        ("the same by the launcher", rounds.launcher_exec),
        ("update without an activity", rounds.update),
        ("floor: update with one activity", rounds.floor),
        ("daytona_exec of `true`", rounds.exec),
        ("`true` once more, encrypted", report.codec.encrypted),
        ("in turns with that, not encrypted", report.codec.plain),
        ("local Daytona: create to started", report.create),
    ):
        floors = latency.p50_ms / rounds.floor.p50_ms
        times.add_row(name, f"{latency.p50_ms:.1f}", f"{latency.p95_ms:.1f}", f"{floors:.2f}", str(latency.n))

    ageing, concurrent = report.ageing, report.concurrent
    rest = Table("figure", *_right("value"), title="Ratios and more", title_justify="left")
    rest.add_row("k in: exec = raw exec + k x floor", f"{rounds.k_of_floor:.2f}")
    rest.add_row("k in: exec = raw exec + k x update", f"{rounds.k_of_update:.2f}")
    rest.add_row(f"call {ageing.early_call}, median of {ageing.window}", f"{ageing.early_ms:.1f} ms")
    rest.add_row(f"call {ageing.late_call:,}, in run {ageing.runs}", f"{ageing.late_ms:.1f} ms")
    rest.add_row(f"call {ageing.early_call} of a young sandbox at that time", f"{ageing.young_ms:.1f} ms")
    rest.add_row("old / young at the same time", f"{ageing.late_by_young:.2f}")
    rest.add_row(f"{concurrent.callers} callers at once, {concurrent.calls} calls", f"{concurrent.calls_per_s:.0f} /s")
    rest.add_row("worker's memory when ready", _mib(report.worker_rss_bytes_before))
    rest.add_row("worker's memory after the run", _mib(report.worker_rss_bytes_after))

    targets = Table("target", *_right("measured", "at most", ""), title="Targets", title_justify="left")
    for target in report.targets:
        verdict = "[green]met[/]" if target.met else "[red]missed[/]"
        targets.add_row(target.name, f"{target.measured:.2f}", f"{target.at_most:g}", verdict)

    machine = report.machine
    where = f"{machine.cpus} cores, {machine.system}, Python {machine.python}, load before {machine.load_before:.2f}"
    console.print(Group(times, rest, targets), where, f"took {report.took_s:.0f} s", sep="\n", highlight=False)


def _right(*names: str) -> list[Column]:
    return [Column(name, justify="right") for name in names]


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
