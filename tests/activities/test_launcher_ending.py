"""Endings that nobody inside goes along with, on every sh that is here: each is over in bounded time, and told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from activities.launcher import Position, follow_request, stop_request
from activities.launcher.request import PROGRAMS, UNKILLABLE_S
from tests.activities.shells import Machine, new_call_id, processes_with, shells_present

PATIENCE = "sd_patience=600"


@pytest.fixture(params=shells_present())
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine.made_of(tmp_path, request.param)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher gives up after a second of KILLs."""
    for order, program in PROGRAMS.items():
        assert (PATIENCE in program) is (order in {"owner, more", "stop"})
        monkeypatch.setitem(PROGRAMS, order, program.replace(PATIENCE, "sd_patience=100"))


def command_processes(call_id: str) -> list[int]:
    return processes_with(f"SANDHOLD_CALL={call_id}/".encode())


def owner_processes(call_id: str) -> list[int]:
    """The owner, and what it has made of itself: watcher and feeder."""
    return processes_with(f"SANDHOLD_OWNS={call_id}/".encode())


async def until_gone(call_id: str) -> None:
    async with asyncio.timeout(10):
        while command_processes(call_id) or owner_processes(call_id):
            await asyncio.sleep(0.05)


@contextlib.contextmanager
def undead(machine: Machine, call_id: str) -> Iterator[None]:
    """Something of the call that no KILL makes go away: signals reach it, and it is found again afterwards."""
    corpse = subprocess.Popen(["true"], start_new_session=True)  # dead, but not before somebody waits for it
    seer = Path(machine.path.split(":")[0]) / "grep"
    seer.write_text(
        f'#!/bin/sh\n/usr/bin/env PATH=/usr/bin:/bin grep "$@"\n'
        f'case "$*" in *SANDHOLD_CALL={call_id}/*) echo /proc/{corpse.pid}/environ ;; esac\n'
    )
    seer.chmod(0o755)
    try:
        yield
    finally:
        seer.unlink()
        corpse.wait()


def test_the_request_waits_for_as_long_as_the_launcher_tries() -> None:
    assert int(PATIENCE.split("=")[1]) / 100 < UNKILLABLE_S


async def test_a_stop_says_why(machine: Machine) -> None:
    call_id = new_call_id()
    await machine.run("sleep 60", call_id=call_id, wait_s=0, timeout_s=None)
    (report,) = (await machine.ask(stop_request(call_id, grace_s=1, reason="timed_out"))).reports
    assert (report.state, report.reason, report.exit_code, report.left_alive) == ("ended", "timed_out", 143, False)
    never = new_call_id()
    (report,) = (await machine.ask(stop_request(never, grace_s=1, reason="timed_out"))).reports
    assert (report.state, report.reason, report.exit_code) == ("ended", "timed_out", None)


@pytest.mark.parametrize("script", ["exec env -i sleep 60", "env -i sleep 60"])
async def test_a_command_that_gave_up_its_environment_is_ended(machine: Machine, script: str) -> None:
    report = await machine.run(script, timeout_s=0.3, grace_s=5)
    assert (report.reason, report.exit_code, report.left_alive) == ("timed_out", 143, False)


def group_left_behind(machine: Machine, *, begin: str = "") -> str:
    """A script whose leader goes at a TERM, and leaves a process without a mark in its group that does not."""
    inner = f"{begin} trap '' TERM; echo \\$\\$ >{machine.home}/left; while :; do sleep 0.1; done"
    return f'env -i PATH="$PATH" sh -c "{inner}" & wait'


@pytest.mark.parametrize("by", ["timeout", "stop", "stop at once"])
async def test_a_group_without_marks_is_ended_although_its_leader_is_dead(machine: Machine, by: str) -> None:
    call_id = new_call_id()
    script = group_left_behind(machine)
    if by == "timeout":
        report = await machine.run(script, call_id=call_id, timeout_s=0.5, grace_s=0.3)
    else:
        await machine.run(script, call_id=call_id, timeout_s=None, wait_s=0.5 if by == "stop" else 0)
        while not (machine.home / "left").exists():
            await asyncio.sleep(0)
        (report,) = (await machine.ask(stop_request(call_id, grace_s=0.3))).reports
    assert (report.state, report.reason) == ("ended", "timed_out" if by == "timeout" else "cancelled")
    assert report.left_alive is False
    left = int((machine.home / "left").read_text())
    assert not lives(left)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in {"X", "Z"}
    except FileNotFoundError:
        return False


async def test_a_session_whose_number_is_used_again_is_left_alone(machine: Machine) -> None:
    """Of a command whose owner is gone: as after the machine has started anew, where pids begin again."""
    led = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    orphaned = await asyncio.create_subprocess_exec(
        "sh", "-c", "sleep 60 >&2 & echo $!", start_new_session=True, stdout=asyncio.subprocess.PIPE
    )
    orphan = int((await orphaned.communicate())[0])
    for session in (f"{led.pid}.12345", f"{orphaned.pid}.12345", "1.12345", "0.1", "-1.1"):
        call_id = new_call_id()
        folder = machine.folder(call_id)
        folder.mkdir(parents=True)
        (folder / "lock").write_text("hash 1\n")
        (folder / "owner.99999999.12345.99999999").touch()
        (folder / f"session.{session}").touch()
        (report,) = (await machine.ask(stop_request(call_id, grace_s=0))).reports
        assert report.state == "interrupted"
    assert led.returncode is None
    assert lives(orphan)
    os.kill(orphan, signal.SIGKILL)
    led.kill()
    await led.wait()


