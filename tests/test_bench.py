"""`make bench` in small: it measures on a stack of its own, tells the truth about how much, and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.report import Report

ROOT = Path(__file__).resolve().parent.parent
LATENCIES = ["raw_exec", "launcher_exec", "update", "floor", "exec"]


def _bench(data_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *options],
        cwd=ROOT,
        check=False,
        env=os.environ | {"SANDHOLD_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_bench_writes_every_figure_and_judges_the_targets(tmp_path: Path) -> None:
    wanted = tmp_path / "figures.json"
    options = ["--rounds", "2", "--late-call", "54", "--window", "2", "--concurrent-calls", "12", "--creates", "2"]
    done = _bench(tmp_path / "data", *options, "--json", str(wanted))
    assert done.returncode == 0, done.stdout + done.stderr

    written = json.loads(wanted.read_text())
    report = Report.model_validate(written)
    assert report.model_dump(mode="json") == written
    assert [written["rounds"][name]["n"] for name in LATENCIES] == [2] * 5
    assert all(0 < written["rounds"][name]["p50_ms"] <= written["rounds"][name]["p95_ms"] for name in LATENCIES)
    assert report.codec.encrypted.n == report.codec.plain.n == 2
    assert {"k_of_floor", "k_of_update", "launcher_share"} < written["rounds"].keys()
    assert report.events_per_call >= 5  # an update alone takes five
    assert (report.ageing.early_call, report.ageing.late_call, report.ageing.window) == (50, 54, 2)
    assert report.ageing.runs >= 1
    assert (report.concurrent.callers, report.concurrent.calls) == (6, 12)
    assert report.concurrent.calls_per_s > 0
    assert report.create.n == 2
    assert report.worker_rss_bytes_after > 2**20

    names = [target.name for target in report.targets]
    assert names == [
        "(exec - raw exec) / floor",
        "(launcher - raw exec) / floor",
        "exec, encrypted / plain",
        "history events of a short command",
        "call 54 / call 50",
    ]
    assert all(name in done.stdout for name in names)
    assert sum(word in done.stdout for word in ("met", "missed")) >= 1
    assert not (tmp_path / "data" / "bench" / "stack.json").exists()
    assert not list((tmp_path / "data" / "bench" / "daytona" / "records").iterdir())


def test_windows_that_overlap_are_refused_before_anything_starts(tmp_path: Path) -> None:
    done = _bench(tmp_path / "data", "--late-call", "60")
    assert done.returncode == 2
    assert "do not fit" in done.stderr
    assert not (tmp_path / "data").exists()
