"""Whatever dies at whatever moment: a command is started once, and its whole outcome reaches its caller.

`make chaos` runs many more rounds; a failure names the seed, and SANDHOLD_CHAOS_SEED repeats its plan here.
"""

from __future__ import annotations

import os
import secrets

import pytest

from tests.chaos.breakable import BreakableStack
from tests.chaos.disturbances import Kind
from tests.chaos.rounds import batch

ROUNDS = 5
SEED = os.environ.get("SANDHOLD_CHAOS_SEED") or secrets.token_hex(4)


@pytest.mark.parametrize("kind", list(Kind))
async def test_commands_start_once_and_are_never_lost_while_chaos_reigns(breakable: BreakableStack, kind: Kind) -> None:
    done = await batch(breakable, kind, SEED, ROUNDS)
    print(f"{kind}: seed {SEED}, {done.rounds} rounds, {done.disturbances} disturbances, {done.took_s:.1f} s")
    assert not done.faults, f"seed {SEED}:\n" + "\n".join(done.faults)
    assert done.disturbances > 0
