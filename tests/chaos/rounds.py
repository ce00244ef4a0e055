"""Rounds of chaos: commands run side by side while one kind of thing goes wrong; then everything has to be right."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from random import Random

from sandhold.client import SandholdError
from sandhold.contracts.tools import ExecResult
from tests.chaos.breakable import BreakableStack
from tests.chaos.commands import PlannedCommand, counters, planned
from tests.chaos.disturbances import Kind, disturb

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


async def batch(breakable: BreakableStack, kind: Kind, seed: str, rounds: int) -> Batch:
    """Run `rounds` commands in one session, disturbed as the seed says, and look at all that they left."""
    stack = breakable.stack
    began = time.monotonic()
    random = Random(f"{seed} {kind}")
    session = await stack.open()
    boxes = [(await session.create_sandbox(sandbox_id=f"box-{number}")).sandbox_id for number in (1, 2)]
    commands = planned(random, rounds, boxes, CALLED_WITHIN_S)
    running = [asyncio.create_task(command.run(session)) for command in commands]
    disturbances = await disturb(kind, breakable, session, random, CHAOS_S)
    await asyncio.wait(running, timeout=ENDED_WITHIN_S)
    if breakable.worker.own_ends or breakable.temporal.own_ends:
        print(f"ended by themselves: worker {breakable.worker.own_ends}, Temporal {breakable.temporal.own_ends}")
    counted = await counters(stack, session, commands)
    faults: list[str] = []
    for command, task in zip(commands, running, strict=True):
        faults += await _faults_of(breakable, command, task, counted[command.number], session.session_id)
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
    breakable: BreakableStack, command: PlannedCommand, task: asyncio.Task[ExecResult], counted: str, session_id: str
) -> list[str]:
    if not task.done():
        task.cancel()
        return [f"{command.call_id} {command.flavour} in {session_id} has no end after {ENDED_WITHIN_S:g} s"]
    if error := task.exception():
        return [f"{command.call_id} {command.flavour} in {session_id} (started: {counted!r}): {error!r}"]
    session = breakable.stack.sandhold.session(session_id)
    return [f"{session_id}: {fault}" for fault in await command.faults(session, task.result(), counted)]
