"""A file of any size passes through a process in constant memory."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.stack import KEY_RING
from tests.storage.conftest import Place

MIB = 1024 * 1024
SIZE_MIB = 160
GROWTH_MIB = 64

PROGRAM = f"""
import asyncio, os, sys
from pathlib import Path
from sandhold.security.key_rings import EnvironmentKeyRing
from sandhold.storage import Quota, SessionStorage

RING = EnvironmentKeyRing(os.environ["SANDHOLD_KEYRING"])

def peak():
    return next(int(line.split()[1]) // 1024 for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

async def pieces(mib):
    for number in range(mib):
        yield bytes([number % 251]) * 1048576

async def main(url):
    files = SessionStorage.open(url, RING).files("s-1")
    quota = Quota(2**40, 2**40)
    await files.write("small", pieces(1), quota)
    before = peak()
    await files.write("large", pieces({SIZE_MIB}), quota)
    read = 0
    async for piece in files.read("large"):
        read += len(piece)
    assert read == {SIZE_MIB} * 1048576
    print(peak() - before, flush=True)
    os._exit(0)  # obstore sometimes aborts in the interpreter's own end (0.11)

asyncio.run(main(sys.argv[1]))
"""

FLAT_FOLDER = """
import asyncio, os, sys
from pathlib import Path
from sandhold.security.key_rings import EnvironmentKeyRing
from sandhold.storage import SessionStorage

RING = EnvironmentKeyRing(os.environ["SANDHOLD_KEYRING"])

def peak():
    return next(int(line.split()[1]) // 1024 for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

async def main(url):
    storage = SessionStorage.open(url, RING)
    await storage.put_bytes("s-2", "files/folder/file", b"1")
    assert await storage.usage.held("s-2") == 1
    before = peak()
    assert await storage.usage.held("s-1") == 0
    print(peak() - before, flush=True)
    os._exit(0)

asyncio.run(main(sys.argv[1]))
"""
FLAT_FILES = 50_000
FLAT_GROWTH_MIB = 16


async def test_a_large_file_goes_in_and_out_in_little_memory(place: Place) -> None:
    grown = await growth_mib(PROGRAM, place.url)
    print(f"grew by {grown} MiB for {SIZE_MIB} MiB")
    assert grown < GROWTH_MIB


async def test_a_folder_of_many_files_is_counted_in_little_memory(tmp_path: Path) -> None:
    folder = tmp_path / "sessions" / "s-1" / "files" / "all-in-one"
    folder.mkdir(parents=True)
    for number in range(FLAT_FILES):
        os.close(os.open(f"{folder}/file-number-{number:07}", os.O_CREAT | os.O_WRONLY))
    grown = await growth_mib(FLAT_FOLDER, tmp_path.as_uri())
    print(f"grew by {grown} MiB for {FLAT_FILES} files")
    assert grown < FLAT_GROWTH_MIB


async def growth_mib(program: str, url: str) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        url,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "SANDHOLD_KEYRING": KEY_RING},
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return int(out)
