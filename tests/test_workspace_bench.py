"""`make workspace-bench` in small: every way brings every file, in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.workspaces import WANTED_GROWTH_BYTES, WorkspaceReport

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
        for way in (tree.archive, tree.single_files):
            assert way.growth_mib is not None
            assert way.growth_mib * MIB < WANTED_GROWTH_BYTES, tree
    assert "archive" in done.stdout
