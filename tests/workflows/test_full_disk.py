"""Commands on a full disk: what could run has its real result and says that output may be missing, the rest is refused.

The sandbox's home is a file system in memory here, because only there does a write fail as on a real full disk; the
local server's limit on the disk proper kills the processes that write beyond it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandhold.client import Session
from sandhold.contracts.errors import ErrorCode, ToolError
from tests.stack import Stack
from tests.workflows.calls import call_ok, creates, error_of_call, exec_ok

HOME = "/dev/shm"
FILL = f"cat /dev/zero > {HOME}/fill"
LARGE = "#" + "x" * 100_000
"""Makes a script that is uploaded first."""


@pytest.fixture
async def session(stack: Stack) -> AsyncIterator[Session]:
    session = await stack.open()
    await creates(session, sandbox_id="box", env={"HOME": HOME, "PATH": f"{HOME}/bin:/usr/local/bin:/usr/bin:/bin"})
    yield session
    await session.end()


async def run(session: Session, command: str) -> dict[str, Any]:
    return await exec_ok(session, "box", command, output="normal")


async def refusal(session: Session, command: str) -> ToolError:
    return await error_of_call(session, "daytona_exec", {"sandbox_id": "box", "command": command})


async def test_a_command_on_a_full_disk_says_that_its_output_may_be_missing_and_can_make_room(
    session: Session,
) -> None:
    assert (await run(session, "echo fine"))["hint"] is None
    filled = await run(session, FILL)
    assert (filled["status"], filled["exit_code"]) == ("completed", 1)
    assert "disk was full" in filled["hint"]
    silent = await run(session, "seq 3; exit 0")
    assert (silent["exit_code"], silent["stdout"]) == (0, ""), "the program does not say that its output is lost"
    assert "disk was full" in silent["hint"]
    error = await error_of_call(
        session, "daytona_write_file", {"sandbox_id": "box", "path": HOME + "/x", "content": "x"}
    )
    assert error.code is ErrorCode.STORAGE_FULL

    freed = await run(session, f"rm {HOME}/fill; echo freed")
    assert (freed["exit_code"], freed["stdout"]) == (0, "freed\n")
    after = await run(session, "seq 3")
    assert (after["stdout"], after["hint"]) == ("1\n2\n3\n", None)


async def test_a_large_script_that_does_not_fit_is_refused_and_never_run_in_part(session: Session) -> None:
    script = f"echo begun >> /tmp/ran\n{LARGE}\necho ended >> /tmp/ran"
    await run(session, FILL)
    await run(session, f"truncate -s -45056 {HOME}/fill")  # Room for a part of it.
    error = await refusal(session, script)
    assert (error.code, error.retryable, error.ambiguous) == (ErrorCode.STORAGE_FULL, False, False)
    assert "nothing was run" in error.message
    assert (await run(session, f"rm {HOME}/fill; ls /tmp"))["stdout"] == "", "neither the upload nor its effect"
    await run(session, script)
    assert (await run(session, "cat /tmp/ran"))["stdout"] == "begun\nended\n"


async def test_a_command_for_which_not_even_a_folder_can_be_made_is_refused(session: Session) -> None:
    no_inodes_left = "#!/bin/sh\necho 'mkdir: cannot create directory: No space left on device' >&2\nexit 1\n"
    program = {"sandbox_id": "box", "path": f"{HOME}/bin/mkdir", "content": no_inodes_left, "mode": "755"}
    await call_ok(session, "daytona_write_file", program)
    error = await refusal(session, "touch /tmp/ran")
    assert error.code is ErrorCode.STORAGE_FULL
    assert "nothing was run" in error.message
