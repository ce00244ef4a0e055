"""Workers that are killed, and connections that are cut, while files are written: each is written whole, and once."""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temporalio.testing import WorkflowEnvironment

from sandhold.client import Session
from tests.local_daytona_server import LocalDaytona
from tests.stack import Stack, running_stack
from tests.workflows.calls import creates, exec_ok
from tests.workflows.test_killed_worker import kill, worker_process

UPLOAD = {"path": r"/toolbox/[^/]+/files/.*upload.*"}
EXECUTE = {"method": "POST", "route": "/toolbox/{sandbox_id}/process/execute"}
SIZES = (60, 20_000, 200_000, 1_500_000)
"""On both sides of what travels in the request itself."""
BEFORE = "what was there before\n"
WATCH = """
mkdir -p /tmp/seen
for name in $(seq 0 7); do printf 'what was there before\\n' >file-$name; done
exec 3<file-0 4<file-2 5<file-4 6<file-6
while [ ! -e /tmp/enough ]; do
    for name in 0 2 4 6; do sha256sum <file-$name >>/tmp/seen/$name; done
done
cat <&3; cat <&4; cat <&5; cat <&6
"""
"""Whoever looks, and when, and whoever has had the file open: inside of the sandbox, where no worker is needed."""


@dataclass
class Write:
    """One call, which replaces a file when its number is even, and appends to it when it is odd."""

    number: int
    content: str

    @property
    def arguments(self) -> dict[str, Any]:
        path, appends = f"file-{self.number}", bool(self.number % 2)
        return {"sandbox_id": "box", "path": path, "content": self.content, "append": appends}

    @property
    def whole(self) -> str:
        return hashlib.sha256(((BEFORE if self.number % 2 else "") + self.content).encode()).hexdigest()

    async def carried_out(self, session: Session) -> str:
        """The hash that its caller is told."""
        envelope = await session.call("daytona_write_file", self.arguments, f"write-{self.number}")
        assert envelope.error is None, envelope.error
        assert isinstance(envelope.result, dict)
        return str(envelope.result["sha256"])


async def disturbed(stack: Stack, luck: random.Random) -> None:
    """Half of the next requests to the sandbox go wrong in some way, or take their time."""
    effects: list[dict[str, Any]] = [
        {"effect": "reset_before"},
        {"effect": "reset_during"},
        {"effect": "answer_lost"},
        {"effect": "delay", "seconds": 1.5},
        {"effect": "delay", "seconds": 1.5, "when": "after"},
    ]
    for number in range(16):
        if luck.random() < 0.5:
            await stack.faults.add(**EXECUTE, **luck.choice(effects), skip=number, times=1)
        if luck.random() < 0.5:
            await stack.faults.add(**UPLOAD, **luck.choice(effects), skip=number, times=1)


async def test_killed_workers_and_cut_connections_leave_whole_files_each_written_once(
    temporal: WorkflowEnvironment, stack_daytona: LocalDaytona, tmp_path: Path
) -> None:
    luck = random.Random(11)
    writes = [Write(number, f"{luck.random()}\n".ljust(SIZES[number // 2], "x")) for number in range(8)]
    async with running_stack(
        temporal.client, stack_daytona, tmp_path, task_queue="sandhold-cut-writes", workers=False
    ) as stack:
        async with worker_process(stack, tmp_path) as worker:
            session = await stack.open()
            await creates(session, sandbox_id="box")
            watching = await session.start("box", WATCH)
            await exec_ok(session, "box", "while [ ! -s /tmp/seen/6 ]; do sleep 0.05; done")
            await disturbed(stack, luck)
            writing = [asyncio.create_task(write.carried_out(session)) for write in writes]
            await asyncio.sleep(0.3 + luck.random())
            await kill(worker)
        assert not all(each.done() for each in writing)
        async with worker_process(stack, tmp_path):
            await asyncio.sleep(1.0 + luck.random())
        async with worker_process(stack, tmp_path):
            assert await asyncio.gather(*writing) == [write.whole for write in writes]
            await stack.faults.clear()
            told = await exec_ok(session, "box", "touch /tmp/enough; sha256sum file-?; ls -A", output="full")
            assert [line.split()[0] for line in told["stdout"].splitlines()[:8]] == [write.whole for write in writes]
            left = told["stdout"].splitlines()[8:]
            assert [name for name in left if not name.startswith("file-")] == [".sandhold"], left
            before = hashlib.sha256(BEFORE.encode()).hexdigest()
            for write in writes[::2]:
                seen = await exec_ok(session, "box", f"sort -u /tmp/seen/{write.number} | cut -d' ' -f1", output="full")
                assert set(seen["stdout"].split()) <= {before, write.whole}, "somebody saw half a file"
            watched = await watching.wait()
            assert watched.stdout == BEFORE * 4, "somebody who was reading the old file got another one"
            await session.end()
