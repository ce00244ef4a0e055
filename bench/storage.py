"""`python -m bench.storage`: what encryption costs the storage of sessions, beside the same bytes stored as they are.

Both go to a local folder by the same requests (`RawObjects`), in turns. Nothing of it outlasts the run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from bench.running import leave
from sandhold.security.key_document import KeyDocument
from sandhold.security.key_rings import EnvironmentKeyRing
from sandhold.storage.blocks import in_blocks
from sandhold.storage.objects import PART_BYTES, SessionObjects
from sandhold.storage.raw import RawObjects

MIB = 1024 * 1024
SMALL_BYTES = 1024

Operation = Callable[[], Awaitable[object]]


class StorageBench:
    """One run in one folder."""

    def __init__(self, folder: Path, large_mib: int, small: int) -> None:
        self._raw = RawObjects.open(folder.as_uri())
        self._objects = SessionObjects.open(folder.as_uri(), EnvironmentKeyRing(KeyDocument.new().dump()))
        self._large_mib = large_mib
        self._small = small
        self._piece = os.urandom(MIB)
        self._little = os.urandom(SMALL_BYTES)

    def work(self) -> dict[str, tuple[Operation, Operation]]:
        """What is timed, by its name: as it is, and encrypted."""
        return {
            f"write {self._large_mib} MiB": (self._write_raw, self._write),
            f"read {self._large_mib} MiB": (self._read_raw, self._read),
            f"write {self._small:,} objects of 1 KiB": (self._put_raw, self._put),
            f"read {self._small:,} objects of 1 KiB": (self._get_raw, self._get),
            f"list {self._small:,} objects": (self._list_raw, self._list),
        }

    async def _pieces(self) -> AsyncIterator[bytes]:
        for _ in range(self._large_mib):
            yield self._piece

    async def _write_raw(self) -> None:
        async with self._raw.upload("raw/large", "") as upload:
            async for block in in_blocks(self._pieces(), PART_BYTES):
                await upload.give(block)
            await upload.end()

    async def _write(self) -> None:
        await self._objects.write("s-1", "files/large", self._pieces())

    async def _read_raw(self) -> None:
        read = sum([len(memoryview(piece)) async for piece in self._raw.reading("raw/large", "").pieces()])
        assert read == self._large_mib * MIB

    async def _read(self) -> None:
        read = sum([len(piece) async for piece in self._objects.read("s-1", "files/large")])
        assert read == self._large_mib * MIB

    async def _put_raw(self) -> None:
        for number in range(self._small):
            await self._raw.put(f"raw/small/{number % 100}/{number}", "", self._little)

    async def _put(self) -> None:
        for number in range(self._small):
            await self._objects.put("s-2", f"small/{number % 100}/{number}", self._little)

    async def _get_raw(self) -> None:
        for number in range(self._small):
            bytes(await self._raw.get(f"raw/small/{number % 100}/{number}", ""))

    async def _get(self) -> None:
        for number in range(self._small):
            await self._objects.get("s-2", f"small/{number % 100}/{number}")

    async def _list_raw(self) -> None:
        assert sum([len(page) async for page in self._raw.list("raw/small")]) == self._small

    async def _list(self) -> None:
        assert len([None async for _ in self._objects.list("s-2", "small")]) == self._small


async def measure(folder: Path, rounds: int, large_mib: int, small: int) -> Table:
    """The table of what was measured: of each operation the median of all rounds, and of the ratios of each round."""
    table = Table(
        "what",
        *(
            Column(name, justify="right")
            for name in ("as it is", "encrypted", "ratio", "CPU as it is", "CPU encrypted")
        ),
        title="Storage in a local folder; seconds, medians",
    )
    bench = StorageBench(folder, large_mib, small)
    for name, operations in bench.work().items():
        seconds: tuple[list[float], list[float]] = ([], [])
        cpu: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds):
            # The first of two finds the disk otherwise than the second.
            for which in (0, 1) if number % 2 else (1, 0):
                began, used = time.perf_counter(), time.process_time()
                await operations[which]()
                cpu[which].append(time.process_time() - used)
                seconds[which].append(time.perf_counter() - began)
        ratio = statistics.median(after / before for before, after in zip(*seconds, strict=True))
        medians = [statistics.median(each) for each in (*seconds, *cpu)]
        table.add_row(
            name, f"{medians[0]:.2f}", f"{medians[1]:.2f}", f"{ratio:.2f}", f"{medians[2]:.2f}", f"{medians[3]:.2f}"
        )
    return table


def main() -> int:
    """Run the bench as the command line says; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.storage", description="Measure what encryption costs storage."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=1024, help="the size of the large object")
    parser.add_argument("--small", type=int, default=10_000, help="how many small objects")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sandhold-bench-"))
    try:
        Console().print(asyncio.run(measure(folder, given.rounds, given.mib, given.small)))
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    leave(main())
