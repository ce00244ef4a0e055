"""`sandhold console` as a process of its own, for tests that read payloads as an operator does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.stack import KEY_RING

READY_WITHIN_S = 60.0


@contextlib.asynccontextmanager
async def running_console(data_dir: Path) -> AsyncIterator[Mapping[str, str]]:
    """A console under the tests' key ring; what Temporal's command line has to have in its environment for it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sandhold.cli", "console", "--port", "0"),
        env={**os.environ, "SANDHOLD_DATA_DIR": str(data_dir), "SANDHOLD_KEYRING": KEY_RING},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(READY_WITHIN_S):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("ready "), "the console did not start"
        token = (data_dir / "console-token").read_text().strip()
        yield {
            "TEMPORAL_CODEC_ENDPOINT": line.removeprefix("ready ").strip(),
            "TEMPORAL_CODEC_AUTH": f"Bearer {token}",
        }
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
