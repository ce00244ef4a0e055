"""What goes wrong at random moments: processes die, requests to the provider fail, session storage is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from enum import StrEnum
from random import Random
from typing import Any

from sandhold.client import Session
from sandhold.contracts.names import SESSION_LABEL
from tests.chaos.breakable import BreakableStack, Part

EXECUTE = {"method": "POST", "route": "/toolbox/{id}/process/execute"}
LOOK = {"method": "GET", "route": "/api/sandbox/{id}"}
UPLOAD = {"method": "POST", "path": ".*/files/(bulk-)?upload(-v2)?"}
REQUESTS: tuple[dict[str, Any], ...] = (EXECUTE, EXECUTE, EXECUTE, EXECUTE, LOOK, UPLOAD)
CUTS: tuple[dict[str, Any], ...] = (
    {"effect": "reset_before"},
    {"effect": "reset_during"},
    {"effect": "answer_lost"},
    {"effect": "status", "status": 502},
    {"effect": "status", "status": 502, "body": "<html>Bad gateway</html>"},
)


class Kind(StrEnum):
    WORKER = "worker"
    PROVIDER = "provider"
    TEMPORAL = "temporal"
    STORAGE = "storage"
    OUTAGE = "outage"
    ALL = "all"


TOGETHER = (Kind.WORKER, Kind.PROVIDER, Kind.TEMPORAL, Kind.STORAGE)
OUTAGE_S = 20.0


async def disturb(kind: Kind, breakable: BreakableStack, session: Session, random: Random, for_s: float) -> int:
    """Let things of this kind go wrong for so long; how many did. Everything is whole again afterwards."""
    ways = TOGETHER if kind is Kind.ALL else [kind]
    try:
        async with asyncio.TaskGroup() as group:
            # Each has its own randomness, so that a seed gives the same moments whatever the others wait for.
            tasks = [group.create_task(_WAYS[way](breakable, session, Random(random.random()), for_s)) for way in ways]
    finally:
        await breakable.mend()
    return sum(task.result() for task in tasks)


async def kill_worker(breakable: BreakableStack, session: Session, random: Random, for_s: float) -> int:
    """The worker is killed, and there is none for up to two seconds."""
    return await _kill_again_and_again(breakable.worker, random, for_s, down_s=2.0)


async def kill_temporal(breakable: BreakableStack, session: Session, random: Random, for_s: float) -> int:
    """The server is killed, and comes back on its database file within some seconds."""
    return await _kill_again_and_again(breakable.temporal, random, for_s, down_s=1.5)


async def cut_provider(breakable: BreakableStack, session: Session, random: Random, for_s: float) -> int:
    """The next one to three requests about the session's sandboxes get no whole answer, or another's."""
    faults = breakable.stack.faults
    labels = {SESSION_LABEL: session.session_id}
    rules: list[int] = []

    async def cut(request: dict[str, Any] | None = None) -> None:
        request = request or random.choice(REQUESTS)
        rules.append(await faults.add(**request, **random.choice(CUTS), times=random.randint(1, 3), labels=labels))

    # The first requests of all are those that can start a command.
    for first in (EXECUTE, UPLOAD, EXECUTE):
        await cut(first)
    await _at_random_moments(cut, random, for_s, most_s=0.7)
    return sum([await faults.hits(rule) for rule in rules])


async def provider_outage(breakable: BreakableStack, session: Session, random: Random, for_s: float) -> int:
    """Nothing about the session's sandboxes is answered for OUTAGE_S, and one more command is called meanwhile.

    That one meets the outage even when all the others were done before it.
    """
    faults = breakable.stack.faults
    silence = random.choice(({"effect": "reset_before"}, {"effect": "status", "status": 503}))
    await asyncio.sleep(random.uniform(0.1, 3.0))
    rule = await faults.add(**silence, labels={SESSION_LABEL: session.session_id})
    status = await session.status()
    async with asyncio.TaskGroup() as group:
        met = group.create_task(session.exec(status.sandboxes[0].sandbox_id, "echo met", output="full"))
        await asyncio.sleep(OUTAGE_S)
        hits = await faults.hits(rule)
        await faults.clear()
    assert met.result().stdout == "met\n"
    return hits


async def break_storage(breakable: BreakableStack, session: Session, random: Random, for_s: float) -> int:
    """The session's storage is away for up to two seconds, for its client and for the worker."""
    folder = breakable.storage_of(session)
    times = 0

    async def away() -> None:
        nonlocal times
        times += 1
        folder.take()
        await asyncio.sleep(random.uniform(0.1, 2.0))
        folder.give_back()

    await _at_random_moments(away, random, for_s, most_s=2.0)
    return times


_WAYS: dict[Kind, Callable[[BreakableStack, Session, Random, float], Coroutine[Any, Any, int]]] = {
    Kind.WORKER: kill_worker,
    Kind.PROVIDER: cut_provider,
    Kind.TEMPORAL: kill_temporal,
    Kind.STORAGE: break_storage,
    Kind.OUTAGE: provider_outage,
}


async def _kill_again_and_again(part: Part, random: Random, for_s: float, *, down_s: float) -> int:
    before = part.kills

    async def kill() -> None:
        await part.kill()
        await asyncio.sleep(random.uniform(0, down_s))
        await part.start()

    await _at_random_moments(kill, random, for_s, most_s=3.0)
    return part.kills - before


async def _at_random_moments(
    act: Callable[[], Coroutine[Any, Any, None]], random: Random, for_s: float, *, most_s: float
) -> None:
    """`act` at least once, and again as long as the time lasts, each after a pause of up to `most_s`."""
    until = asyncio.get_running_loop().time() + for_s
    while True:
        await asyncio.sleep(random.uniform(0.05, most_s))
        await act()
        if asyncio.get_running_loop().time() >= until:
            return
