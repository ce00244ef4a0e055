"""Many rounds of chaos: `make chaos`, or `python -m tests.chaos --kind worker --rounds 20 --seed 1a2b`.

Exit code 1 when a round went wrong; what it was is printed with the seed that repeats its plan.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.breakable import breakable_stack
from tests.chaos.disturbances import Kind
from tests.chaos.fifty import fifty_commands
from tests.chaos.rounds import batch

SIDE_BY_SIDE = 10
"""Rounds in a batch."""


async def chaos(kinds: list[Kind], rounds: int, seed: str, *, fifty: bool) -> int:
    """Run the rounds of each kind in turn; the number of faults."""
    found = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with breakable_stack(Path(folder)) as breakable:
            for kind in kinds:
                done = disturbances = 0
                began = time.monotonic()
                while done < rounds:
                    name = f"{seed}-{done}"
                    result = await batch(breakable, kind, name, min(SIDE_BY_SIDE, rounds - done))
                    done += result.rounds
                    disturbances += result.disturbances
                    found += len(result.faults)
                    for fault in result.faults:
                        print(f"WRONG, batch {name}: {fault}", flush=True)
                    print(
                        f"{kind:8} {done:4}/{rounds} rounds  {disturbances:4} disturbances  "
                        f"{found} faults  {time.monotonic() - began:6.1f} s",
                        flush=True,
                    )
            if fifty:
                latencies = sorted(await fifty_commands(breakable.stack, seconds=30))
                print(
                    f"a short call beside fifty commands of thirty seconds: {len(latencies)} calls, "
                    f"median {latencies[len(latencies) // 2]:.2f} s, longest {latencies[-1]:.2f} s"
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
