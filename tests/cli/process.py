"""The command line as a script meets it: an exit code, stdout and stderr."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

from sandhold.cli import run

COMMAND = (sys.executable, "-m", "sandhold.cli")
_one_at_a_time = asyncio.Lock()


@dataclass(frozen=True)
class Finished:
    """How a run of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


async def sandhold(*arguments: str, env: Mapping[str, str], stdin: str = "") -> Finished:
    """Run the command line to its end in a thread of this process, which saves a second of imports.

    An error that is no expected one comes out as it is.
    """
    async with _one_at_a_time:
        return await asyncio.to_thread(_run, list(arguments), env, stdin)


def _run(arguments: list[str], env: Mapping[str, str], stdin: str) -> Finished:
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, env, clear=True),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = run(arguments)
    return Finished(code, out.getvalue(), err.getvalue())


async def started(*arguments: str, env: Mapping[str, str]) -> asyncio.subprocess.Process:
    """The command line as a process of its own."""
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env),
    )


async def finished(process: asyncio.subprocess.Process) -> Finished:
    """How the process ended; a traceback is never an answer."""
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    assert "Traceback" not in err.decode(), err.decode()
    return Finished(process.returncode, out.decode(), err.decode())


def plain_environment(**settings: str) -> dict[str, str]:
    """The environment without any setting of ours but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SANDHOLD_", "DAYTONA_"))}
    return {**kept, **settings}
