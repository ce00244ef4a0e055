"""`sandhold keys rotate` at a terminal: what it shows while it works, and Ctrl-C in the middle of it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from sandhold.security import Envelope
from sandhold.security.envelope import key_id_of
from sandhold.security.key_rings import FileKeyRing
from sandhold.settings import Settings
from sandhold.vault import open_vault
from tests.cli.process import plain_environment
from tests.stack import running_temporal

VALUES, BATCH, HALFWAY = 30, 5, 10

COMMAND = """
import asyncio, os, sys
from sandhold.cli import progress, run
from sandhold.security import holders, rotation
from sandhold.vault.sealed_values import SealedValues

progress.SHOWN_AFTER_S, rotation.SETTLES_S, holders.BATCH = 0.0, 0.0, int(sys.argv[1])
waits_at, replaced, replace = int(sys.argv[2]), 0, SealedValues.replace_sealed

async def counted(self, row, new):
    global replaced
    if replaced == waits_at:
        os.write(1, b"waiting\\n")  # Beside the bar, which takes over what is printed.
        await asyncio.Event().wait()
    replaced += 1
    return await replace(self, row, new)

SealedValues.replace_sealed = counted
sys.exit(run(["keys", "rotate"]))
"""


class Terminal:
    """A rotation whose standard error is a terminal, and what that has shown."""

    def __init__(self, process: asyncio.subprocess.Process, screen: int) -> None:
        self.process, self._screen = process, screen
        self._reading = asyncio.create_task(asyncio.to_thread(self._read))

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, environment: dict[str, str], *, waits_at: int) -> AsyncIterator[Terminal]:
        """One that waits for ever instead of making its replacement after so many; with -1 it never does."""
        ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", COMMAND, str(BATCH), str(waits_at)),
            env=environment,
            stdin=theirs,
            stdout=asyncio.subprocess.PIPE,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        terminal = cls(process, ours)
        try:
            yield terminal
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            await terminal._reading  # It ends with the process, which has the other end.
            os.close(ours)

    def _read(self) -> str:
        shown = b""
        while True:
            try:
                more = os.read(self._screen, 65536)
            except OSError:  # The other end is closed.
                more = b""
            if not more:
                return shown.decode()
            shown += more

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._screen, b"\x03")

    async def ended(self) -> tuple[int, str, list[tuple[int, int]]]:
        """Its exit code, what it printed, and the counts that it showed on the way."""
        async with asyncio.timeout(60):
            out, _ = await self.process.communicate()
            shown = await self._reading
        assert self.process.returncode is not None
        assert "Traceback" not in shown, shown
        counts = [(int(done), int(total)) for done, total in re.findall(r"(\d+)/(\d+)", shown)]
        return self.process.returncode, out.decode(), counts


@pytest.fixture
async def environment(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """A deployment of nobody else's with a full vault: a rotation reaches for all that is there."""
    ring = FileKeyRing(tmp_path / "ring.json")
    ring.create()
    settings = Settings(data_dir=tmp_path, keyring=SecretStr(str(ring.path)))
    vault = await open_vault(settings, ring)
    for number in range(VALUES):
        await vault.set_secret("s-1", "run-1", f"SECRET_{number}", SecretStr(f"the value {number}"))
    await vault.close()
    async with running_temporal() as server:
        yield plain_environment(
            SANDHOLD_DATA_DIR=str(tmp_path),
            SANDHOLD_KEYRING=str(ring.path),
            SANDHOLD_TEMPORAL_ADDRESS=server.client.service_client.config.target_host,
            TERM="xterm",
        )


async def under_primary(environment: dict[str, str]) -> int:
    """How many values lie under the primary key; all of them open."""
    ring = FileKeyRing(Path(environment["SANDHOLD_KEYRING"]))
    settings = Settings(data_dir=Path(environment["SANDHOLD_DATA_DIR"]), keyring=SecretStr(str(ring.path)))
    vault, envelope = await open_vault(settings, ring), Envelope(ring)
    try:
        rows = await vault.sealed_batch("", 2 * VALUES)
        assert len([await envelope.open(row.sealed, row.place) for row in rows]) == VALUES
    finally:
        await vault.close()
    primary = await ring.primary()
    return sum(key_id_of(row.sealed) == primary for row in rows)


async def test_a_rotation_counts_to_its_end_and_one_that_was_interrupted_is_gone_on_with(
    environment: dict[str, str],
) -> None:
    async with Terminal.started(environment, waits_at=HALFWAY) as interrupted:
        assert interrupted.process.stdout is not None
        async with asyncio.timeout(60):
            assert await interrupted.process.stdout.readline() == b"waiting\n"
        interrupted.interrupt()
        code, out, counts = await interrupted.ended()
    assert (code, "brought under it" in out) == (130, False)
    assert counts[-1] == (HALFWAY, VALUES)
    assert await under_primary(environment) == HALFWAY

    async with Terminal.started(environment, waits_at=-1) as again:
        code, out, counts = await again.ended()
    assert code == 0
    assert f"vault: {VALUES - HALFWAY} values brought under it, {HALFWAY} were, 0 failed" in out
    assert counts[-1] == (VALUES, VALUES)
    assert counts == sorted(counts)
    assert await under_primary(environment) == VALUES
    assert len(FileKeyRing(Path(environment["SANDHOLD_KEYRING"])).document().keys) == 2, "no second key was added"