async def test_a_program_whose_name_holds_a_newline_is_ended(machine: Machine) -> None:
    call_id = new_call_id()
    sleeper = str(machine.home / "a\nb) S 1 2")
    Path(sleeper).symlink_to(shutil.which("sleep") or "")
    machine.env["SLEEPER"] = sleeper
    report = await machine.run('setsid "$SLEEPER" 60 & exec "$SLEEPER" 60', call_id=call_id, timeout_s=0.4, grace_s=5)
    assert (report.reason, report.exit_code, report.left_alive) == ("timed_out", 143, False)
    assert command_processes(call_id) == []


@pytest.mark.usefixtures("impatient")
async def test_what_survives_every_kill_keeps_neither_request_nor_owner(machine: Machine) -> None:
    call_id = new_call_id()
    with undead(machine, call_id):
        starting = asyncio.create_task(machine.run("echo begun; sleep 60", call_id=call_id, timeout_s=None))
        await asyncio.sleep(0.5)
        (report,) = (await machine.ask(stop_request(call_id, grace_s=0.1))).reports
        assert (report.state, report.reason, report.left_alive) == ("ended", "cancelled", True)
        assert report.stdout.head == b"begun\n"
        assert (await starting).left_alive
        await until_gone(call_id)


@pytest.mark.parametrize("reason", ["timed_out", "output_limit"])
@pytest.mark.usefixtures("impatient")
async def test_what_survives_the_kills_of_its_own_watcher_is_told(machine: Machine, reason: str) -> None:
    call_id = new_call_id()
    timeout_s, cap_bytes = (0.3, 2**30) if reason == "timed_out" else (60, 1000)
    with undead(machine, call_id):
        report = await machine.run(
            "head -c 9000 /dev/zero; sleep 60", call_id=call_id, timeout_s=timeout_s, cap_bytes=cap_bytes, grace_s=0.1
        )
    assert (report.state, report.reason, report.left_alive) == ("ended", reason, True)
    assert report.cap_bytes == (None if reason == "timed_out" else 1000)
    await until_gone(call_id)


@pytest.mark.usefixtures("impatient")
async def test_a_stopped_owner_does_not_hold_up_the_end(machine: Machine) -> None:
    call_id = new_call_id()
    first = await machine.run("echo begun; sleep 60", call_id=call_id, wait_s=0.3, timeout_s=None)
    for pid in owner_processes(call_id):
        os.kill(pid, signal.SIGSTOP)
    (report,) = (await machine.ask(stop_request(call_id, grace_s=0.1, reason="timed_out"))).reports
    assert (report.state, report.reason, report.exit_code) == ("ended", "timed_out", None)
    assert report.left_alive is False, "its process is dead, although nobody has reaped it"
    assert report.began == first.began
    assert report.ended is not None
    await until_gone(call_id)
    again = await machine.run("echo begun; sleep 60", call_id=call_id, again=True)
    assert again.reason == "timed_out"


@pytest.mark.usefixtures("impatient")
async def test_a_folder_that_takes_no_file_does_not_stop_the_ending(machine: Machine) -> None:
    call_id = new_call_id()
    script = f"echo run >>ran; d=~/.sandhold/calls/{call_id}; until rm -rf $d; do :; done; : >$d; sleep 60"
    async with asyncio.timeout(20):
        assert (await machine.run(script, call_id=call_id, timeout_s=0.5, grace_s=0.1)).state == "cleaned"
    await until_gone(call_id)
    machine.folder(call_id).unlink()
    assert (await machine.run(script, call_id=call_id, again=True)).state == "cleaned"
    assert (machine.home / "ran").read_text() == "run\n"


async def test_a_command_that_kills_its_owner_and_its_watcher_is_interrupted_and_ended(machine: Machine) -> None:
    call_id = new_call_id()
    script = "echo run >>ran; kill -9 $(cat /proc/$PPID/task/$PPID/children | sed s/$$//) $PPID; sleep 60"
    report = await machine.run(script, call_id=call_id)
    assert (report.state, report.exit_code, report.ended) == ("interrupted", None, None)
    assert report.began is not None
    await until_gone(call_id)
    assert (await machine.run(script, call_id=call_id, again=True)).state == "interrupted"
    assert (machine.home / "ran").read_text() == "run\n"


async def test_a_command_whose_watcher_was_killed_is_ended_from_outside(machine: Machine) -> None:
    call_id = new_call_id()
    script = "sleep 0.5; kill -9 $(cat /proc/$PPID/task/$PPID/children | sed s/$$//); echo alone; sleep 60"
    report = await machine.run(script, call_id=call_id, wait_s=0.1, timeout_s=1)
    assert report.state == "running"
    known = [Position(call_id, 2**50, 2**50)]
    assert (await machine.ask(follow_request(known, wait_s=2, budget_bytes=1))).reports == [], "nobody ends it"
    (report,) = (await machine.ask(stop_request(call_id, grace_s=1, reason="timed_out"))).reports
    assert (report.reason, report.exit_code, report.stdout.head) == ("timed_out", 143, b"alone\n")
    await until_gone(call_id)


async def test_begin_and_end_are_told_by_one_clock(machine: Machine) -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    call_id = new_call_id()
    running = await machine.run("sleep 0.5", call_id=call_id, wait_s=0.1)
    ended = await machine.run("sleep 0.5", call_id=call_id, again=True)
    after = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert running.began is not None
    assert ended.began == running.began
    assert ended.ended is not None
    assert before * 100 - 1 <= running.began <= ended.ended - 49 <= after * 100
    assert (machine.folder(call_id) / "lock").read_text().split() == [ended.fingerprint, str(ended.began)]
