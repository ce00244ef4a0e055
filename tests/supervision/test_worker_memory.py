"""A worker passes on any amount of output in little memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from temporalio.testing import WorkflowEnvironment

from sandhold.client import Session
from tests.local_daytona_server import CHECKOUT, LocalDaytona
from tests.process_memory import forget_memory_peak, memory_now, memory_peak
from tests.stack import environment_of, running_stack

OUTPUT_BYTES = int(os.environ.get("SANDHOLD_TEST_OUTPUT_BYTES", "100663296"))
"""What the command writes; `make output-memory` has it write a gibibyte."""
GROWTH_BYTES = 64 * 1024 * 1024
ANSWER_BYTES = 512
"""The budget of `auto` for a command that succeeded (reference of the tools)."""


@contextlib.asynccontextmanager
async def worker_process(env: Mapping[str, str], log: Path) -> AsyncIterator[int]:
    """A worker in a process of its own, which polls; its process id."""
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "worker.py", cwd=CHECKOUT, env=dict(env), stdout=asyncio.subprocess.PIPE, stderr=stderr
        )
    try:
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"ready "), log.read_text()
        yield process.pid
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.timeout(1800)
async def test_a_command_with_much_output_passes_through_a_worker_in_little_memory(
    temporal: WorkflowEnvironment, stack_daytona: LocalDaytona, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as parts:
        stack = await parts.enter_async_context(
            running_stack(temporal.client, stack_daytona, tmp_path, task_queue="sandhold-memory", workers=False)
        )
        worker = await parts.enter_async_context(
            worker_process(environment_of(stack, tmp_path), tmp_path / "worker.log")
        )
        session = await stack.open(output_cap_bytes=2**34)
        await session.create_sandbox(sandbox_id="box", size="large")
        # What the first command of a worker loads is no growth.
        await session.exec("box", "echo warm; sleep 9; echo followed", call_id="warm")
        before = memory_now(worker)
        forget_memory_peak(worker)

        script = f"seq 100000000000 300000000000 | head -c {OUTPUT_BYTES}; echo problem >&2"
        result = await session.exec("box", script, timeout_ms=1_500_000, call_id="much")

        grown = memory_peak(worker) - before
        print(f"{OUTPUT_BYTES} bytes through daytona_exec: the worker grew by {grown / 2**20:.1f} MiB")
        assert (result.status, result.exit_code, result.truncated) == ("completed", 0, True)
        assert (result.stdout_bytes, result.stderr_bytes) == (OUTPUT_BYTES, len("problem\n"))
        assert len(result.stdout.encode()) <= ANSWER_BYTES
        assert result.stderr == "problem\n"
        assert await stored_sha256(session, "much") == await written_sha256(session, "much")
        assert grown < GROWTH_BYTES, f"the worker's memory grew by {grown / 2**20:.0f} MiB"
        await session.end()


async def stored_sha256(session: Session, call_id: str) -> str:
    """Of the stdout that the client gets."""
    digest = hashlib.sha256()
    async for chunk in session.command("box", call_id).output():
        if chunk.stream == "stdout":
            digest.update(chunk.data)
    return digest.hexdigest()


async def written_sha256(session: Session, call_id: str) -> str:
    """Of the stdout that the command wrote in its sandbox."""
    told = await session.exec("box", f"sha256sum <~/.sandhold/calls/{call_id}/stdout", output="normal")
    return told.stdout.split()[0]
