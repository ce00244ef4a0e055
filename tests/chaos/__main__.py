"""Many rounds of chaos: `make chaos`, or `python -m tests.chaos --kind worker --rounds 20 --seed 1a2b`.

Exit code 1 when a round went wrong, or a short call waited too long beside fifty commands. What it was is printed; the
seed repeats the plan, not the moments at which processes meet.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.breakable import BreakableStack, breakable_stack
from tests.chaos.disturbances import Kind
from tests.chaos.fifty import TARGET_S, fifty_commands
from tests.chaos.rounds import batch

SIDE_BY_SIDE = 10
"""Rounds in a batch."""


async def chaos(kinds: list[Kind], rounds: int, seed: str, *, fifty: bool) -> int:
    """Run the rounds of each kind in turn; the number of faults."""
    found = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with breakable_stack(Path(folder) / "rounds") as breakable:
            for kind in kinds:
                found += await _rounds_of(breakable, kind, rounds, seed)
        if fifty:
            async with breakable_stack(Path(folder) / "fifty", renewed_at_events=None) as undisturbed:
                latencies = await fifty_commands(undisturbed.stack, seconds=30)
            print(f"a short call beside fifty commands of thirty seconds: {latencies}", flush=True)
            if latencies.missed:
                print(f"WRONG: more than one of them took longer than {TARGET_S:g} s", flush=True)
                found += 1
    return found


async def _rounds_of(breakable: BreakableStack, kind: Kind, rounds: int, seed: str) -> int:
    """Run all rounds of one kind, in batches; the number of faults."""
    done = disturbances = found = 0
    began = time.monotonic()
    while done < rounds:
        result = await batch(breakable, kind, seed, done, min(SIDE_BY_SIDE, rounds - done))
        for fault in result.faults:
            print(f"WRONG, batch from round {done}: {fault}", flush=True)
        done += result.rounds
        disturbances += result.disturbances
        found += len(result.faults)
        print(
            f"{kind:8} {done:4}/{rounds} rounds  {disturbances:4} disturbances  "
            f"{found} faults  {time.monotonic() - began:6.1f} s",
            flush=True,
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="commands of each kind of chaos")
    parser.add_argument("--seed", default="", help="what a run printed, to repeat its plan")
    parser.add_argument("--kind", type=Kind, choices=list(Kind), action="append", help="by default all of them")
    parser.add_argument("--fifty", action=argparse.BooleanOptionalAction, default=True, help="fifty commands at once")
    given = parser.parse_args()
    seed = given.seed or secrets.token_hex(4)
    print(f"seed {seed}", flush=True)
    return min(1, asyncio.run(chaos(given.kind or list(Kind), given.rounds, seed, fifty=given.fifty)))


if __name__ == "__main__":
    sys.exit(main())
