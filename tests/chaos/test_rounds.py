"""Whatever dies at whatever moment: a command is started once, and its whole outcome reaches its caller.

`make chaos` runs many more rounds; a failure names the seed, and SANDHOLD_CHAOS_SEED repeats its plan here.
"""

from __future__ import annotations

import os
import secrets

import pytest

from tests.chaos.breakable import BreakableStack
from tests.chaos.commands import deck
from tests.chaos.disturbances import Kind
from tests.chaos.flavours import FLAVOURS
from tests.chaos.rounds import batch

ROUNDS = {
    Kind.WORKER: 4,
    Kind.PROVIDER: 4,
    Kind.TEMPORAL: 4,
    Kind.STORAGE: 2,
    Kind.OUTAGE: 2,
    Kind.ALL: 4,
}
SEED = os.environ.get("SANDHOLD_CHAOS_SEED") or secrets.token_hex(4)


def first_round(kind: Kind) -> int:
    """The number of the kind's first round: they are counted over all kinds."""
    return sum(list(ROUNDS.values())[: list(ROUNDS).index(kind)])


@pytest.mark.parametrize("kind", list(Kind))
async def test_commands_start_once_and_are_never_lost_while_chaos_reigns(breakable: BreakableStack, kind: Kind) -> None:
    done = await batch(breakable, kind, SEED, first_round(kind), ROUNDS[kind])
    print(f"{kind}: seed {SEED}, {done.rounds} rounds, {done.disturbances} disturbances, {done.took_s:.1f} s")
    assert not done.faults, f"seed {SEED}:\n" + "\n".join(done.faults)
    assert done.disturbances > 0


def test_these_rounds_have_every_flavour_of_commands_whatever_the_seed() -> None:
    for seed in range(100):
        order = deck(f"{seed}")
        assert {order[number % len(order)] for number in range(sum(ROUNDS.values()))} == set(FLAVOURS)
