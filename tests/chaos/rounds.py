"""Rounds of chaos: commands run side by side while one kind of thing goes wrong; then everything has to be right."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from random import Random

from sandhold.client import SandholdError, Session
from sandhold.contracts.tools import ExecResult
from tests.chaos.breakable import BreakableStack
from tests.chaos.commands import PlannedCommand, deck, planned
from tests.chaos.disturbances import Kind, disturb
from tests.stack import Stack

CALLED_WITHIN_S = 1.5
CHAOS_S = 7.0
ENDED_WITHIN_S = 90.0


@dataclass(frozen=True)
class Batch:
    """What became of some rounds."""

    rounds: int
    disturbances: int
    took_s: float
    faults: list[str]


async def batch(breakable: BreakableStack, kind: Kind, seed: str, first: int, rounds: int) -> Batch:
    """Run `rounds` commands in one session, disturbed as the seed says, and look at all that they left.

    `first` is the number of the first one: as many rounds as there are flavours, one after the other, have each.
    """
    stack = breakable.stack
    began = time.monotonic()
    random = Random(f"{seed} {kind} {first}")
    # A start may take as long as everything is away.
    session = await breakable.open(max_sandboxes=20, lifecycle_timeout_s=120.0)
    commands = planned(random, deck(seed), first, rounds, ["box-1", "box-2"], CALLED_WITHIN_S)
    boxes = sorted({command.sandbox_id for command in commands})
    await asyncio.gather(*(session.create_sandbox(sandbox_id=box) for box in boxes))
    running = [asyncio.create_task(command.run(session, stack)) for command in commands]
    disturbances = await disturb(kind, breakable, session, random, CHAOS_S)
    await asyncio.wait(running, timeout=ENDED_WITHIN_S)
    if breakable.worker.own_ends or breakable.temporal.own_ends:
        print(f"ended by themselves: worker {breakable.worker.own_ends}, Temporal {breakable.temporal.own_ends}")
    faults: list[str] = []
    for command, task in zip(commands, running, strict=True):
        faults += await _faults_of(stack, command, task, session)
    try:
        outcome = await session.end(timeout=ENDED_WITHIN_S)
    except SandholdError as error:
        faults.append(f"{session.session_id} did not end: {error!r}")
    else:
        if {row.outcome for row in outcome.sandboxes} != {"deleted"}:
            faults.append(f"{session.session_id} ended with {outcome.sandboxes}")
    if left := await stack.provider_sandboxes(session):
        faults.append(f"{len(left)} sandboxes of {session.session_id} are left")
    return Batch(rounds, disturbances, time.monotonic() - began, faults)


async def _faults_of(
    stack: Stack, command: PlannedCommand, task: asyncio.Task[ExecResult], session: Session
) -> list[str]:
    what = f"{command.call_id} in {command.sandbox_id} of {session.session_id}, {command.flavour}"
    if not task.done():
        task.cancel()
        return [f"{what}: no end after {ENDED_WITHIN_S:g} s"]
    if error := task.exception():
        return [f"{what}: {error!r}"]
    return [f"{session.session_id}: {fault}" for fault in await command.faults(session, stack, task.result())]
