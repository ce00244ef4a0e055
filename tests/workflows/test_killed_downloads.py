"""A download of a workspace outlives its workers and connections."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from temporalio.testing import WorkflowEnvironment

from tests.local_daytona_server import LocalDaytona
from tests.stack import running_stack
from tests.workflows.calls import creates, exec_ok
from tests.workflows.test_killed_worker import kill, worker_process

DOWNLOAD = {"method": "POST", "route": "/toolbox/{sandbox_id}/files/bulk-download"}
EXECUTE = {"method": "POST", "route": "/toolbox/{sandbox_id}/process/execute"}
MIB = 1024 * 1024


@pytest.mark.storage("folder", "s3")
async def test_killed_workers_and_cut_connections_leave_a_whole_archive_or_none(
    temporal: WorkflowEnvironment, stack_daytona: LocalDaytona, storage_url: str, tmp_path: Path
) -> None:
    """A worker is killed three times, and connections are reset, at random moments of a download."""
    luck = random.Random(7)
    async with running_stack(
        temporal.client,
        stack_daytona,
        tmp_path,
        task_queue="sandhold-cut-downloads",
        storage_url=storage_url,
        workers=False,
    ) as stack:
        async with worker_process(stack, tmp_path) as worker:
            session = await stack.open()
            box = await creates(session, sandbox_id="box", size="large")
            made = await exec_ok(
                session,
                box,
                f"head -c {64 * MIB} /dev/urandom >large; echo one >small; sha256sum <large",
                output="full",
            )
            for number in range(24):
                # Slow enough that no attempt is over before its worker is killed.
                fault = {"effect": "reset_during"} if number % 4 == 0 else {"effect": "delay", "seconds": 0.7}
                await stack.faults.add(**DOWNLOAD, **fault, skip=number, times=1)
                await stack.faults.add(**EXECUTE, effect="reset_during", skip=10 * number + 2, times=1)
            calling = asyncio.create_task(
                session.call("daytona_download_workspace", {"sandbox_id": box, "format": "archive"}, "save")
            )
            await asyncio.sleep(1.0 + luck.random())
        for _ in range(2):
            assert not calling.done()
            async with worker_process(stack, tmp_path):
                await asyncio.sleep(1.0 + luck.random())
                # Never a part under the name, whoever looks when.
                assert [each.size async for each in session.files.list() if each.size < 64 * MIB] == []
        async with worker_process(stack, tmp_path) as worker:
            envelope = await calling
            assert envelope.ok, envelope.error
            result: Any = envelope.result
            data = await session.files.read(result["session_path"])
            assert hashlib.sha256(data).hexdigest() == result["sha256"]
            plain = subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
            with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
                large = tar.extractfile("./large")
                assert large is not None
                assert f"{hashlib.sha256(large.read()).hexdigest()}  -\n" == made["stdout"]
                assert sorted(tar.getnames()) == [".", "./large", "./small"]
            left = await exec_ok(session, box, "ls -A ~/.sandhold/streams", output="full")
            assert left["stdout"] == ""
            await stack.faults.clear()
            await session.end()
            await kill(worker)
