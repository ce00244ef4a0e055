"""A file of any size passes through a process in constant memory."""

from __future__ import annotations

import asyncio
import os
import sys

from tests.storage.conftest import Place

MIB = 1024 * 1024
SIZE_MIB = 160
GROWTH_MIB = 64

PROGRAM = f"""
import asyncio, sys
from pathlib import Path
from sandhold.storage import Quota, SessionStorage

def peak():
    return next(int(line.split()[1]) // 1024 for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

async def pieces(mib):
    for number in range(mib):
        yield bytes([number % 251]) * 1048576

async def main(url):
    files = SessionStorage.open(url).files("s-1")
    quota = Quota(2**40, 2**40)
    await files.write("small", pieces(1), quota)
    before = peak()
    await files.write("large", pieces({SIZE_MIB}), quota)
    read = 0
    async for piece in files.read("large"):
        read += len(piece)
    assert read == {SIZE_MIB} * 1048576
    print(peak() - before)

asyncio.run(main(sys.argv[1]))
"""


async def test_a_large_file_goes_in_and_out_in_little_memory(place: Place) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, place.url, stdout=asyncio.subprocess.PIPE, env=os.environ
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    grown = int(out)
    print(f"grew by {grown} MiB for {SIZE_MIB} MiB")
    assert grown < GROWTH_MIB
