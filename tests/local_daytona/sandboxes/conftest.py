"""Sandboxes on a server of the toolbox routes alone, driven by the toolbox part of the official client."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from tests.local_daytona.sandboxes.boxes import Box, Boxes, running_boxes


@pytest.fixture(scope="session")
async def boxes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Boxes]:
    """A server that may start any number of sandboxes; it belongs to the whole run."""
    async with running_boxes(tmp_path_factory.mktemp("boxes") / "data") as running:
        yield running


@pytest.fixture
async def box(boxes: Boxes) -> AsyncIterator[Box]:
    """A fresh sandbox, gone after the test."""
    started = await boxes.start(f"box-{uuid.uuid4()}")
    yield started
    await started.kill()


@pytest.fixture(scope="session")
async def shared_box(boxes: Boxes) -> Box:
    """A sandbox that many tests look at and none changes."""
    return await boxes.start("shared")
