"""Streams out of and into a sandbox: on every shell of this machine, and in a real sandbox when things go wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import os
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from daytona import DaytonaConnectionError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import stream_requests as requests_module
from activities import streams as streams_module
from activities.stream_requests import StreamBroken, StreamEnd
from activities.streams import SandboxStreams
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.steps import SandboxRef
from tests.activities.provider_under_test import ProviderUnderTest
from tests.activities.shells import Machine, processes_with, shells_present
from tests.activities.streams_under_test import REF, MachineAccess, Spools
from tests.local_daytona_faults import FaultPlan

T = TypeVar("T")
PART = 128 * 1024
DOWNLOAD = {"method": "POST", "route": "/toolbox/{sandbox_id}/files/bulk-download"}
UPLOAD = {"method": "POST", "route": "/toolbox/{sandbox_id}/files/bulk-upload"}
EXECUTE = {"method": "POST", "route": "/toolbox/{sandbox_id}/process/execute"}
KEEP = 'cat >~/$NAME.new && [ -e "$SANDHOLD_WHOLE" ] && mv ~/$NAME.new ~/$NAME'
_numbers = itertools.count(1)


@dataclass
class Sandbox:
    """A sandbox, or a machine in its place."""

    streams: SandboxStreams
    ref: SandboxRef

    async def read(self, program: str, *, call_id: str | None = None, **environment: str) -> tuple[bytes, StreamEnd]:
        async def attempt() -> tuple[bytes, StreamEnd]:
            async with self.streams.read(self.ref, call_id or new_call_id(), program, environment) as output:
                data = b"".join([piece async for piece in output])
                return data, output.end

        return await as_activity(attempt)

    async def write(
        self, program: str, data: bytes, *, call_id: str | None = None, step: int = 50_000, **environment: str
    ) -> StreamEnd:
        return await as_activity(
            lambda: self.streams.write(self.ref, call_id or new_call_id(), program, environment, pieces_of(data, step))
        )


async def as_activity(attempt: Callable[[], Awaitable[T]]) -> T:
    async def run() -> T:
        return await attempt()

    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(
        environment.info, start_to_close_timeout=None, schedule_to_close_timeout=None
    )
    return await environment.run(run)


async def pieces_of(data: bytes, step: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), step):
        yield data[at : at + step]


def new_call_id() -> str:
    return f"call-{os.getpid()}-{next(_numbers)}"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "PART_BYTES", PART)
    monkeypatch.setattr(requests_module, "LEAST_PART_BYTES", PART // 2)
    monkeypatch.setattr(requests_module, "LONGEST_PAUSE_S", 0.2)


@pytest.fixture(params=shells_present())
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine.made_of(tmp_path, request.param)


@pytest.fixture
def access(machine: Machine) -> MachineAccess:
    return MachineAccess(machine)


@pytest.fixture
def box(access: MachineAccess) -> Sandbox:
    return Sandbox(SandboxStreams(access), REF)  # type: ignore[arg-type]


@pytest.fixture
def spools(machine: Machine) -> Spools:
    return Spools(machine)


# On every shell.


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 11 * PART + 5])
async def test_what_a_program_writes_is_read_byte_for_byte(
    box: Sandbox, machine: Machine, spools: Spools, size: int
) -> None:
    data, end = await box.read(f"head -c {size} /dev/urandom | tee ~/copy; echo said >&2; exit 3")
    assert data == (machine.home / "copy").read_bytes()
    assert end == StreamEnd(3, b"said\n")
    await spools.until_gone()


@pytest.mark.parametrize("size", [0, 1, PART // 2, PART // 2 + 1, 9 * PART + 5])
async def test_what_is_written_arrives_byte_for_byte(box: Sandbox, machine: Machine, spools: Spools, size: int) -> None:
    data = random.Random(size).randbytes(size)
    end = await box.write(f"{KEEP}; echo out; echo err >&2; exit 4", data, NAME="kept")
    assert end.exit_code == 4
    assert sorted(end.said.split()) == [b"err", b"out"]
    assert (machine.home / "kept").read_bytes() == data
    await spools.until_gone()


async def test_the_spool_holds_few_parts_however_slowly_they_are_taken(box: Sandbox, spools: Spools) -> None:
    most = 0

    async def attempt() -> int:
        nonlocal most
        taken = 0
        async with box.streams.read(REF, new_call_id(), f"head -c {40 * PART} /dev/zero", {}) as output:
            async for piece in output:
                taken += len(piece)
                await asyncio.sleep(0.02)
                most = max(most, sum(name.rpartition("/")[2].startswith(("part.", "new")) for name in spools.left()))
        return taken

    assert await as_activity(attempt) == 40 * PART
    assert 1 < most <= requests_module.PARTS + 1


async def test_a_program_that_says_too_much_is_not_held_up(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_module, "SAID_BYTES", 1000)
    data, end = await box.read("seq 1 200000 >&2; echo done")
    assert data == b"done\n"
    assert end.said.startswith(b"1\n2\n")
    assert len(end.said) == 1000
    data, end = await box.read('echo out; sleep 0.3; head -c 100000 /dev/zero >"$SANDHOLD_SPOOL/said"')
    assert (data, len(end.said)) == (b"out\n", 1000), "also when the sandbox puts something else in its place"


async def test_a_reader_that_ends_early_ends_the_stream(box: Sandbox) -> None:
    end = await box.write("head -c 10 >/dev/null; exit 7", os.urandom(30 * PART))
    assert end.exit_code == 7


async def test_a_stream_that_breaks_off_on_its_way_in_is_never_taken_for_whole(
    box: Sandbox, machine: Machine, spools: Spools
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield os.urandom(5 * PART)
        raise OSError("the source broke off")

    with pytest.raises(OSError, match="broke off"):
        await as_activity(lambda: box.streams.write(REF, new_call_id(), KEEP, {"NAME": "kept"}, broken()))
    await spools.until_gone()
    assert not (machine.home / "kept").exists()


async def test_whoever_leaves_a_stream_leaves_nothing_that_runs(box: Sandbox, spools: Spools) -> None:
    mark = uuid.uuid4().hex

    async def attempt() -> bytes:
        async with box.streams.read(REF, new_call_id(), "while :; do echo more; done", {"MARK": mark}) as output:
            async for piece in output:
                return piece
        return b""

    assert (await as_activity(attempt)).startswith(b"more\n")
    assert spools.left() == []
    assert processes_with(mark.encode()) == []


async def test_a_cancelled_stream_leaves_nothing_that_runs(box: Sandbox, spools: Spools) -> None:
    mark = uuid.uuid4().hex
    reading = asyncio.create_task(box.read("echo begun; sleep 300", MARK=mark))
    while not processes_with(mark.encode()):
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert spools.left() == []
    assert processes_with(mark.encode()) == []


async def forgotten(box: Sandbox, monkeypatch: pytest.MonkeyPatch, call_id: str, mark: str) -> None:
    """An attempt whose worker is killed in the middle: nothing is stopped or removed."""

    async def nothing(*_: Any, **__: Any) -> None:
        pass

    with monkeypatch.context() as killed:
        killed.setattr(SandboxStreams, "_leave", nothing)
        reading = asyncio.create_task(box.read("while :; do echo more; done", call_id=call_id, MARK=mark))
        while not processes_with(mark.encode()):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        reading.cancel()
        await asyncio.wait([reading])


async def test_an_attempt_ends_what_the_one_before_left(
    box: Sandbox, spools: Spools, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id, mark = new_call_id(), uuid.uuid4().hex
    await forgotten(box, monkeypatch, call_id, mark)
    assert processes_with(mark.encode())
    assert spools.left()
    data, _ = await box.read("echo again", call_id=call_id)
    assert data == b"again\n"
    assert processes_with(mark.encode()) == []
    await spools.until_gone()


async def test_a_program_that_nobody_comes_back_to_gives_up(
    box: Sandbox, spools: Spools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests_module, "PATIENCE_S", 1)
    mark = uuid.uuid4().hex
    await forgotten(box, monkeypatch, new_call_id(), mark)
    await spools.until_gone()
    async with asyncio.timeout(60):
        while processes_with(mark.encode()):
            await asyncio.sleep(0.05)


async def test_what_a_dead_owner_left_is_removed_by_the_next_stream_of_any_call(
    box: Sandbox, machine: Machine, spools: Spools
) -> None:
    left = spools.folder / "other%1"
    left.mkdir(parents=True)
    (left / "writer").write_text("4194304 1\n")
    (left / "part.1").write_bytes(b"x")
    fresh = spools.folder / "other%2"
    fresh.mkdir()
    (fresh / "writer").write_text("- -\n")
    await box.read("echo")
    assert not left.exists()
    assert fresh.exists()
    spools.remove()


async def test_a_killed_owner_breaks_the_stream_so_that_another_attempt_begins(box: Sandbox) -> None:
    mark = uuid.uuid4().hex
    reading = asyncio.create_task(box.read("echo begun; sleep 300", MARK=mark))
    while not processes_with(mark.encode()):
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    while alive := processes_with(mark.encode()):
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        await asyncio.sleep(0.05)
    with pytest.raises(StreamBroken):
        await asyncio.wait_for(reading, 60)


async def test_a_disk_without_room_is_told(box: Sandbox, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as wanted:
        wanted.setattr(streams_module, "PART_BYTES", 2**50)
        wanted.setattr(requests_module, "LEAST_PART_BYTES", 2**49)
        with pytest.raises(ToolFailure) as failure:
            await box.read("echo")
    assert failure.value.error.code is ErrorCode.STORAGE_FULL
    # Busybox has a dd of its own, which a PATH does not change.
    if machine.path.split("/bin")[0] and "busybox" not in os.readlink(Path(machine.path.split(":")[0]) / "sh"):
        fake = Path(machine.path.split(":")[0]) / "dd"
        fake.write_text('#!/bin/sh\ncase "$*" in *of=*) exit 1 ;; esac\n')
        fake.chmod(0o755)
        with pytest.raises(ToolFailure) as failure:
            await box.read("echo")
        assert failure.value.error.code is ErrorCode.STORAGE_FULL


async def test_requests_that_fail_are_made_again(box: Sandbox, access: MachineAccess, machine: Machine) -> None:
    """Each before, and each after it was carried out: their answers are lost."""
    luck = random.Random(4)

    async def lose_some(what: str) -> None:
        if luck.random() < 0.3:
            raise DaytonaConnectionError("cut")

    access.before_request = lose_some
    execute, upload = access.exec, access.upload_file

    async def answer_lost(call: Callable[..., Awaitable[Any]], *given: Any) -> Any:
        answer = await call(*given)
        await lose_some("answer")
        return answer

    access.exec = lambda *given: answer_lost(execute, *given)  # type: ignore[method-assign]
    access.upload_file = lambda *given: answer_lost(upload, *given)  # type: ignore[method-assign]
    data, end = await box.read(f"head -c {3 * PART} /dev/urandom | tee ~/copy; exit 5")
    assert (data, end.exit_code) == ((machine.home / "copy").read_bytes(), 5)
    end = await box.write(f"{KEEP}; exit 6", data, NAME="kept")
    assert ((machine.home / "kept").read_bytes(), end.exit_code) == (data, 6)


async def test_names_of_calls_are_no_patterns(box: Sandbox, spools: Spools) -> None:
    for call_id in ("..", ".", "a:b", "-rf"):
        assert (await box.read("echo ok", call_id=call_id))[0] == b"ok\n"
    await spools.until_gone()


# In a real sandbox.


@pytest.fixture
def sandbox(local_provider: ProviderUnderTest, shared_sandbox: SandboxRef) -> Sandbox:
    return Sandbox(SandboxStreams(local_provider.access), shared_sandbox)


async def test_faults_on_the_way_tear_no_stream(
    sandbox: Sandbox, local_provider: ProviderUnderTest, faults: FaultPlan
) -> None:
    rules: list[int] = []
    for number, fault in enumerate(
        (
            {"effect": "status", "status": 502},
            {"effect": "reset_before"},
            {"effect": "reset_during"},
            {"effect": "answer_lost"},
            {"effect": "status", "status": 429, "headers": {"Retry-After": "0"}},
        )
    ):
        rules += [await faults.add(**each, **fault, skip=2 * number, times=1) for each in (DOWNLOAD, EXECUTE, UPLOAD)]
    data, _ = await sandbox.read(f"head -c {30 * PART} /dev/urandom | tee ~/torn")
    assert await local_provider.sh(sandbox.ref, "sha256sum <torn") == f"{hashlib.sha256(data).hexdigest()}  -\n"
    await sandbox.write(KEEP, data, NAME="whole")
    assert [await faults.hits(rule) for rule in rules] == [1] * len(rules)
    assert await local_provider.sh(sandbox.ref, "cmp torn whole && rm torn whole && ls -A .sandhold/streams") == ""


async def test_a_stream_that_the_sandbox_was_stopped_under_says_so(local_provider: ProviderUnderTest) -> None:
    ref = await local_provider.created()
    box = Sandbox(SandboxStreams(local_provider.access), ref)
    reading = asyncio.create_task(box.read("while :; do echo; sleep 0.01; done"))
    await asyncio.sleep(1.0)
    await local_provider.stop(ref)
    with pytest.raises(ApplicationError) as failure:
        await reading
    assert failure.value.type in {"SandboxNotStarted", ErrorCode.PROVIDER_UNAVAILABLE.value}
    await local_provider.start(ref)
    assert (await box.read("echo ok"))[0] == b"ok\n"
    assert await local_provider.sh(ref, "ls -A ~/.sandhold/streams") == ""
    await local_provider.delete(ref)
