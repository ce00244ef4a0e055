"""The commands of chaos: each counts its own starts, says every line once, and ends with a code of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from sandhold.client import Session
from sandhold.contracts.tools import ExecResult
from tests.stack import Stack


@dataclass(frozen=True)
class Flavour:
    seconds: float
    lines: int
    width: int = 0
    """Characters that each line of stdout has besides."""
    background: bool = False


FLAVOURS = (
    Flavour(0.5, 5),
    Flavour(3, 30),
    Flavour(10, 40),
    Flavour(3, 12, background=True),
    Flavour(10, 30, width=50_000, background=True),  # more than a segment of storage
    Flavour(0.5, 4, background=True),
    Flavour(10, 50, width=4_000),  # more than an answer
)


@dataclass(frozen=True)
class PlannedCommand:
    """One command: when it is called after the chaos began, and all that it is going to do."""

    number: int
    flavour: Flavour
    sandbox_id: str
    begins_s: float
    exit_code: int

    @property
    def call_id(self) -> str:
        return f"chaos-{self.number}"

    @property
    def counter(self) -> str:
        return f"/home/daytona/count-{self.number}"

    @property
    def script(self) -> str:
        flavour = self.flavour
        return "\n".join(
            [
                f"echo start >> {self.counter}",
                f"pad=$(printf '%0{flavour.width}d' 0)" if flavour.width else "pad=",
                "i=0",
                f"while [ $i -lt {flavour.lines} ]; do",
                "    i=$((i + 1))",
                f'    echo "out {self.number} $i $pad"',
                f'    echo "err {self.number} $i" >&2',
                f"    sleep {flavour.seconds / flavour.lines:.3f}",
                "done",
                f"exit {self.exit_code}",
            ]
        )

    @cached_property
    def stdout(self) -> bytes:
        pad = "0" * self.flavour.width
        return b"".join(f"out {self.number} {i} {pad}\n".encode() for i in range(1, self.flavour.lines + 1))

    @cached_property
    def stderr(self) -> bytes:
        return b"".join(f"err {self.number} {i}\n".encode() for i in range(1, self.flavour.lines + 1))

    async def run(self, session: Session) -> ExecResult:
        """Call it as an agent would, and wait for its end."""
        await asyncio.sleep(self.begins_s)
        if self.flavour.background:
            started = await session.start(self.sandbox_id, self.script, output="full", call_id=self.call_id)
            return await started.wait()
        return await session.exec(self.sandbox_id, self.script, output="full", call_id=self.call_id)

    async def faults(self, session: Session, result: ExecResult, counted: str) -> list[str]:
        """What is wrong with what became of it; nothing if all is right. `counted` is its counter file."""
        output = {"stdout": bytearray(), "stderr": bytearray()}
        async for chunk in session.command(self.sandbox_id, self.call_id).output():
            assert chunk.offset == len(output[chunk.stream]), f"{self.call_id}: a gap in {chunk.stream}"
            output[chunk.stream] += chunk.data
        whole = len(self.stdout) <= 48 * 1024
        checks: list[tuple[str, Any, Any]] = [
            ("starts", counted, "start\n"),
            ("status", result.status, "completed"),
            ("exit code", result.exit_code, self.exit_code),
            ("bytes", (result.stdout_bytes, result.stderr_bytes), (len(self.stdout), len(self.stderr))),
            ("truncated", result.truncated, not whole),
            ("stored stdout", bytes(output["stdout"]), self.stdout),
            ("stored stderr", bytes(output["stderr"]), self.stderr),
            ("stderr", result.stderr.encode(), self.stderr),
        ]
        if whole:
            checks.append(("stdout", result.stdout.encode(), self.stdout))
        return [
            f"{self.call_id} {self.flavour}: {what}: {_short(seen)} instead of {_short(wanted)}"
            for what, seen, wanted in checks
            if seen != wanted
        ]


def planned(random: Random, how_many: int, sandbox_ids: list[str], within_s: float) -> list[PlannedCommand]:
    """Commands of every flavour in turn, called at random moments."""
    first = random.randrange(len(FLAVOURS))
    return [
        PlannedCommand(
            number=number,
            flavour=FLAVOURS[(first + number) % len(FLAVOURS)],
            sandbox_id=random.choice(sandbox_ids),
            begins_s=random.uniform(0, within_s),
            exit_code=random.randint(0, 120),
        )
        for number in range(how_many)
    ]


async def counters(stack: Stack, session: Session, commands: list[PlannedCommand]) -> dict[int, str]:
    """The counter file of every command, read behind everybody's back."""
    found: dict[int, str] = {}
    for held in await stack.provider_sandboxes(session):
        sandbox = await stack.provider.get(held.id)
        for command in commands:
            told = str((await sandbox.process.exec(f"cat {command.counter} 2>/dev/null")).result)
            found[command.number] = found.get(command.number, "") + told
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:60]}...{text[-60:]} ({len(text)} characters)"
