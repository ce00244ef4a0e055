"""Files and archives on their way into a sandbox."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import subprocess
import tarfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from activities.arrivals import Arrivals
from activities.streams import SandboxStreams
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import WORKSPACE_PATH
from sandhold.contracts.steps import SandboxRef
from tests.activities.provider_under_test import ProviderUnderTest
from tests.activities.shells import Machine, shells_present
from tests.activities.streams_under_test import REF, MachineAccess
from tests.activities.test_streams import as_activity, new_call_id, pieces_of
from tests.activities.test_workspace import Workspace

MIB = 1024 * 1024


@pytest.fixture(params=shells_present())
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine.made_of(tmp_path, request.param)


@pytest.fixture
def arrivals(machine: Machine) -> Arrivals:
    return Arrivals(SandboxStreams(MachineAccess(machine)))  # type: ignore[arg-type]


async def place(arrivals: Arrivals, path: Path, data: bytes, mode: str | None = None) -> None:
    await as_activity(lambda: arrivals.place(REF, new_call_id(), str(path), pieces_of(data, 100_000), mode=mode))


async def unpack(arrivals: Arrivals, directory: Path, data: bytes) -> None:
    await as_activity(lambda: arrivals.unpack(REF, new_call_id(), str(directory), pieces_of(data, 70_000)))


def packed(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o640
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


async def test_a_file_arrives_in_its_place_as_a_whole(arrivals: Arrivals, machine: Machine) -> None:
    target = machine.home / "a folder" / "new\nline"
    for data, mode, shown in ((b"", None, 0o644), (os.urandom(300_000), "750", 0o750), (b"last", None, 0o750)):
        await place(arrivals, target, data, mode)
        assert (target.read_bytes(), target.stat().st_mode & 0o7777) == (data, shown)
    assert [each.name for each in target.parent.iterdir()] == ["new\nline"]
    link = machine.home / "link"
    link.symlink_to(target)
    await place(arrivals, link, b"through")
    assert link.is_symlink()
    assert target.read_bytes() == b"through"


async def test_a_file_that_broke_off_leaves_the_old_one(arrivals: Arrivals, machine: Machine) -> None:
    target = machine.home / "kept"
    target.write_bytes(b"old")

    async def broken() -> AsyncIterator[bytes]:
        yield b"new" * 100_000
        raise OSError("broke off")

    with pytest.raises(OSError, match="broke off"):
        await as_activity(lambda: arrivals.place(REF, new_call_id(), str(target), broken()))
    assert target.read_bytes() == b"old"
    async with asyncio.timeout(10):
        while [each.name for each in machine.home.iterdir() if each.name not in {"kept", ".sandhold"}]:
            await asyncio.sleep(0.05)
    assert target.read_bytes() == b"old"


async def test_what_cannot_be_placed_says_why(arrivals: Arrivals, machine: Machine) -> None:
    (machine.home / "folder").mkdir()
    (machine.home / "file").write_bytes(b"")
    for path in ("folder", "file/below"):
        with pytest.raises(ToolFailure) as failure:
            await place(arrivals, machine.home / path, b"x")
        assert failure.value.error.code is ErrorCode.INVALID_ARGUMENTS


async def test_an_archive_is_unpacked_into_a_directory(arrivals: Arrivals, machine: Machine) -> None:
    target = machine.home / "restored"
    target.mkdir()
    (target / "there").write_bytes(b"before")
    (target / "a").write_bytes(b"before")
    plain = packed(a=b"one", b=os.urandom(400_000))
    compressed = subprocess.run(["zstd", "-c"], input=plain, stdout=subprocess.PIPE, check=True).stdout
    for data in (plain, compressed):
        await unpack(arrivals, target, data)
        assert (target / "a").read_bytes() == b"one"
        assert (target / "there").read_bytes() == b"before"
        assert (target / "a").stat().st_mode & 0o777 == 0o640
        (target / "a").unlink()
    with pytest.raises(ToolFailure) as failure:
        await unpack(arrivals, target, compressed[:-100])
    assert failure.value.error.code is ErrorCode.INVALID_ARGUMENTS


async def test_a_workspace_goes_out_of_one_sandbox_and_into_another(
    provider: ProviderUnderTest, shared_sandbox: SandboxRef
) -> None:
    workspace = Workspace(provider, shared_sandbox)
    await workspace.make(
        "mkdir -p src empty; head -c 20000000 /dev/urandom >src/large\n"
        "ln -s src/large link; ln src/large hard; chmod 700 src"
    )
    saved = await workspace.download(format="archive")
    other = await provider.created()
    target = f"{WORKSPACE_PATH}/restored-{uuid.uuid4().hex[:8]}"
    arrivals = Arrivals(SandboxStreams(provider.access))
    pieces = workspace.files.read(saved.session_path)
    await as_activity(lambda: arrivals.unpack(other, new_call_id(), target, pieces))
    look = "find . -printf '%P %y %m %l\\n' | sort; sha256sum src/large hard; stat -c %h hard"
    assert await provider.sh(other, f"cd {target} && {look}") == await provider.sh(
        shared_sandbox, f"cd {workspace.path} && {look}"
    )
    data = await workspace.bytes_of(saved.session_path)
    await as_activity(lambda: arrivals.place(other, new_call_id(), f"{target}/saved", pieces_of(data, MIB)))
    assert hashlib.sha256(data).hexdigest() in await provider.sh(other, f"sha256sum {target}/saved")
    await provider.delete(other)
