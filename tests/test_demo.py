"""The main job, run as a user runs it."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from tests.dev_process import Dev, dev_process, wait_until

BUILDING = "a build of"


def _until_it_says(demo: Dev, text: str) -> None:
    wait_until(lambda: text in demo.text() or demo.process.poll() is not None, demo.text)
    assert text in demo.text(), demo.text()


def _left(demo: Dev) -> list[int]:
    return [process.pid for process in demo.processes_seen if process.alive]


def test_the_demo_shows_every_step_and_leaves_nothing(tmp_path: Path) -> None:
    with dev_process(tmp_path / "data", command="demo") as demo:
        _until_it_says(demo, BUILDING)
        demo.see_processes()
        assert demo.code() == 0, demo.text()
        assert not _left(demo)
        steps = [
            "Open a session",
            "Create two sandboxes",
            "failing test",
            "AssertionError: -13500 != 1350",
            "killed with SIGKILL",
            "build complete",
            "starts.log in the sandbox: ['",
            "stopped by its timer",
            "the same sandbox, with its files",
            "2 sandboxes confirmed deleted",
            "listed without a filter: none",
            "What was shown:",
        ]
        positions = [demo.text().index(step) for step in steps]
        assert positions == sorted(positions)
        assert "FAILED " not in demo.text()[demo.text().index("What was shown:") :]
        assert "Temporal Web UI: http://127.0.0.1:" in demo.text()


def test_a_demo_that_fails_says_where_shows_the_logs_and_leaves_nothing(tmp_path: Path) -> None:
    with dev_process(tmp_path / "data", command="demo") as demo:
        _until_it_says(demo, BUILDING)
        demo.see_processes()
        # The provider comes back without any of its sandboxes: they are lost, and no empty ones take their place.
        provider = demo.data_dir / "demo" / "daytona"
        shutil.move(provider / "records", tmp_path / "taken-away")
        pid = demo.pid_of("daytona", below="demo")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert demo.code() == 1, demo.text()
        assert "The demo failed at the step: Kill the worker with SIGKILL while a command runs" in demo.text()
        assert "the end of" in demo.text()
        assert "Traceback" not in demo.text().split("The demo failed")[1]
        assert not _left(demo)


def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    with dev_process(tmp_path / "data", command="demo") as demo:
        _until_it_says(demo, "two sandboxes, each with a workflow")
        demo.see_processes()
        demo.signal(signal.SIGINT)
        assert demo.code() == 130, demo.text()
        assert not _left(demo)
        assert "interrupted" in demo.text()
