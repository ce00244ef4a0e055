"""A follower and what it stores: all output, while the command runs, in bounded memory, whatever goes wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from activities import following as following_module
from activities.launcher import Answer, LauncherRequest, Position, follow_request
from activities.launcher.access import torn
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.steps import CommandPlace, FollowCommandsResult, FollowCommandsStep, SandboxRef, StoredOutput
from sandhold.storage import SegmentReader
from sandhold.storage.segments import SEGMENT_BYTES
from tests.activities.commands_under_test import EXECUTE, Commands, new_call_id
from tests.activities.provider_under_test import ProviderUnderTest
from tests.local_daytona_faults import FaultPlan
from tests.process_memory import forget_memory_peak, memory_now, memory_peak

OUTPUT_BYTES = int(os.environ.get("SANDHOLD_TEST_OUTPUT_BYTES", "100663296"))
"""How much output the memory test follows; `make output-memory` follows a gibibyte."""
GROWTH_BYTES = 64 * 1024 * 1024


@pytest.fixture
def commands(provider: ProviderUnderTest, shared_sandbox: SandboxRef) -> Commands:
    return Commands(provider, shared_sandbox)


async def until_stored(commands: Commands, call_id: str, size: int) -> bytes:
    async with asyncio.timeout(30):
        while len(stored := await commands.stored(call_id)) < size:
            await asyncio.sleep(0.05)
    return stored


def following(
    commands: Commands, places: Iterable[CommandPlace], environment: ActivityEnvironment | None = None
) -> asyncio.Task[FollowCommandsResult]:
    step = FollowCommandsStep(ref=commands.ref, commands=list(places))
    run = commands.provider.run(commands.following.follow_commands, step, environment=environment)
    return asyncio.create_task(run)


async def crash(follower: asyncio.Task[FollowCommandsResult]) -> None:
    follower.cancel()
    await asyncio.wait([follower])


@pytest.mark.storage("folder", "s3")
async def test_output_is_in_storage_while_the_command_runs(commands: Commands) -> None:
    place = await commands.leave("echo one; echo err >&2; sleep 2; echo two; sleep 60", background=True)
    follower = following(commands, [place])
    assert await until_stored(commands, place.call_id, 4) == b"one\n"
    assert await commands.stored(place.call_id, "stderr") == b"err\n"
    assert await until_stored(commands, place.call_id, 8) == b"one\ntwo\n"
    await commands.stop(place.call_id, grace_s=0)
    (progress,) = (await follower).ended
    result = await commands.result(progress)
    assert progress.status == result.status == "cancelled"
    assert (result.stdout, result.stderr) == ("one\ntwo\n", "err\n")
    assert result.output_files is not None
    assert result.output_files.stdout == f"calls/{place.call_id}/stdout"


@pytest.mark.storage("folder", "s3")
async def test_a_quiet_command_costs_nothing_in_storage(commands: Commands) -> None:
    place = await commands.leave("sleep 1.5", background=True)
    result = await commands.follow_to_the_end(place)
    assert result.output_files is None
    names = [
        name async for name, _ in commands.provider.storage.list(commands.ref.session_id, f"calls/{place.call_id}")
    ]
    assert names == []


@pytest.mark.storage("folder", "s3")
async def test_a_follower_that_crashed_leaves_a_whole_stream_to_the_next(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes a segment again writes the same."""
    written: dict[str, set[str]] = {}
    put = commands.provider.storage.put_bytes

    async def noted(session_id: str, path: str, data: bytes) -> None:
        if not path.endswith(".part"):
            written.setdefault(path, set()).add(hashlib.sha256(data).hexdigest())
        await put(session_id, path, data)

    monkeypatch.setattr(commands.provider.storage, "put_bytes", noted)
    chunks = "i=0; while [ $i -lt 30 ]; do i=$((i + 1)); head -c 400000 /dev/urandom; sleep 0.05; done"
    script = f"{chunks}; sha256sum ~/.sandhold/calls/$CALL/stdout >&2"
    call_id = new_call_id()
    place = await commands.leave(script.replace("$CALL", call_id), call_id=call_id, background=True)
    details: list[Any] = []
    seen = b""
    for _ in range(3):
        environment = ActivityEnvironment()
        environment.info = dataclasses.replace(environment.info, heartbeat_details=details)
        environment.on_heartbeat = lambda *told: details.__setitem__(slice(None), told)
        follower = following(commands, [place], environment)
        await until_stored(commands, call_id, len(seen) + 700_000)
        await crash(follower)
        again = await commands.stored(call_id)
        assert again.startswith(seen)
        seen = again
    result = await commands.follow_to_the_end(place)
    stored = await commands.stored(call_id)
    assert len(stored) == result.stdout_bytes == 12_000_000
    assert stored.startswith(seen)
    assert hashlib.sha256(stored).hexdigest() == result.stderr.split()[0]
    assert sorted(written)[0].endswith("/stderr/00000000000000000000")
    assert {len(digests) for digests in written.values()} == {1}
    offsets = [int(path.rsplit("/", 1)[1]) for path in sorted(written) if "/stdout/" in path]
    assert offsets == [n * SEGMENT_BYTES for n in range(12)]


