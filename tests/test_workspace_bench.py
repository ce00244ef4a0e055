"""`make workspace-bench` in small: every way brings every file, in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.workspaces import WANTED_GROWTH_BYTES, Tree, Way, WorkspaceReport

ROOT = Path(__file__).resolve().parent.parent
MIB = 1024 * 1024


def test_workspaces_are_downloaded_in_little_memory(tmp_path: Path) -> None:
    wanted = tmp_path / "figures.json"
    sizes = ["--file-bytes", str(160 * MIB), "--files", "3000", "--tree-bytes", str(160 * MIB), "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.workspaces", *sizes, "--json", str(wanted)],
        cwd=ROOT,
        check=False,
        env=os.environ | {"SANDHOLD_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(wanted.read_text())
    report = WorkspaceReport.model_validate(written)
    assert report.model_dump(mode="json") == written
    assert [tree.files for tree in report.trees] == [1, 1, 3000, 40]
    for tree in report.trees:
        for way in (tree.archive, tree.single_files, tree.restore):
            assert way.growth_mib is not None
            assert way.growth_mib * MIB < WANTED_GROWTH_BYTES, tree
    assert "archive" in done.stdout


def test_what_is_wanted_and_missed_is_told() -> None:
    slow, quick = Way(seconds=[2.0], growth_mib=70.0), Way(seconds=[1.0], growth_mib=10.0)

    def tree(archive: Way, share: float | None, growth: float | None) -> Tree:
        ways = {"raw": quick, "single_files": quick, "raw_restore": quick, "restore": quick}
        return Tree(name="t", files=1, bytes=1, archive=archive, wanted_share=share, wanted_growth_mib=growth, **ways)

    assert tree(quick, 0.8, 64.0).missed() == []
    assert tree(slow, None, None).missed() == []
    assert tree(slow, 0.8, 64.0).missed() == [
        "t: the archive comes at 0.50 of the throughput by hand, and at least 0.8 is wanted",
        "t: the worker's memory grew by 70 MiB, and less than 64 is wanted",
    ]
