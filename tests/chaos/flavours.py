"""What the commands of chaos do, and what their callers do with them meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, TypeVar

from daytona.common.errors import DaytonaError
from temporalio.service import RPCError

from sandhold.client import Session
from sandhold.client.calls import as_tool_failure
from sandhold.client.commands import Command
from sandhold.client.standard_input import Read
from sandhold.contracts.commands import CommandResult
from sandhold.contracts.errors import ToolFailure
from sandhold.contracts.fields import CommandStatus
from sandhold.contracts.names import SANDBOX_LABEL, ToolName
from sandhold.contracts.tools import ExecResult
from tests.stack import Stack

if TYPE_CHECKING:
    from tests.chaos.commands import PlannedCommand

T = TypeVar("T")

PATIENCE_S = 80.0
"""How long an agent says the same again, and how long we look for what must come."""
_PAUSE_S = 0.3


async def to_its_end(command: PlannedCommand, session: Session, stack: Stack) -> ExecResult:
    """Call it, and wait for its end."""
    if command.flavour.background:
        return await persistently((await started(command, session)).wait)
    return await persistently(
        lambda: session.exec(
            command.sandbox_id,
            command.script,
            output="full",
            timeout_ms=command.flavour.timeout_ms,
            call_id=command.call_id,
        )
    )


async def cancelled_by_its_caller(command: PlannedCommand, session: Session, stack: Stack) -> ExecResult:
    """Cancel it once all its output has come."""
    running = await started(command, session)
    await persistently(lambda: until_said(running, command.stdout))
    await persistently(running.cancel)
    return await persistently(running.wait)


async def fed_by_two(command: PlannedCommand, session: Session, stack: Stack) -> ExecResult:
    """One who passes the input on dies in the middle; another passes on the same, in other pieces."""
    running = await started(command, session)
    chance = Random(command.number)
    first = asyncio.create_task(running.feed(in_pieces(command.stdout, chance, 9_000, pause_s=0.2)))
    await asyncio.wait([first], timeout=chance.uniform(0.2, 2.5))
    first.cancel()
    await asyncio.wait([first])
    await persistently(lambda: running.feed(in_pieces(command.stdout, chance, 40_000, pause_s=0.05)))
    return await persistently(running.wait)


async def read_by_offsets(command: PlannedCommand, session: Session, stack: Stack) -> ExecResult:
    """Read it to its end by `daytona_command`, as a model does."""
    running = await started(command, session)
    text, offset = "", 0
    while True:
        read = await persistently(lambda at=offset: _read(session, command, at))  # type: ignore[misc]
        text += read.stdout
        offset = read.stdout_offset
        if read.status != "running" and offset >= read.stdout_bytes:
            break
    assert text.encode() == command.stdout, f"{len(text)} bytes were read by offsets, not {len(command.stdout)}"
    return await persistently(running.wait)


async def stopped_with_its_sandbox(command: PlannedCommand, session: Session, stack: Stack) -> ExecResult:
    """Its sandbox is stopped behind our back once it has begun."""
    running = asyncio.create_task(to_its_end(command, session, stack))
    await seen(lambda: counted(stack, session, command), bool)
    await seen(lambda: stopped(stack, session, command.sandbox_id), bool)
    return await running


async def renewed_meanwhile(command: PlannedCommand, session: Session, stack: Stack) -> ExecResult:
    """Its sandbox's workflow continues as new while it runs, for all the calls beside it."""
    running = await started(command, session)

    async def runs() -> int:
        return (await stack.status(session, command.sandbox_id)).runs

    at_first = await seen(runs, bool)
    while await seen(runs, bool) == at_first:
        await asyncio.gather(*(persistently(lambda: session.exec(command.sandbox_id, "true")) for _ in range(3)))
    return await persistently(running.wait)


Use = Callable[["PlannedCommand", Session, Stack], Awaitable[ExecResult]]


@dataclass(frozen=True)
class Flavour:
    """A kind of command, with what must become of it."""

    seconds: float
    """How long it takes to say all its lines."""
    lines: int
    width: int = 0
    """Characters that each line of stdout has besides."""
    use: Use = to_its_end
    background: bool = False
    timeout_ms: int | None = None
    echoes: bool = False
    """Says what it reads instead of lines of its own."""
    stays: bool = False
    """Does not end by itself."""
    comment_bytes: int = 0
    """How much longer than needed its script is."""
    own_sandbox: bool = False
    ends: CommandStatus = "completed"

    def __str__(self) -> str:
        place = "background" if self.background else "foreground"
        return f"{self.use.__name__} ({place}, {self.seconds:g} s, {self.lines} lines, {self.ends})"