@pytest.mark.storage("folder", "s3")
async def test_a_retry_goes_on_from_the_heartbeats_of_the_attempt_before(commands: Commands) -> None:
    size = 2 * SEGMENT_BYTES + 10
    place = await commands.leave(f"head -c {size} /dev/zero; sleep 60", background=True)
    environment = ActivityEnvironment()
    details = [{place.call_id: StoredOutput(stdout_bytes=2 * SEGMENT_BYTES).model_dump()}]
    environment.info = dataclasses.replace(environment.info, heartbeat_details=details)
    beats: list[Any] = []
    environment.on_heartbeat = lambda *told: beats.append(told[0])
    follower = following(commands, [place], environment)
    await asyncio.sleep(2)
    await commands.stop(place.call_id, grace_s=0)
    told = await follower
    assert beats[0] == details[0]
    assert told.stored[place.call_id] == StoredOutput(stdout_bytes=2 * SEGMENT_BYTES)
    folder = f"calls/{place.call_id}/stdout"
    names = [name async for name, _ in commands.provider.storage.list(commands.ref.session_id, folder)]
    assert names == [f"{2 * SEGMENT_BYTES:020d}"]


@pytest.mark.storage("folder", "s3")
async def test_a_follower_that_takes_over_asks_only_for_what_is_not_in_storage(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for all again that the one before had stored and could not tell."""
    size = 3 * SEGMENT_BYTES + 10
    place = await commands.leave(
        f"head -c {size} /dev/zero; head -c {SEGMENT_BYTES} /dev/zero >&2; sleep 60", background=True
    )
    follower = following(commands, [place])
    await until_stored(commands, place.call_id, size)
    await crash(follower)
    asked: list[Position] = []

    def noted(known: Sequence[Position], **options: Any) -> LauncherRequest:
        asked.extend(known)
        return follow_request(known, **options)

    monkeypatch.setattr(following_module, "follow_request", noted)
    follower = following(commands, [place])
    await asyncio.sleep(1)
    await commands.stop(place.call_id, grace_s=0)
    told = await follower
    assert asked[0] == Position(place.call_id, size, SEGMENT_BYTES)
    assert told.stored[place.call_id] == StoredOutput(stdout_bytes=3 * SEGMENT_BYTES, stderr_bytes=SEGMENT_BYTES)
    assert len(await commands.stored(place.call_id)) == size


async def test_a_follower_ends_a_command_whose_time_is_up_when_nobody_inside_does(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "OVERDUE_S", 0.5)
    monkeypatch.setattr(following_module, "FOLLOW_WAIT_S", 0.5)
    other = await commands.leave("sleep 6; echo fine", background=True, timeout=60_000)
    unbounded = await commands.leave("sleep 6; echo fine", background=True)
    assert unbounded.deadline_at is None
    call_id = new_call_id()
    watchers = "for p in $(cat /proc/$PPID/task/$PPID/children); do [ $p = $$ ] || kill -9 $p; done"
    place = await commands.leave(
        f"{watchers}; echo alone; setsid sleep 62 & sleep 62", call_id=call_id, background=True, timeout=1000
    )
    assert place.deadline_at is not None
    told = await following(commands, [other, place, unbounded])
    (progress,) = told.ended
    result = await commands.result(progress)
    assert (progress.call_id, result.status, result.stdout) == (call_id, "timed_out", "alone\n")
    assert result.duration_ms is not None
    assert result.duration_ms >= 1000
    assert "time limit" in (result.hint or "")
    assert await commands.sh("grep -l 'slee[p].62' /proc/[0-9]*/cmdline 2>/dev/null || echo none") == "none\n"
    for each in (other, unbounded):
        assert (await commands.follow_to_the_end(each)).status == "completed"


async def test_a_command_that_is_over_is_not_ended_for_its_deadline(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "OVERDUE_S", -60.0)
    result = await commands.run("exit 3")
    place = CommandPlace(
        call_id=result.call_id, output="auto", started_at=datetime.now(UTC), deadline_at=datetime.now(UTC)
    )
    again = await commands.follow_to_the_end(place)
    assert (again.status, again.exit_code, again.duration_ms) == ("completed", 3, result.duration_ms)


@pytest.mark.storage("folder", "s3")
async def test_a_follower_returns_after_much_output_so_that_it_is_on_record(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "STORED_PER_ATTEMPT_BYTES", 2 * SEGMENT_BYTES)
    place = await commands.leave("head -c 9000000 /dev/zero; sleep 60", background=True)
    told = await following(commands, [place])
    assert told.ended == []
    stored = told.stored[place.call_id].stdout_bytes
    assert stored >= 2 * SEGMENT_BYTES
    assert stored % SEGMENT_BYTES == 0
    await commands.stop(place.call_id, grace_s=0)
    result = await commands.follow_to_the_end(place.model_copy(update={"stored": told.stored[place.call_id]}))
    assert result.stdout_bytes == len(await commands.stored(place.call_id)) == 9_000_000


async def test_fault_9_no_fault_on_the_way_tears_the_output(commands: Commands, faults: FaultPlan) -> None:
    script = "i=0; while [ $i -lt 40 ]; do i=$((i + 1)); seq $((i * 1000)) $((i * 1000 + 9999)); sleep 0.1; done"
    place = await commands.leave(script, background=True)
    for number, fault in enumerate(
        (
            {"effect": "status", "status": 502},
            {"effect": "reset_before"},
            {"effect": "reset_during"},
            {"effect": "answer_lost"},
            {"effect": "status", "status": 429, "headers": {"Retry-After": "0"}},
            {"effect": "status", "status": 504},
            {"effect": "status", "status": 200, "body": {"exitCode": 137, "result": "<half an answer"}},
        )
    ):
        await faults.add(**EXECUTE, **fault, skip=number, times=1)
    result = await commands.follow_to_the_end(place)
    expected = "".join(f"{n}\n" for i in range(1, 41) for n in range(i * 1000, i * 1000 + 10_000)).encode()
    assert (result.status, result.exit_code, result.stdout_bytes) == ("completed", 0, len(expected))
    assert await commands.stored(place.call_id) == expected


@pytest.mark.storage("folder", "s3")
async def test_many_commands_share_a_follower_and_keep_their_output_apart(commands: Commands) -> None:
    async def begin(number: int) -> CommandPlace:
        return await commands.leave(f"head -c 1500000 /dev/zero | tr '\\0' {number}; sleep 0.{number}", background=True)

    places = await asyncio.gather(*(begin(number) for number in range(1, 9)))
    left = {place.call_id: place for place in places}
    while left:
        told = await following(commands, left.values())
        for call_id, stored in told.stored.items():
            left[call_id] = left[call_id].model_copy(update={"stored": stored})
        for progress in told.ended:
            assert (await commands.result(progress)).stdout_bytes == 1_500_000
            del left[progress.call_id]
    for number, place in enumerate(places, start=1):
        assert await commands.stored(place.call_id) == str(number).encode() * 1_500_000


async def test_output_that_the_command_has_emptied_is_not_mixed_with_what_it_writes_then(commands: Commands) -> None:
    script = "echo the first lines; sleep 2; echo x >/dev/stdout; sleep 1.5; echo other and longer lines; echo err >&2"
    place = await commands.leave(script, background=True)
    result = await commands.follow_to_the_end(place)
    assert await commands.stored(place.call_id) == b"the first lines\n"
    assert await commands.stored(place.call_id, "stderr") == b"err\n"
    assert (result.status, result.stdout) == ("completed", "x\nother and longer lines\n")
    assert result.output_files is not None
    assert not result.output_files.whole
    assert "emptied its own stdout: only the first 16 bytes" in (result.hint or "")
    assert "> /dev/stderr" in (result.hint or "")


@dataclasses.dataclass(frozen=True)
class Emptying:
    """A command that writes, and later empties its output, and later writes more than before."""

    commands: Commands
    place: CommandPlace
    size: int

    @classmethod
    async def begun(cls, commands: Commands, size: int) -> Emptying:
        call_id = new_call_id()
        script = (
            f"head -c {size} /dev/zero; until [ -e {call_id}-empty ]; do sleep 0.05; done; : >/dev/stdout; "
            f"until [ -e {call_id}-more ]; do sleep 0.05; done; head -c {size + SEGMENT_BYTES} /dev/zero | tr '\\0' B; "
            f"touch {call_id}-told; sleep 60"
        )
        return cls(commands, await commands.leave(script, call_id=call_id, background=True), size)

    async def empty(self) -> None:
        at = f".sandhold/calls/{self.place.call_id}/stdout"
        await self.commands.sh(f"touch {self.place.call_id}-empty; while [ -s {at} ]; do sleep 0.05; done")

    async def write_more(self) -> None:
        name = self.place.call_id
        await self.commands.sh(f"touch {name}-more; until [ -e {name}-told ]; do sleep 0.05; done")

    async def is_told_as_cut(self, place: CommandPlace) -> None:
        await self.commands.stop(place.call_id, grace_s=0)
        result = await self.commands.follow_to_the_end(place)
        assert await self.commands.stored(place.call_id) == bytes(self.size)
        assert result.stdout_bytes == self.size + SEGMENT_BYTES
        assert result.output_files is not None
        assert not result.output_files.whole
        assert f"only the first {self.size} bytes" in (result.hint or "")


@pytest.mark.parametrize("size", [16, SEGMENT_BYTES, SEGMENT_BYTES + 500_000])
async def test_no_later_follower_mixes_output_that_the_command_has_emptied(commands: Commands, size: int) -> None:
    other = await commands.leave("sleep 60", background=True)
    emptying = await Emptying.begun(commands, size)
    follower = following(commands, [emptying.place, other])
    await until_stored(commands, emptying.place.call_id, size)
    await emptying.empty()
    told = await follower
    assert told.ended == [], "it is on record before anything else happens"
    assert told.stored[emptying.place.call_id].emptied_at == {"stdout": size}
    await emptying.write_more()
    place = emptying.place.model_copy(update={"stored": told.stored[emptying.place.call_id]})
    follower = following(commands, [place, other])
    await commands.stop(other.call_id, grace_s=0)
    told = await follower
    assert [progress.call_id for progress in told.ended] == [other.call_id]
    await emptying.is_told_as_cut(place.model_copy(update={"stored": told.stored[place.call_id]}))


async def test_a_retry_knows_by_the_heartbeats_of_the_attempt_before_what_was_emptied(commands: Commands) -> None:
    emptying = await Emptying.begun(commands, 16)
    environment = ActivityEnvironment()
    beats: list[Any] = []
    environment.on_heartbeat = lambda *told: beats.__setitem__(slice(None), told)
    follower = following(commands, [emptying.place], environment)
    await until_stored(commands, emptying.place.call_id, 16)
    await emptying.empty()
    told = await follower
    await emptying.write_more()
    details = [{call_id: stored.model_dump() for call_id, stored in told.stored.items()}]
    assert beats[0].keys() == details[0].keys()
    again = ActivityEnvironment()
    again.info = dataclasses.replace(again.info, heartbeat_details=details)
    told = await following(commands, [emptying.place], again)
    assert told.stored[emptying.place.call_id].emptied_at == {"stdout": 16}, "the workflow does not know it yet"
    await emptying.is_told_as_cut(emptying.place.model_copy(update={"stored": told.stored[emptying.place.call_id]}))


@pytest.mark.parametrize("size", [16, SEGMENT_BYTES + 500_000])
async def test_output_that_was_emptied_while_nobody_followed_is_noticed_by_what_is_stored(
    commands: Commands, size: int
) -> None:
    emptying = await Emptying.begun(commands, size)
    follower = following(commands, [emptying.place])
    await until_stored(commands, emptying.place.call_id, size)
    await crash(follower)
    await emptying.empty()
    told = await following(commands, [emptying.place])
    assert told.stored[emptying.place.call_id].emptied_at == {"stdout": size}
    await emptying.write_more()
    await emptying.is_told_as_cut(emptying.place.model_copy(update={"stored": told.stored[emptying.place.call_id]}))


async def test_output_that_is_cut_short_after_the_end_was_told_is_not_asked_for_for_ever(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process that was left behind: so much as there was at the end never comes."""
    place = await commands.leave(f"head -c {6 * SEGMENT_BYTES} /dev/zero; sleep 0.5", background=True)
    await commands.sh(f"until [ -e .sandhold/calls/{place.call_id}/ended.* ]; do sleep 0.05; done")
    ask = commands.following._launcher.ask
    states: list[str] = []

    async def cut(ref: SandboxRef, order: LauncherRequest, **options: Any) -> Answer:
        answer = await ask(ref, order, **options)
        if not states:
            await commands.sh(f"truncate -s {4 * SEGMENT_BYTES} .sandhold/calls/{place.call_id}/stdout")
        states.extend(report.state for report in answer.reports)
        assert len(states) < 20, "asked again and again"
        return answer

    monkeypatch.setattr(commands.following._launcher, "ask", cut)
    (progress,) = await commands.follow([place])
    result = await commands.result(progress)
    stored = await commands.stored(place.call_id)
    assert states[0] == "ended"
    assert SEGMENT_BYTES <= len(stored) <= 4 * SEGMENT_BYTES
    assert (result.status, result.stdout_bytes) == ("completed", 6 * SEGMENT_BYTES)
    assert f"only the first {len(stored)} bytes" in (result.hint or "")


async def test_output_beyond_what_may_be_taken_that_is_cut_short_is_news_once(commands: Commands) -> None:
    place = await commands.leave(f"truncate -s {8 * SEGMENT_BYTES} /dev/stdout; sleep 60", background=True)
    place = place.model_copy(update={"cap_bytes": SEGMENT_BYTES})
    kept = SEGMENT_BYTES + following_module.BEYOND_CAP_BYTES
    follower = following(commands, [place])
    await until_stored(commands, place.call_id, kept)
    await asyncio.sleep(0.5)
    await commands.sh(f"truncate -s {4 * SEGMENT_BYTES} .sandhold/calls/{place.call_id}/stdout")
    async with asyncio.timeout(20):
        told = await follower
    assert told.stored[place.call_id].emptied_at == {"stdout": kept}
    place = place.model_copy(update={"stored": told.stored[place.call_id]})
    follower = following(commands, [place])
    await commands.stop(place.call_id, grace_s=0)
    (progress,) = (await follower).ended
    assert progress.status == "cancelled"
    assert len(await commands.stored(place.call_id)) == kept


async def test_what_a_left_behind_process_writes_is_not_waited_for(commands: Commands) -> None:
    place = await commands.leave("(while :; do echo more; sleep 0.01; done) & sleep 0.5; echo end", background=True)
    result = await commands.follow_to_the_end(place)
    assert result.status == "completed"
    stored = await commands.stored(place.call_id)
    assert len(stored) >= result.stdout_bytes
    assert b"end\n" in stored
    await commands.sh("pkill -f 'echo mor[e]' || true")


@pytest.mark.storage("folder", "s3")
async def test_much_output_is_stored_whole_in_little_memory(provider: ProviderUnderTest) -> None:
    commands = Commands(provider, await provider.created(size="large"))
    call_id = new_call_id()
    place = await commands.leave(
        f"seq 100000000000 300000000000 | head -c {OUTPUT_BYTES}",
        call_id=call_id,
        output_cap_bytes=2**40,
        timeout=600_000,
    )
    start = memory_now(os.getpid())
    forget_memory_peak(os.getpid())
    result = await commands.follow_to_the_end(place)
    grown = memory_peak(os.getpid()) - start
    digest, size = hashlib.sha256(), 0
    async for window in SegmentReader(provider.storage).windows(commands.ref.session_id, call_id, "stdout"):
        digest.update(window.data)
        size += window.size
    assert size == result.stdout_bytes == OUTPUT_BYTES
    assert len(result.stdout) <= 512
    assert digest.hexdigest() == (await commands.sh(f"sha256sum <.sandhold/calls/{call_id}/stdout")).split()[0]
    assert grown < GROWTH_BYTES, f"memory grew by {grown / 2**20:.0f} MiB"
    print(f"{OUTPUT_BYTES} bytes followed, memory grew by {grown / 2**20:.1f} MiB")
    await provider.delete(commands.ref)


async def test_a_command_that_may_have_been_started_and_was_not_is_kept_from_starting(commands: Commands) -> None:
    started = await commands.leave("sleep 2; exit 5", background=True)
    call_id = new_call_id()
    unsure = started.model_copy(update={"call_id": call_id, "unsure": True})
    (progress,) = await commands.follow([unsure, started.model_copy(update={"unsure": True})])
    assert (progress.call_id, progress.status) == (call_id, "cancelled")
    assert progress.outcome is not None
    assert progress.outcome.error is not None
    assert (progress.outcome.error.code, progress.outcome.error.ambiguous) == (ErrorCode.CANCELLED, False)
    assert "never started" in progress.outcome.error.message
    late = await commands.run(f"touch ran-{call_id}", call_id=call_id)
    assert late.status == "cancelled"
    assert await commands.sh(f"ls ran-{call_id} 2>/dev/null || echo none") == "none\n"
    result = await commands.follow_to_the_end(started.model_copy(update={"unsure": True}))
    assert (result.status, result.exit_code) == ("completed", 5), "one that was started goes on"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_of_a_command_that_writes_far_more_than_its_cap_only_a_bounded_beginning_is_stored(
    commands: Commands, stream: str
) -> None:
    """It costs the command no time and no room on the disk."""
    size = 256 * 2**20
    place = await commands.leave(
        f"echo begun >&2; truncate -s {size} /dev/{stream}; sleep 60", output_cap_bytes=SEGMENT_BYTES, background=True
    )
    result = await commands.follow_to_the_end(place)
    assert result.status == "cancelled"
    assert getattr(result, f"{stream}_bytes") == size, "it is counted all the same"
    assert result.output_files is not None
    assert not result.output_files.whole
    kept = len(await commands.stored(place.call_id)) + len(await commands.stored(place.call_id, "stderr"))
    assert kept == SEGMENT_BYTES + following_module.BEYOND_CAP_BYTES
    assert f"first {kept} bytes" in (result.hint or "")


async def test_output_within_the_slack_beyond_the_cap_is_stored_whole(commands: Commands) -> None:
    place = await commands.leave("head -c 1500000 /dev/zero; sleep 60", output_cap_bytes=1_000_000, background=True)
    result = await commands.follow_to_the_end(place)
    assert (result.status, result.stdout_bytes) == ("cancelled", 1_500_000)
    assert result.output_files is not None
    assert result.output_files.whole
    assert len(await commands.stored(place.call_id)) == 1_500_000


async def test_a_request_about_too_many_commands_is_made_about_fewer_until_all_have_had_their_turn(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def answered_about_two(known: Sequence[Position], **options: Any) -> LauncherRequest:
        asked.append(len(known))
        request = follow_request(known, **options)
        return request if len(known) <= 2 else dataclasses.replace(request, command="true")

    monkeypatch.setattr(following_module, "follow_request", answered_about_two)
    places = [await commands.leave(f"echo {number}; exec sleep 60", background=True) for number in range(7)]
    follower = following(commands, places)
    for number, place in enumerate(places):
        assert await until_stored(commands, place.call_id, 2) == f"{number}\n".encode()
    await commands.stop(places[6].call_id, grace_s=0)
    (progress,) = (await follower).ended
    assert (progress.call_id, progress.status) == (places[6].call_id, "cancelled")
    assert asked[:3] == [7, 3, 1]
    await commands.stop(*(place.call_id for place in places), grace_s=0)


async def test_commands_whose_time_is_up_are_ended_at_once_and_one_that_cannot_be_holds_up_no_other(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "OVERDUE_S", 0.0)
    places = [await commands.leave("sleep 60", background=True) for _ in range(3)]
    stuck, *others = [place.model_copy(update={"deadline_at": datetime.now(UTC)}) for place in places]
    everybody = asyncio.Barrier(3)
    ask = commands.following._launcher.ask

    async def together(ref: SandboxRef, order: LauncherRequest, **options: Any) -> Answer:
        if " stop " in order.command:
            async with asyncio.timeout(10):
                await everybody.wait()
            if stuck.call_id in order.command:
                raise torn("nobody answers")
        return await ask(ref, order, **options)

    monkeypatch.setattr(commands.following._launcher, "ask", together)
    ended = {progress.call_id: progress.status for progress in await commands.follow([stuck, *others])}
    assert set(ended.values()) == {"timed_out"}
    assert set(ended) <= {place.call_id for place in others}
    await commands.stop(*(place.call_id for place in places), grace_s=0)
