"""Files and archives on their way into a sandbox."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tarfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from activities import stream_requests
from activities.arrivals import Arrivals
from activities.stream_requests import StreamBroken
from activities.stream_scripts import UNPACK
from activities.streams import SandboxStreams
from activities.workspaces.restore import WorkspaceRestore
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


async def test_a_file_that_broke_off_leaves_the_old_one(
    arrivals: Arrivals, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A program that began after it was told to end waits for so long.
    monkeypatch.setattr(stream_requests, "PATIENCE_S", 20)
    target = machine.home / "kept"
    target.write_bytes(b"old")

    async def broken() -> AsyncIterator[bytes]:
        yield b"new" * 100_000
        raise OSError("broke off")

    with pytest.raises(OSError, match="broke off"):
        await as_activity(lambda: arrivals.place(REF, new_call_id(), str(target), broken()))
    assert target.read_bytes() == b"old"
    async with asyncio.timeout(60):
        while [each.name for each in machine.home.iterdir() if each.name not in {"kept", ".sandhold"}]:
            await asyncio.sleep(0.05)
    assert target.read_bytes() == b"old"


async def test_a_file_arrives_under_a_path_as_long_as_linux_takes(arrivals: Arrivals, machine: Machine) -> None:
    folder = machine.home.joinpath(*["d" * 200] * ((4000 - len(str(machine.home))) // 201))
    target = folder / ("e" * (4095 - len(str(folder)) - 3)) / "f"
    assert len(str(target)) == 4095
    for data in (b"one", b"another"):
        await place(arrivals, target, data)
        assert target.read_bytes() == data
    assert [each.name for each in target.parent.iterdir()] == ["f"]


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
    await unpack(arrivals, target, plain)
    assert (target / "a").read_bytes() == b"one"
    assert (target / "there").read_bytes() == b"before"
    assert (target / "a").stat().st_mode & 0o777 == 0o640
    (target / "a").unlink()
    (target / "a" / "full").mkdir(parents=True)
    with pytest.raises(ToolFailure, match=r"not everything could be unpacked.*\ba\b"):
        await unpack(arrivals, target, plain)


async def test_an_archive_that_broke_off_is_not_taken_for_a_damaged_one(machine: Machine) -> None:
    """The other side gave up: why its input ended the program cannot know, but that it was not given everything."""
    environment = {"PATH": machine.path, "SANDHOLD_TARGET": str(machine.home), "SANDHOLD_WHOLE": "/never"}
    for length in (0, 700, 200_000, 1_000_000):
        unpacking = await asyncio.create_subprocess_exec(
            "sh", "-c", UNPACK, env=environment, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        await unpacking.communicate(packed(a=b"one", b=bytes(400_000))[:length])
        assert unpacking.returncode == 75


async def test_a_pipe_is_not_replaced_and_a_part_is_no_file(arrivals: Arrivals, machine: Machine) -> None:
    os.mkfifo(machine.home / "pipe")
    with pytest.raises(ToolFailure, match="not a regular file"):
        await place(arrivals, machine.home / "pipe", b"x")
    with pytest.raises(StreamBroken):
        await as_activity(
            lambda: arrivals.place(REF, new_call_id(), f"{machine.home}/short", pieces_of(b"abc", 2), size=4)
        )
    assert sorted(each.name for each in machine.home.iterdir()) == [".sandhold", "pipe"]


@pytest.mark.storage("folder", "s3")
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
    restore = WorkspaceRestore(arrivals, workspace.files, saved.session_path, target)
    await as_activity(lambda: restore.run(other, new_call_id()))
    look = "find . -printf '%P %y %m %l\\n' | sort; sha256sum src/large hard; stat -c %h hard"
    assert await provider.sh(other, f"cd {target} && {look}") == await provider.sh(
        shared_sandbox, f"cd {workspace.path} && {look}"
    )
    data = await workspace.bytes_of(saved.session_path)
    await as_activity(lambda: arrivals.place(other, new_call_id(), f"{target}/saved", pieces_of(data, MIB)))
    assert hashlib.sha256(data).hexdigest() in await provider.sh(other, f"sha256sum {target}/saved")
    await provider.delete(other)