FLAVOURS = (
    Flavour(0.5, 5),
    Flavour(3, 30),
    Flavour(10, 40),
    Flavour(0.5, 4, background=True),
    Flavour(3, 12, background=True),
    Flavour(10, 30, width=50_000, background=True),  # more than a segment of storage
    Flavour(10, 50, width=4_000),  # more than an answer
    Flavour(3, 10, comment_bytes=110_000),  # more than a request: uploaded first
    Flavour(0.3, 5, timeout_ms=5_000, stays=True, ends="timed_out"),
    Flavour(0.3, 5, timeout_ms=12_000, stays=True, ends="timed_out", background=True),
    Flavour(1, 5, use=cancelled_by_its_caller, background=True, stays=True, ends="cancelled"),
    Flavour(0, 200, width=600, use=fed_by_two, background=True, echoes=True),
    Flavour(6, 60, width=700, use=read_by_offsets, background=True),
    Flavour(8, 40, use=renewed_meanwhile, background=True),
    Flavour(0.5, 5, use=stopped_with_its_sandbox, stays=True, own_sandbox=True, ends="interrupted"),
    Flavour(0.5, 5, use=stopped_with_its_sandbox, stays=True, own_sandbox=True, ends="interrupted", background=True),
)


async def started(command: PlannedCommand, session: Session) -> Command:
    """The command, which runs in the background."""
    return await persistently(
        lambda: session.start(
            command.sandbox_id,
            command.script,
            output="full",
            timeout_ms=command.flavour.timeout_ms,
            stdin=command.flavour.echoes or None,
            call_id=command.call_id,
        )
    )


async def persistently(act: Callable[[], Awaitable[T]]) -> T:
    """What an agent does about an answer that asks for it: the same again, under the same call id if it has one."""
    until = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            return await act()
        except ToolFailure as failure:
            if not failure.error.retryable or asyncio.get_running_loop().time() > until:
                raise
        await asyncio.sleep(_PAUSE_S)


async def seen(look: Callable[[], Awaitable[T]], holds: Callable[[T], bool]) -> T:
    """What we see behind everybody's back once it `holds`; chaos is in the way of our own looks as well."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                if holds(last := await look()):
                    return last
            except (DaytonaError, RPCError):
                pass  # Not an answer: look again.
            await asyncio.sleep(_PAUSE_S)


async def counted(stack: Stack, session: Session, command: PlannedCommand) -> str:
    """The command's counter file, which has a line for each of its starts; its sandbox runs then."""
    for held in await stack.provider_sandboxes(session):
        if held.labels[SANDBOX_LABEL] == command.sandbox_id:
            sandbox = await stack.provider.get(held.id)
            if sandbox.state != "started":
                await sandbox.start()
            return str((await sandbox.process.exec(f"cat {command.counter} 2>/dev/null")).result)
    return "its sandbox is gone"


async def stopped(stack: Stack, session: Session, sandbox_id: str) -> bool:
    """Stop the sandbox behind everybody's back; whether it was stopped by now."""
    for held in await stack.provider_sandboxes(session):
        if held.labels[SANDBOX_LABEL] == sandbox_id:
            sandbox = await stack.provider.get(held.id)
            if sandbox.state != "stopped":  # The answer to an earlier stop may have been lost.
                await sandbox.stop()
            return True
    return False


async def until_said(command: Command, wanted: bytes) -> None:
    """Return once the command has said all that is wanted of its stdout."""
    said = b""
    async for chunk in command.output():
        said += chunk.data if chunk.stream == "stdout" else b""
        if len(said) >= len(wanted):
            return
    raise AssertionError(f"{command.call_id} ended with {len(said)} bytes")


def in_pieces(data: bytes, sizes: Random, most: int, *, pause_s: float) -> Read:
    """A source that gives the data in pieces of chance, as pipes do."""
    left = bytearray(data)

    async def read(limit: int) -> bytes:
        await asyncio.sleep(sizes.uniform(0, pause_s))
        size = min(limit, sizes.randint(1, most))
        piece = bytes(left[:size])
        del left[:size]
        return piece

    return read


async def _read(session: Session, command: PlannedCommand, offset: int) -> CommandResult:
    envelope = await session.call(
        ToolName.COMMAND,
        {
            "sandbox_id": command.sandbox_id,
            "action": "read",
            "call_id": command.call_id,
            "stdout_offset": offset,
            "wait_ms": 3000,
        },
    )
    if envelope.error is not None:
        raise as_tool_failure(envelope.error)
    return CommandResult.model_validate(envelope.result)
