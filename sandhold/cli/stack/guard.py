"""Starts the guard and tells it which processes are ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PROGRAM = Path(__file__).with_name("guard_program.py")
# The shell is the child's first moment: it puts its own process id on the guard's list through its standard
# input and only then becomes the program, so that no child is ever running and not on the list.
_ENLIST = 'echo "+ $$" >&0 && exec "$@" </dev/null'


class Guard:
    """Holds the guard's standard input open; when this process dies, the guard acts."""

    def __init__(self, process: subprocess.Popen[bytes], lifeline: int) -> None:
        self._process = process
        self._lifeline = lifeline

    @classmethod
    def start(cls, stack_file: Path, lock: int) -> Guard:
        """Start the guard. It inherits `lock`, so that the data folder stays locked until it has cleaned up."""
        reading, lifeline = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", _PROGRAM, stack_file],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                pass_fds=[lock],
                start_new_session=True,
            )
        except OSError:
            os.close(lifeline)
            raise
        finally:
            os.close(reading)
        return cls(process, lifeline)

    async def spawn(
        self, command: Sequence[str], *, env: dict[str, str], cwd: Path, stdout: int, stderr: int
    ) -> asyncio.subprocess.Process:
        """Start `command` in a session of its own, on the guard's list from its first moment."""
        return await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            _ENLIST,
            "sh",
            *command,
            env=env,
            cwd=cwd,
            stdin=self._lifeline,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    async def wait(self) -> None:
        """Return when the guard has ended, which it does not do by itself while it is held."""
        while self._process.poll() is None:  # noqa: ASYNC110 - another process tells no event of ours
            await asyncio.sleep(1.0)

    def forget(self, pid: int) -> None:
        """Take a process that has ended, with its group, off the list."""
        # Without its guard the stack still cleans up after itself in every way but its own sudden death.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._lifeline, f"- {pid}\n".encode())

    def close(self) -> None:
        """Let go: the guard kills what is still on its list and ends."""
        os.close(self._lifeline)
        self._process.wait()
