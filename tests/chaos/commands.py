"""The commands of chaos: each counts its own starts, says every line once, and ends with a code of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cached_property
from random import Random
from signal import SIGKILL, SIGTERM
from typing import Any

from sandhold.client import Session
from sandhold.contracts.fields import CommandStatus
from sandhold.contracts.tools import ExecResult
from tests.chaos.flavours import FLAVOURS, Flavour, counted, seen
from tests.stack import Stack

_TOLD_BY: dict[CommandStatus, str] = {
    "timed_out": "time limit",
    "cancelled": "was cancelled",
    "interrupted": "not run again",
}
"""What the hint of a command that did not end by itself says."""


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
        comment = ["# " + "x" * 98] * (flavour.comment_bytes // 101)
        return "\n".join(
            [
                f"echo start >> {self.counter}",
                *comment,
                *(["cat"] if flavour.echoes else self._lines()),
                *(["sleep 4321"] if flavour.stays else []),
                f"exit {self.exit_code}",
            ]
        )

    def _lines(self) -> list[str]:
        flavour = self.flavour
        return [
            f"pad=$(printf '%0{flavour.width}d' 0)" if flavour.width else "pad=",
            "i=0",
            f"while [ $i -lt {flavour.lines} ]; do",
            "    i=$((i + 1))",
            f'    echo "out {self.number} $i $pad"',
            f'    echo "err {self.number} $i" >&2',
            f"    sleep {flavour.seconds / flavour.lines:.3f}",
            "done",
        ]

    @cached_property
    def stdout(self) -> bytes:
        pad = "0" * self.flavour.width
        return b"".join(f"out {self.number} {i} {pad}\n".encode() for i in range(1, self.flavour.lines + 1))

    @cached_property
    def stderr(self) -> bytes:
        lines = 0 if self.flavour.echoes else self.flavour.lines
        return b"".join(f"err {self.number} {i}\n".encode() for i in range(1, lines + 1))

    async def run(self, session: Session, stack: Stack) -> ExecResult:
        """Use it as its flavour says; what became of it."""
        await asyncio.sleep(self.begins_s)
        return await self.flavour.use(self, session, stack)

    async def faults(self, session: Session, stack: Stack, result: ExecResult) -> list[str]:
        """What is wrong with what became of it; nothing if all is right."""
        output = {"stdout": bytearray(), "stderr": bytearray()}
        async for chunk in session.command(self.sandbox_id, self.call_id).output():
            assert chunk.offset == len(output[chunk.stream]), f"{self.call_id}: a gap in {chunk.stream}"
            output[chunk.stream] += chunk.data
        stdout, stderr = bytes(output["stdout"]), bytes(output["stderr"])
        checks: list[tuple[str, Any, Any]] = [
            ("starts", await seen(lambda: counted(stack, session, self), lambda _: True), "start\n"),
            ("status", result.status, self.flavour.ends),
        ]
        if self.flavour.ends == "interrupted":
            # What it said last may not have left its sandbox; what did is what it said, and the result tells of all
            # that, or while storage is away of nothing.
            told = (result.stdout_bytes, result.stderr_bytes)
            seen_of = {"stdout": stdout, "stderr": stderr} if any(told) else {"stdout": b"", "stderr": b""}
            checks += [
                ("stored stdout", stdout, self.stdout[: len(stdout)]),
                ("stored stderr", stderr, self.stderr[: len(stderr)]),
                ("bytes", told, (len(seen_of["stdout"]), len(seen_of["stderr"]))),
                ("stdout", result.stdout.encode(), seen_of["stdout"]),
                ("stderr", result.stderr.encode(), seen_of["stderr"]),
                ("exit code", result.exit_code, None),
            ]
        else:
            checks += [
                ("bytes", (result.stdout_bytes, result.stderr_bytes), (len(self.stdout), len(self.stderr))),
                ("stored stdout", stdout, self.stdout),
                ("stored stderr", stderr, self.stderr),
            ]
        if self.flavour.ends in {"timed_out", "cancelled"}:
            checks += [
                ("exit code", result.exit_code in {128 + SIGTERM, 128 + SIGKILL}, True),
                ("stdout", result.stdout.encode(), self.stdout),
                ("stderr", result.stderr.encode(), self.stderr),
            ]
        if self.flavour.ends in _TOLD_BY:
            checks.append(("hint", _TOLD_BY[self.flavour.ends] in (result.hint or ""), True))
        if self.flavour.ends == "completed":
            whole = len(self.stdout) <= 48 * 1024
            checks += [
                ("exit code", result.exit_code, self.exit_code),
                ("truncated", result.truncated, not whole),
                ("stderr", result.stderr.encode(), self.stderr),
            ]
            if whole:
                checks.append(("stdout", result.stdout.encode(), self.stdout))
        return [
            f"{self.call_id} {self.flavour}: {what}: {_short(found)} instead of {_short(wanted)}"
            for what, found, wanted in checks
            if found != wanted
        ]


def planned(
    random: Random, deck: list[Flavour], first: int, how_many: int, sandbox_ids: list[str], within_s: float
) -> list[PlannedCommand]:
    """Commands of the flavours of `deck` in turn, from the one of number `first` on, called at random moments."""
    commands = []
    for number in range(first, first + how_many):
        flavour = deck[number % len(deck)]
        shared = random.choice(sandbox_ids)
        commands.append(
            PlannedCommand(
                number=number,
                flavour=flavour,
                sandbox_id=f"own-{number}" if flavour.own_sandbox else shared,
                begins_s=random.uniform(0, within_s),
                exit_code=random.randint(0, 120),
            )
        )
    return commands


def deck(seed: str) -> list[Flavour]:
    """All flavours, in the order of this seed."""
    return Random(seed).sample(FLAVOURS, len(FLAVOURS))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:60]}...{text[-60:]} ({len(text)} characters)"
