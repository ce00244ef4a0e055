"""The launcher's slices of output by offset, its cap on output, and its clean-up, on every sh that is here."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from activities.launcher import (
    UNWANTED,
    CallReport,
    Position,
    Slice,
    TornAnswer,
    clean_request,
    follow_request,
    read_request,
    stop_request,
)
from activities.launcher.request import KEPT_CALLS, KEPT_MINUTES, UNFETCHED_MINUTES
from tests.activities.shells import Machine, new_call_id, processes_with, shells_present


@pytest.fixture(params=shells_present())
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine.made_of(tmp_path, request.param)


@pytest.fixture
def dash(tmp_path: Path) -> Machine:
    return Machine.made_of(tmp_path, "dash")


async def followed(machine: Machine, known: Position, *, budget_bytes: int = 2**20, wait_s: float = 20) -> CallReport:
    (report,) = (await machine.ask(follow_request([known], wait_s=wait_s, budget_bytes=budget_bytes))).reports
    return report


async def test_a_background_command_is_answered_as_soon_as_it_runs_and_has_no_timeout(machine: Machine) -> None:
    call_id = new_call_id()
    report = await machine.run("sleep 1; echo done", call_id=call_id, wait_s=0, timeout_s=None)
    assert report.state == "running"
    report = await machine.run("sleep 1; echo done", call_id=call_id, timeout_s=None, again=True)
    assert (report.state, report.reason, report.stdout.head) == ("ended", None, b"done\n")


async def test_a_command_that_writes_more_than_its_cap_is_ended_with_all_it_started(machine: Machine) -> None:
    call_id = new_call_id()
    report = await machine.run(
        "setsid sleep 61 & while :; do head -c 9000 /dev/zero >&2; sleep 0.02; done",
        call_id=call_id,
        cap_bytes=100_000,
        timeout_s=None,
    )
    assert (report.state, report.reason, report.cap_bytes) == ("ended", "output_limit", 100_000)
    assert report.stderr.size > 100_000
    assert processes_with(f"SANDHOLD_CALL={call_id}/".encode()) == []


async def test_a_command_below_its_cap_is_left_alone(machine: Machine) -> None:
    report = await machine.run("head -c 60000 /dev/zero; head -c 40000 /dev/zero >&2; sleep 2.5", cap_bytes=100_000)
    assert (report.exit_code, report.reason) == (0, None)


async def test_what_a_killed_owner_left_is_ended_by_its_watcher(machine: Machine) -> None:
    call_id = new_call_id()
    await machine.run("sleep 61", call_id=call_id, wait_s=0, timeout_s=None)
    await asyncio.sleep(0.2)
    os.kill(machine.owner_of(call_id), 9)
    async with asyncio.timeout(20):
        while processes_with(f"SANDHOLD_CALL={call_id}/".encode()):
            await asyncio.sleep(0.1)


async def test_growing_output_is_told_from_any_offset(machine: Machine) -> None:
    call_id = new_call_id()
    data = random.Random(5).randbytes(100_000)
    (machine.home / "data").write_bytes(data)
    await machine.run("cat data; head -c 40000 data >&2; sleep 60", call_id=call_id, wait_s=0)
    for stdout, stderr in [(0, 0), (1, 39_999), (16_384, 16_383), (99_999, 40_000)]:
        report = await followed(machine, Position(call_id, stdout, stderr))
        assert report.state == "running"
        assert report.stdout_slice is not None
        assert report.stderr_slice is not None
        assert report.stdout_slice.beyond(stdout) == data[stdout:]
        assert report.stderr_slice.beyond(stderr) == data[stderr:40_000]
        assert (report.stdout_slice.size, report.stderr_slice.size) == (100_000, 40_000)
    await machine.ask(stop_request(call_id, grace_s=0))


async def test_news_of_many_calls_share_the_budget(machine: Machine) -> None:
    calls = [new_call_id() for _ in range(4)]
    for call_id in calls:
        await machine.run("head -c 1000000 /dev/zero; echo small >&2; sleep 60", call_id=call_id, wait_s=0)
    await asyncio.sleep(0.3)
    request = follow_request([Position(call_id) for call_id in calls], wait_s=20, budget_bytes=400_000)
    answer = await machine.ask(request)
    assert [report.folder for report in answer.reports] == calls
    for report in answer.reports:
        assert report.stdout_slice is not None
        assert report.stderr_slice is not None
        assert 40_000 <= len(report.stdout_slice.data) <= 200_000
        assert report.stderr_slice.data == b"small\n"
    await asyncio.gather(*(machine.ask(stop_request(call_id, grace_s=0)) for call_id in calls))


async def test_a_follower_hears_nothing_of_calls_without_news(machine: Machine) -> None:
    quiet, loud = new_call_id(), new_call_id()
    await machine.run("sleep 60", call_id=quiet, wait_s=0)
    await machine.run("sleep 0.7; echo news; sleep 60", call_id=loud, wait_s=0)
    answer = await machine.ask(follow_request([Position(quiet), Position(loud)], wait_s=20, budget_bytes=1_000_000))
    assert [(report.folder, report.state) for report in answer.reports] == [(loud, "running")]
    known = [Position(quiet), Position(loud, 5)]
    assert (await machine.ask(follow_request(known, wait_s=0.7, budget_bytes=1_000_000))).reports == []
    await asyncio.gather(*(machine.ask(stop_request(call_id, grace_s=0)) for call_id in (quiet, loud)))


async def test_an_ended_call_tells_its_news_and_its_beginning_and_end(machine: Machine) -> None:
    call_id = new_call_id()
    data = random.Random(6).randbytes(300_000)
    (machine.home / "data").write_bytes(data)
    await machine.run("cat data; exit 7", call_id=call_id)
    position, seen = 0, b""
    while True:
        report = await followed(machine, Position(call_id, position), budget_bytes=100_000)
        assert (report.state, report.exit_code, report.stdout.size) == ("ended", 7, 300_000)
        assert data.startswith(report.stdout.head)
        assert data.endswith(report.stdout.tail)
        assert report.stdout_slice is not None
        news = report.stdout_slice.beyond(position)
        if not news:
            break
        seen += news
        position += len(news)
    assert seen == data


async def test_a_reader_gets_what_there_is_at_once_and_waits_for_more(machine: Machine) -> None:
    call_id = new_call_id()
    await machine.run("echo one; sleep 0.8; echo two; sleep 60", call_id=call_id, wait_s=0.3)

    async def read(offset: int, known: int, wait_s: float) -> tuple[str, bytes, int]:
        wanted, seen = Position(call_id, offset), Position(call_id, known)
        request = read_request(wanted, seen, wait_s=wait_s, budget_bytes=32_768)
        (report,) = (await machine.ask(request)).reports
        assert report.stdout_slice is not None
        assert report.stderr_slice is not None
        assert report.stderr_slice.size == 0
        return report.state, report.stdout_slice.beyond(offset), report.stdout_slice.size

    assert await read(0, 0, 0) == ("running", b"one\n", 4)
    assert await read(2, 2, 0) == ("running", b"e\n", 4)
    assert await read(2, 4, 20) == ("running", b"e\ntwo\n", 8)
    assert await read(8, 8, 0.3) == ("running", b"", 8)
    await machine.ask(stop_request(call_id, grace_s=0))
    assert await read(4, 8, 20) == ("ended", b"two\n", 8)


async def test_a_reader_of_a_call_that_never_was_is_told(machine: Machine) -> None:
    position = Position(new_call_id())
    (report,) = (await machine.ask(read_request(position, position, wait_s=5, budget_bytes=1024))).reports
    assert report.state == "absent"


# Clean-up.


async def ended(machine: Machine, count: int) -> list[str]:
    """So many commands that have ended, oldest first."""
    call_ids = [new_call_id() for _ in range(count)]
    for number, call_id in enumerate(call_ids):
        await machine.run("true", call_id=call_id)
        (end,) = machine.folder(call_id).glob("ended.*")
        at = time.time() - 3600 + number
        os.utime(end, (at, at))
    return call_ids


def make_old(machine: Machine, call_id: str, minutes: float) -> None:
    at = time.time() - minutes * 60
    for path in machine.folder(call_id).iterdir():
        os.utime(path, (at, at), follow_symlinks=False)


async def test_only_the_latest_calls_and_those_that_are_needed_keep_their_folders(machine: Machine) -> None:
    kept, *old = await ended(machine, 4)
    running = new_call_id()
    await machine.run("sleep 60", call_id=running, wait_s=0)
    left_something = new_call_id()
    await machine.run("sleep 60 & true", call_id=left_something)
    make_old(machine, left_something, 120)
    latest = []
    for number in range(KEPT_CALLS):
        folder = machine.folder(f"fill-{number}")
        folder.mkdir()
        (folder / "lock").touch()
        (folder / "ended.0.1.2.-").touch()
        latest.append(f"fill-{number}")
    await machine.ask(clean_request([kept]))
    left = {folder.name for folder in (machine.home / ".sandhold" / "calls").iterdir() if folder.name[0] != "."}
    assert left == {kept, running, left_something, *latest}
    assert {tombstone.name for tombstone in (machine.home / ".sandhold" / "calls" / ".done").iterdir()} == set(old)
    for call_id in (running, left_something):
        await machine.ask(stop_request(call_id, grace_s=0))
        for pid in processes_with(f"SANDHOLD_CALL={call_id}/".encode()):
            os.kill(pid, 9)


async def test_a_call_that_was_cleaned_away_never_runs_again(machine: Machine) -> None:
    call_id = new_call_id()
    await machine.run("echo run >>ran", call_id=call_id)
    make_old(machine, call_id, KEPT_MINUTES + 2)
    for _ in range(2):
        await machine.ask(clean_request([]))
        assert not machine.folder(call_id).exists()
        assert (await machine.run("echo run >>ran", call_id=call_id)).state == "cleaned"
        assert (await machine.run("echo run >>ran", call_id=call_id, again=True)).state == "cleaned"
    assert (machine.home / "ran").read_text() == "run\n"
    (stopped,) = (await machine.ask(stop_request(call_id, grace_s=0))).reports
    assert stopped.state == "cleaned"


async def test_interrupted_calls_go_with_age_and_tombstones_stay(machine: Machine) -> None:
    """A retry may come as long as the sandbox lives, which may be for more than a month."""
    young, old = new_call_id(), new_call_id()
    for call_id, minutes in ((young, KEPT_MINUTES - 60), (old, KEPT_MINUTES + 60)):
        machine.folder(call_id).mkdir(parents=True)
        (machine.folder(call_id) / "lock").write_text("hash\n")
        make_old(machine, call_id, minutes)
    tombstones = machine.home / ".sandhold" / "calls" / ".done"
    tombstones.mkdir()
    (tombstones / "ancient").touch()
    os.utime(tombstones / "ancient", (0, 0))
    await machine.ask(clean_request([]))
    assert machine.folder(young).exists()
    assert not machine.folder(old).exists()
    assert {path.name for path in tombstones.iterdir()} == {"ancient", old}
    assert (await machine.run("echo run >>ran", call_id="ancient")).state == "cleaned"


async def test_uploads_that_no_request_has_fetched_go_after_a_while(machine: Machine, tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    (uploads / "sandhold-folder").mkdir(parents=True)
    for_files = {name: machine.folder(name) for name in ("young", "old", "written", "--")}
    at = time.time() - (UNFETCHED_MINUTES + 2) * 60
    for name, folder in for_files.items():
        folder.mkdir(parents=True)
        (folder / "upload-1").touch()
        if name != "young":
            os.utime(folder / "upload-1", (at, at))
    (for_files["written"] / "lock").touch()
    for name in ("sandhold-script-1", "sandhold-input-1", "sandhold-script-2", "other", "sandhold-folder/file"):
        (uploads / name).touch()
        if name != "sandhold-script-2":
            os.utime(uploads / name, (at, at))
    for folder in [uploads / "sandhold-folder", *for_files.values()]:
        os.utime(folder, (at, at))
    for _ in range(2):
        await machine.ask(clean_request([], uploads=f"{uploads}/sandhold-"))
        for folder in for_files.values():
            if folder.exists():
                os.utime(folder, (at, at))
    left = {str(path.relative_to(uploads)) for path in uploads.rglob("*")}
    assert left == {"sandhold-script-2", "other", "sandhold-folder", "sandhold-folder/file"}
    assert sorted(name for name, folder in for_files.items() if folder.exists()) == ["written", "young"]
    assert [path.name for path in for_files["written"].iterdir()] == ["lock"]
    assert [path.name for path in for_files["young"].iterdir()] == ["upload-1"]


async def test_calls_whose_names_look_like_options_are_cleaned(dash: Machine) -> None:
    for call_id in ("-rf", "--", "-n"):
        await dash.run("true", call_id=call_id)
        make_old(dash, call_id, KEPT_MINUTES + 2)
    await dash.ask(clean_request([]))
    assert [path.name for path in (dash.home / ".sandhold" / "calls").iterdir()] == [".done"]


@pytest.mark.parametrize(
    ("script", "reopens"),
    [
        ("echo a >&2; echo warn > /dev/stderr", True),
        ("echo a 2>'/dev/stdout'", True),
        ("echo a >|/proc/self/fd/2", True),
        ("echo a >>/dev/stderr; echo b >&2; echo c >/dev/null; cat </dev/stdin >/dev/stdouts", False),
    ],
)
async def test_a_command_that_opens_its_output_anew_is_told(machine: Machine, script: str, reopens: bool) -> None:
    report = await machine.run(script)
    assert (report.state, report.reopens_output) == ("ended", reopens)


async def test_a_follower_is_told_that_output_has_become_shorter_than_it_knows(machine: Machine) -> None:
    call_id = new_call_id()
    script = "echo some lines of output; sleep 1; echo x >/dev/stdout; sleep 60"
    await machine.run(script, call_id=call_id, wait_s=0.2)
    (report,) = (await machine.ask(follow_request([Position(call_id, 21, 0)], wait_s=20, budget_bytes=99))).reports
    assert (report.state, report.stdout_slice) == ("running", Slice(2, 21))
    unwanted = follow_request([Position(call_id, UNWANTED, 0)], wait_s=0.1, budget_bytes=99)
    assert (await machine.ask(unwanted)).reports == []
    (report,) = (await machine.ask(stop_request(call_id, grace_s=1))).reports
    assert report.reopens_output


def break_programs(machine: Machine, *names: str) -> None:
    """They fail without a word, as where the system has no process or no memory for them."""
    for name in names:
        program = machine.home.parent / "bin" / name
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)


def mend_programs(machine: Machine, *names: str) -> None:
    for name in names:
        (machine.home.parent / "bin" / name).unlink()


async def test_output_whose_size_cannot_be_found_is_not_taken_for_emptied(machine: Machine) -> None:
    call_id = new_call_id()
    await machine.run("echo some lines of output; sleep 60", call_id=call_id, wait_s=0.2)
    known = follow_request([Position(call_id, 21, 0)], wait_s=0.1, budget_bytes=99)
    nothing_known = follow_request([Position(call_id)], wait_s=1, budget_bytes=99)
    break_programs(machine, "stat")
    assert (await machine.ask(known)).reports == [], "there is another way to find it"
    (report,) = (await machine.ask(nothing_known)).reports
    assert report.stdout_slice == Slice(21, 0, b"some lines of output\n")
    break_programs(machine, "wc")
    for request in (known, read_request(Position(call_id), Position(call_id), wait_s=0, budget_bytes=99)):
        with pytest.raises(TornAnswer):
            await machine.ask(request)
    mend_programs(machine, "stat", "wc")
    assert (await machine.ask(known)).reports == []
    await machine.ask(stop_request(call_id, grace_s=0))


async def test_the_size_of_ended_output_is_told_right_or_not_at_all(machine: Machine) -> None:
    call_id = new_call_id()
    await machine.run("echo some lines of output", call_id=call_id)
    again = machine.request("echo some lines of output", call_id=call_id, again=True)
    break_programs(machine, "od")
    (report,) = (await machine.ask(again)).reports
    assert (report.stdout.size, report.stdout.head) == (21, b"some lines of output\n")
    break_programs(machine, "stat", "wc")
    for request in (again, follow_request([Position(call_id)], wait_s=0, budget_bytes=99)):
        with pytest.raises(TornAnswer):
            await machine.ask(request)
    mend_programs(machine, "od", "stat", "wc")
    (report,) = (await machine.ask(again)).reports
    assert (report.exit_code, report.stdout.size) == (0, 21)


@pytest.mark.parametrize("instead", ["mkfifo pipe && ln -s ~/pipe", "mkdir pipe && ln -s ~/pipe", "ln -s /dev/zero"])
async def test_what_a_command_puts_in_the_place_of_its_output_holds_up_no_request(
    machine: Machine, instead: str
) -> None:
    call_id = new_call_id()
    stdout = f"~/.sandhold/calls/{call_id}/stdout"
    script = f"echo some; rm {stdout}; {instead} {stdout}; echo err >&2; sleep 60"
    await machine.run(script, call_id=call_id, wait_s=0.2)
    async with asyncio.timeout(20):
        report = await followed(machine, Position(call_id, 5, 0))
        while report.stderr_slice is None or not report.stderr_slice.size:
            report = await followed(machine, Position(call_id, 5, 0))
        assert report.stdout_slice == Slice(0, 5)
        read = read_request(Position(call_id), Position(call_id), wait_s=5, budget_bytes=99)
        (report,) = (await machine.ask(read)).reports
        assert (report.stdout_slice, report.stderr_slice) == (Slice(0, 0), Slice(4, 0, b"err\n"))
        (report,) = (await machine.ask(stop_request(call_id, grace_s=0))).reports
    assert report.reason == "cancelled"
