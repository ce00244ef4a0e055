from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.chaos.breakable import BreakableStack, breakable_stack


@pytest.fixture(scope="package")
async def breakable(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BreakableStack]:
    """A stack for the tests of this folder alone: they kill what others rely on."""
    async with breakable_stack(tmp_path_factory.mktemp("chaos")) as stack:
        yield stack
