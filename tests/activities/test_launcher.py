"""The launcher on every sh that is here: whatever a command does, it runs once and its end is told exactly."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from pathlib import Path

import pytest

from activities.launcher import (
    Captured,
    LauncherRequest,
    Position,
    Script,
    TornAnswer,
    follow_request,
    parse_answer,
    start_request,
    stop_request,
)
from activities.launcher.request import PROGRAMS, STDERR_WINDOW_BYTES, STDOUT_WINDOW_BYTES
from tests.activities.shells import Machine, new_call_id, processes_with, shells_present

LEAST_PROGRAMS = ["cat", "date", "dd", "env", "grep", "head", "mkdir", "mv", "od", "rm", "sleep", "tail", "wc"]
"""What a machine has that lacks setsid, timeout, base64, stat and mkfifo."""


@pytest.fixture(params=shells_present())
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine.made_of(tmp_path, request.param)


@pytest.fixture
def dash(tmp_path: Path) -> Machine:
    return Machine.made_of(tmp_path, "dash")


def following(call_ids: list[str], *, wait_s: float) -> LauncherRequest:
    """A request that knows all output there will ever be: it waits for ends alone."""
    return follow_request([Position(each, 2**50, 2**50) for each in call_ids], wait_s=wait_s, budget_bytes=2**20)


async def test_stdout_and_stderr_are_kept_apart_and_the_exit_code_is_exact(machine: Machine) -> None:
    report = await machine.run("echo out; echo err >&2; exit 3")
    assert report.state == "ended"
    assert report.exit_code == 3
    assert report.reason is None
    assert report.stdout == Captured(4, b"out\n")
    assert report.stderr == Captured(4, b"err\n")


@pytest.mark.parametrize(
    ("script", "code", "stdout"),
    [
        ("cat <<END\none\ntwo\nEND", 0, b"one\ntwo\n"),
        ("echo said # a comment at the end", 0, b"said\n"),
        ("echo said\n# only a comment", 0, b"said\n"),
        ("echo 'it'\"'\"'s' \"$((1 + 1))\" `echo back` \\\\", 0, b"it's 2 back \\\n"),
        ("printf '%s' 'a\nb'", 0, b"a\nb"),
        ("exit 5; echo never", 5, b""),
        ("exec sh -c 'echo other; exit 6'", 6, b"other\n"),
        ("set -e; false; echo never", 1, b""),
        ("kill $$; echo never", 143, b""),
        ("kill -9 $$; echo never", 137, b""),
        ("trap 'echo bye' EXIT; exit 4", 4, b"bye\n"),
        ("trap 'echo caught; exit 7' TERM; kill 0; sleep 1", 7, b"caught\n"),
        ("yes | head -n 1", 0, b"y\n"),
        ("nonsense-command", 127, b""),
        ("if", 2, b""),
        ("exit 124", 124, b""),
        ("", 0, b""),
    ],
)
async def test_fault_1_and_2_scripts_are_data_and_end_as_they_say(
    machine: Machine, script: str, code: int, stdout: bytes
) -> None:
    report = await machine.run(script)
    assert (report.state, report.reason, report.stdout.head) == ("ended", None, stdout)
    assert report.exit_code == code or (script == "if" and report.exit_code in {1, 2})


async def test_fault_3_a_command_that_reads_stdin_finds_its_end(machine: Machine) -> None:
    assert (await machine.run("cat; read line || echo none")).stdout.head == b"none\n"


async def test_fault_3_a_background_grandchild_that_holds_stdout_delays_nothing_and_lives_on(machine: Machine) -> None:
    call_id = new_call_id()
    report = await machine.run("sleep 50 & echo started", call_id=call_id, timeout_s=100)
    assert report.stdout.head == b"started\n"
    left = processes_with(f"SANDHOLD_CALL={call_id}/".encode())
    assert len(left) == 1
    os.kill(left[0], signal.SIGKILL)


async def test_fault_1_a_bad_cwd_is_an_error_before_anything_runs(machine: Machine) -> None:
    (machine.home / "file").touch()
    for cwd, kind in [("/nowhere; touch ran", "cwd_missing"), ("file", "cwd_not_a_directory")]:
        call_id = new_call_id()
        answer = await machine.ask(
            machine.request("touch ran; touch ran", call_id=call_id, cwd=f"{machine.home}/{cwd}")
        )
        assert answer.refusal is not None
        assert answer.refusal.kind == kind
        assert not machine.folder(call_id).exists()
    assert not (machine.home / "ran").exists()


async def test_a_directory_with_any_name_can_be_the_cwd(machine: Machine) -> None:
    for name in ["with space", "-", "--", "a'b\"c", "$HOME", "new\nline", "~", "ä"]:
        (machine.home / name).mkdir()
        (machine.home / name / "mark").write_text(name)
        report = await machine.run("cat mark", cwd=f"{machine.home}/{name}")
        assert report.stdout.head.decode() == name


async def test_a_script_of_a_megabyte_runs_from_an_upload(machine: Machine, tmp_path: Path) -> None:
    script = "total=0\n" + "total=$((total + 1))\n" * 50_000 + "echo $total\ncat <<END\nlast\nEND"
    assert len(script) > 1_000_000
    upload = tmp_path / "upload"
    upload.write_text(script)
    call_id = new_call_id()
    report = await machine.run(script, call_id=call_id, upload_path=str(upload))
    assert report.stdout.head == b"50000\nlast\n"
    assert not upload.exists()

    upload.write_text(script)
    again = await machine.run(script, call_id=call_id, upload_path=str(upload), again=True)
    assert again == report
    assert not upload.exists()


async def test_an_upload_that_vanished_starts_nothing(dash: Machine) -> None:
    call_id = new_call_id()
    answer = await dash.ask(dash.request("echo x", call_id=call_id, upload_path="/nowhere"))
    assert answer.refusal is not None
    assert answer.refusal.kind == "script_missing"
    assert (await dash.run("echo x", call_id=call_id)).stdout.head == b"x\n"


async def test_a_script_just_below_the_limit_of_a_variable_needs_no_upload(machine: Machine) -> None:
    script = f"echo {'x' * 95_900}"
    assert (await machine.run(script)).stdout.size == 95_901


async def test_the_environment_reaches_the_command_and_nothing_else(machine: Machine) -> None:
    """Neither argv nor a file shows it, and the launcher changes nothing in it."""
    secret = f"secret-{os.getpid()}-value"
    names = {"SECRET": secret, "mode": "prod", "dir": "/data", "sh_x": "1", "CDPATH": "/usr", "with_newline": "a\nb"}
    machine.env.update(names)
    call_id = new_call_id()
    report = await machine.run(
        'printf %s "$SECRET" >pattern; grep -lf pattern /proc/[0-9]*/cmdline 2>/dev/null; env', call_id=call_id
    )
    seen = report.stdout.head.decode()
    assert "/cmdline\n" not in seen
    for name, value in names.items():
        assert f"{name}={value}\n" in seen
    assert [line for line in seen.splitlines() if "SANDHOLD" in line] == [f"SANDHOLD_CALL={call_id}/"]
    written = [path.read_bytes() for path in machine.folder(call_id).iterdir() if path.name != "stdout"]
    assert not any(secret.encode() in data for data in written)


async def test_interrupt_and_quit_have_their_usual_effect_in_a_command(machine: Machine) -> None:
    """A shell's background commands ignore both, and what is ignored at the start can never be unignored."""
    report = await machine.run("grep SigIgn /proc/self/status; kill -INT $$; echo never")
    ignored = int(report.stdout.head.split()[1], 16)
    assert not ignored & (1 << (signal.SIGINT - 1) | 1 << (signal.SIGQUIT - 1))
    assert report.exit_code == 130


async def test_output_is_binary_safe(machine: Machine) -> None:
    data = bytes(range(256)) * 20
    (machine.home / "data").write_bytes(data)
    report = await machine.run("cat data; head -c 300 data >&2")
    assert report.stdout == Captured(len(data), data)
    assert report.stderr == Captured(300, data[:300])


@pytest.mark.parametrize("size", [1, 3999, 4000, 4096, 4097, STDOUT_WINDOW_BYTES, STDOUT_WINDOW_BYTES + 1, 3_000_000])
async def test_output_of_any_size_is_counted_exactly_and_told_within_the_window(machine: Machine, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (machine.home / "data").write_bytes(data)
    report = await machine.run("cat data; cat data >&2")
    for seen, window in [(report.stdout, STDOUT_WINDOW_BYTES), (report.stderr, STDERR_WINDOW_BYTES)]:
        assert seen.size == size
        assert len(seen.head) + len(seen.tail) == min(size, window)
        assert data.startswith(seen.head)
        assert data.endswith(seen.tail)


async def test_fault_5_many_racers_start_a_command_once(machine: Machine) -> None:
    call_id = new_call_id()
    script = "echo run >>ran; sleep 0.2; echo done"
    reports = await asyncio.gather(*(machine.run(script, call_id=call_id, again=n > 0) for n in range(20)))
    assert (machine.home / "ran").read_text() == "run\n"
    assert {report.stdout.head for report in reports} == {b"done\n"}
    assert {report.exit_code for report in reports} == {0}


async def test_fault_5_a_command_is_not_run_again_by_a_retry_whenever_the_request_was_killed(machine: Machine) -> None:
    moments = random.Random(7)

    async def round_of(number: int) -> None:
        call_id = new_call_id()
        script = f"echo run >>ran-{number}; sleep 0.1; echo done; exit 9"
        for attempt in range(3):
            request = machine.request(script, call_id=call_id, again=attempt > 0)
            await machine.ask_and_kill(request, moments.uniform(0, 0.04))
        report = await machine.run(script, call_id=call_id, again=True)
        assert (report.exit_code, report.stdout.head) == (9, b"done\n")
        assert (machine.home / f"ran-{number}").read_text() == "run\n"

    for first in range(0, 24, 4):
        await asyncio.gather(*(round_of(number) for number in range(first, first + 4)))


async def test_fault_6_a_timeout_ends_the_group_and_what_left_it_and_keeps_the_output(machine: Machine) -> None:
    call_id = new_call_id()
    script = "echo before; trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 60' & sleep 60; sleep 60"
    report = await machine.run(script, call_id=call_id, timeout_s=0.3, grace_s=0.3)
    assert (report.state, report.reason) == ("ended", "timed_out")
    assert report.stdout.head == b"before\n"
    assert processes_with(f"SANDHOLD_CALL={call_id}/".encode()) == []


async def test_a_timeout_lets_a_command_clean_up(machine: Machine) -> None:
    script = "trap 'echo cleaned; exit 8' TERM; echo started; while :; do sleep 0.05; done"
    report = await machine.run(script, timeout_s=0.3, grace_s=10)
    assert (report.reason, report.exit_code) == ("timed_out", 8)
    assert report.stdout.head == b"started\ncleaned\n"


async def test_a_timeout_is_kept_when_every_request_is_gone(machine: Machine) -> None:
    call_id = new_call_id()
    request = machine.request("echo run >>ran; sleep 60", call_id=call_id, timeout_s=0.6)
    await machine.ask_and_kill(request, 0.3)
    answer = await machine.ask(following([call_id], wait_s=20))
    assert [report.reason for report in answer.reports] == ["timed_out"]


async def test_a_request_stops_waiting_and_a_later_one_attaches(machine: Machine) -> None:
    call_id = new_call_id()
    script = "echo one; sleep 0.6; echo two"
    first = await machine.run(script, call_id=call_id, wait_s=0.1)
    assert first.state == "running"
    assert first.began is not None
    second = await machine.run(script, call_id=call_id, wait_s=0.1, again=True)
    assert (second.state, second.began) == ("running", first.began)
    third = await machine.run(script, call_id=call_id, again=True)
    assert third.stdout.head == b"one\ntwo\n"
    assert third.began is not None
    assert third.ended is not None
    assert third.ended - third.began >= 55


async def test_a_follower_is_told_of_those_that_are_over_and_only_of_them(machine: Machine) -> None:
    calls = [new_call_id() for _ in range(3)]
    for call_id, script in zip(calls, ["sleep 30", "sleep 0.4; exit 4", "sleep 30"], strict=True):
        await machine.run(script, call_id=call_id, wait_s=0)
    answer = await machine.ask(following(calls, wait_s=20))
    assert [(report.folder, report.exit_code) for report in answer.reports] == [(calls[1], 4)]
    assert (await machine.ask(following([calls[0], calls[2]], wait_s=0.1))).reports == []
    assert list((machine.home / ".sandhold" / "bells").iterdir()) == []
    await asyncio.gather(*(machine.ask(stop_request(call_id, grace_s=1)) for call_id in calls))


async def test_a_killed_followers_bell_is_taken_down(dash: Machine) -> None:
    call_id = new_call_id()
    await dash.run("sleep 1", call_id=call_id, wait_s=0)
    await dash.ask_and_kill(following([call_id], wait_s=20), 0.2)
    assert len(list((dash.home / ".sandhold" / "bells").iterdir())) == 1
    assert [report.exit_code for report in (await dash.ask(following([call_id], wait_s=20))).reports] == [0]
    assert list((dash.home / ".sandhold" / "bells").iterdir()) == []


async def test_a_stop_ends_the_group_after_its_grace_and_may_be_repeated(machine: Machine) -> None:
    call_id = new_call_id()
    script = "trap 'echo asked' TERM; setsid sleep 60 & echo started; while :; do sleep 0.1; done"
    await machine.run(script, call_id=call_id, wait_s=0.2)
    for _ in range(2):
        (report,) = (await machine.ask(stop_request(call_id, grace_s=0.3))).reports
        assert (report.state, report.reason, report.exit_code) == ("ended", "cancelled", 137)
        assert report.stdout.head == b"started\nasked\n"
    assert processes_with(f"SANDHOLD_CALL={call_id}/".encode()) == []


async def test_a_stop_at_any_moment_of_a_start_leaves_nothing_running(machine: Machine) -> None:
    moments = random.Random(3)

    async def round_of(number: int) -> None:
        call_id = new_call_id()
        starting = asyncio.create_task(machine.run(f"echo run >>ran-{number}; sleep 60", call_id=call_id, timeout_s=20))
        await asyncio.sleep(moments.uniform(0, 0.04))
        (stopped,) = (await machine.ask(stop_request(call_id, grace_s=1))).reports
        assert (stopped.state, stopped.reason) == ("ended", "cancelled")
        assert (await starting).reason == "cancelled"
        assert processes_with(f"SANDHOLD_CALL={call_id}/".encode()) == []

    for first in range(0, 12, 4):
        await asyncio.gather(*(round_of(number) for number in range(first, first + 4)))


async def test_a_call_that_was_stopped_before_its_start_never_starts(machine: Machine) -> None:
    call_id = new_call_id()
    (stopped,) = (await machine.ask(stop_request(call_id, grace_s=0))).reports
    assert (stopped.state, stopped.reason, stopped.exit_code) == ("ended", "cancelled", None)
    assert (await machine.run("touch ran", call_id=call_id)).reason == "cancelled"
    assert not (machine.home / "ran").exists()


async def test_a_stop_of_an_ended_command_does_not_change_its_end(machine: Machine) -> None:
    call_id = new_call_id()
    await machine.run("echo fine", call_id=call_id)
    (report,) = (await machine.ask(stop_request(call_id, grace_s=0))).reports
    assert (report.exit_code, report.reason, report.stdout.head) == (0, None, b"fine\n")


async def test_a_stop_does_not_touch_the_call_whose_id_begins_with_the_same_letters(machine: Machine) -> None:
    call_id = new_call_id()
    for each in (call_id, f"{call_id}0"):
        await machine.run("sleep 0.7; echo fine", call_id=each, wait_s=0.1)
    await machine.ask(stop_request(call_id, grace_s=0))
    (report,) = (await machine.ask(following([f"{call_id}0"], wait_s=20))).reports
    assert (report.exit_code, report.stdout.head) == (0, b"fine\n")


async def test_a_command_whose_owner_was_killed_is_interrupted_and_never_run_again(machine: Machine) -> None:
    call_id = new_call_id()
    script = "echo run >>ran; echo begun; sleep 60"
    await machine.run(script, call_id=call_id, wait_s=0.3)
    os.kill(machine.owner_of(call_id), signal.SIGKILL)
    for _ in range(2):
        report = await machine.run(script, call_id=call_id, again=True)
        assert (report.state, report.exit_code, report.stdout.head) == ("interrupted", None, b"begun\n")
    assert (machine.home / "ran").read_text() == "run\n"
    assert processes_with(f"SANDHOLD_CALL={call_id}/".encode()) == []


@pytest.mark.parametrize("born", ["12345", "x"])
async def test_a_pid_that_is_used_again_is_not_taken_for_the_command(machine: Machine, born: str) -> None:
    call_id = new_call_id()
    innocent = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    folder = machine.folder(call_id)
    folder.mkdir(parents=True)
    (folder / "lock").write_text("hash\n")
    (folder / f"owner.{innocent.pid}.{born}.{innocent.pid}").touch()
    (report,) = (await machine.ask(following([call_id], wait_s=5))).reports
    assert report.state == "interrupted"
    (stopped,) = (await machine.ask(stop_request(call_id, grace_s=0))).reports
    assert stopped.state == "interrupted"
    assert innocent.returncode is None
    innocent.kill()
    await innocent.wait()


async def test_an_owner_of_which_only_its_beginning_is_on_record_is_known_by_its_mark(machine: Machine) -> None:
    call_id = new_call_id()
    await machine.run("sleep 60", call_id=call_id, wait_s=0.3)
    folder, owner = machine.folder(call_id), machine.owner_of(call_id)
    async with asyncio.timeout(10):
        while len(records := sorted(path.name for path in folder.glob("owner.*"))) < 2:
            await asyncio.sleep(0.05)
    full, first = records
    assert first == f"owner.{owner}.x.{owner}"
    assert re.fullmatch(rf"owner\.{owner}\.\d+\.{owner}", full)
    (folder / full).unlink()
    assert (await machine.ask(following([call_id], wait_s=0.1))).reports == []
    (stopped,) = (await machine.ask(stop_request(call_id, grace_s=0))).reports
    assert stopped.state == "ended"


async def test_a_command_that_removes_its_own_folder_is_not_run_again(machine: Machine) -> None:
    call_id = new_call_id()
    script = "echo run >>ran; rm -rf ~/.sandhold; sleep 0.6; exit 4"
    await machine.ask_and_kill(machine.request(script, call_id=call_id), 0.3)
    running = await machine.run(script, call_id=call_id, wait_s=0, again=True)
    assert running.state == "running"
    (report,) = (await machine.ask(following([call_id], wait_s=20))).reports
    assert (report.state, report.exit_code) == ("ended", 4)
    assert (await machine.run(script, call_id=call_id, again=True)).exit_code == 4
    assert (machine.home / "ran").read_text() == "run\n"


@pytest.mark.parametrize(
    "name",
    [
        "ended.x.y.z.timed_out",
        "ended.0.1.2.a b",
        "ended.0.1.2.",
        "ended.x y.1.2.-",
        "ended.1.0.1.2.-",
        "ended.0\n@slice stdout 1 2 3.1.2.-",
        "ended.0.1.2.output_limit:",
        "ended.0.1.2.output_limit:1:2",
        "ended.0.1.2.cancelled:x",
    ],
)
async def test_a_forged_end_breaks_no_answer(machine: Machine, name: str) -> None:
    """A command can write to its own folder; it fools nobody but its caller."""
    forger, innocent = new_call_id(), new_call_id()
    machine.env["NAME"] = name
    script = f'touch "$HOME/.sandhold/calls/{forger}/$NAME"; sleep 60'
    await machine.run(script, call_id=forger, wait_s=0.2)
    report = await machine.run("echo fine; exit 3", call_id=innocent)
    assert (report.exit_code, report.stdout.head) == (3, b"fine\n")
    answer = await machine.ask(follow_request([Position(forger), Position(innocent)], wait_s=5, budget_bytes=9999))
    forged, true = answer.reports
    assert (forged.state, forged.exit_code, forged.ended, forged.reason) == ("ended", None, None, None)
    assert (true.state, true.exit_code, true.stdout.head) == ("ended", 3, b"fine\n")
    machine.folder(forger).joinpath(name).unlink()
    (stopped,) = (await machine.ask(stop_request(forger, grace_s=1))).reports
    assert (stopped.state, stopped.reason) == ("ended", "cancelled")


async def test_the_true_end_is_told_beside_a_forged_one(machine: Machine) -> None:
    call_id = new_call_id()
    folder = f"~/.sandhold/calls/{call_id}"
    report = await machine.run(
        f"touch {folder}/ended.! {folder}/ended.z; ln -s / {folder}/ended.,; exit 3", call_id=call_id
    )
    report = await machine.run("", call_id=call_id, again=True)
    assert (report.state, report.exit_code) == ("ended", 3)


async def test_a_forged_ending_does_not_keep_an_end_from_being_told(machine: Machine) -> None:
    call_id = new_call_id()
    folder = f"~/.sandhold/calls/{call_id}"
    report = await machine.run(f"touch {folder}/ending.a.1+ {folder}/ending.cancelled.-; exit 3", call_id=call_id)
    assert (report.state, report.exit_code, report.reason) == ("ended", 3, None)


def test_what_cannot_be_read_of_one_command_costs_no_other() -> None:
    torn_call = "@call a ended 0 1 2 - torn\xa0hash\n"
    torn_output = "@call b ended 0 1 2 - h\n@stdout 2 hex\n 7\n@slice stdout 2 0 -\n"
    whole = "@call c ended 3 1 2 - h\n@stdout 2 hex\n 78 0a\n"
    answer = parse_answer("n", f"<n 5\n{torn_call}{torn_output}{whole}n>\n")
    assert [(each.folder, each.state, each.exit_code, each.stdout.head) for each in answer.reports] == [
        ("a", "ended", None, b""),
        ("c", "ended", 3, b"x\n"),
    ], "b is asked for again: its output is not known"
    with pytest.raises(TornAnswer):
        parse_answer("n", f"<n 5\n{torn_output}n>\n")


async def test_a_call_that_was_never_started_is_absent_for_a_follower(machine: Machine) -> None:
    (report,) = (await machine.ask(following([new_call_id()], wait_s=5))).reports
    assert report.state == "absent"


async def test_another_script_under_the_same_call_id_is_told_apart(machine: Machine) -> None:
    call_id = new_call_id()
    await machine.run("echo first", call_id=call_id)
    other = await machine.run("touch ran", call_id=call_id)
    assert other.fingerprint == Script("echo first", str(machine.home)).fingerprint
    assert other.fingerprint != Script("touch ran", str(machine.home)).fingerprint
    assert not (machine.home / "ran").exists()


async def test_fault_19_two_commands_at_once_share_nothing(machine: Machine) -> None:
    """Neither a directory, nor variables, nor a timeout."""
    slow = asyncio.create_task(machine.run("cd /; shared=1; sleep 0.8; pwd"))
    quick = await machine.run("sleep 60", timeout_s=0.2)
    other = await machine.run('echo "${shared-unset}"; pwd')
    assert quick.reason == "timed_out"
    assert other.stdout.head.decode() == f"unset\n{machine.home}\n"
    assert (await slow).stdout.head == b"/\n"


async def test_fifty_commands_at_once_end_with_their_own_results(machine: Machine) -> None:
    reports = await asyncio.gather(*(machine.run(f"sleep 0.2; echo {n}; exit {n}") for n in range(50)))
    assert [report.exit_code for report in reports] == list(range(50))
    assert [report.stdout.head for report in reports] == [f"{n}\n".encode() for n in range(50)]


async def test_short_commands_leave_no_process_behind(machine: Machine) -> None:
    before = len(processes_with(str(machine.home).encode()))
    for _ in range(5):
        await asyncio.gather(*(machine.run("true") for _ in range(6)))
    assert len(processes_with(str(machine.home).encode())) == before == 0


async def test_a_command_that_fills_its_output_while_it_is_told_stays_bounded(dash: Machine) -> None:
    call_id = new_call_id()
    report = await dash.run("(while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done) & sleep 0.3", call_id=call_id)
    assert len(report.stdout.head) + len(report.stdout.tail) <= STDOUT_WINDOW_BYTES
    for pid in processes_with(f"SANDHOLD_CALL={call_id}/".encode()):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("shell", ["dash", "bash"])
async def test_a_machine_without_setsid_timeout_base64_stat_and_mkfifo_is_good_enough(
    shell: str, tmp_path: Path
) -> None:
    machine = Machine.made_of(tmp_path, shell, programs=LEAST_PROGRAMS)
    data = random.Random(1).randbytes(200_000)
    (machine.home / "data").write_bytes(data)
    report = await machine.run("echo run >>ran; cat data; exit 3")
    assert (report.exit_code, report.stdout.size) == (3, 200_000)
    assert data.startswith(report.stdout.head)
    assert data.endswith(report.stdout.tail)

    call_id = new_call_id()
    await machine.run("sleep 0.5; echo done", call_id=call_id, wait_s=0.1)
    assert (await machine.run("sleep 0.5; echo done", call_id=call_id, again=True)).stdout.head == b"done\n"

    timed = await machine.run("echo some; sleep 60", call_id=new_call_id(), timeout_s=0.2)
    assert (timed.reason, timed.stdout.head) == ("timed_out", b"some\n")


async def test_a_home_that_cannot_be_written_is_told(dash: Machine) -> None:
    (dash.home / ".sandhold").write_text("in the way")
    answer = await dash.ask(dash.request("echo never"))
    assert answer.refusal is not None
    assert answer.refusal.kind == "folder"
    assert "sandhold" in answer.refusal.detail


async def test_a_script_that_arrives_in_part_is_not_run_and_can_be_started_later(
    machine: Machine, tmp_path: Path
) -> None:
    mover = Path(machine.path.split(":")[0]) / "mv"
    mover.write_text('#!/bin/sh\nhead -c 20 "$1" >"$2"\necho "mv: $2: No space left on device" >&2\nexit 1\n')
    mover.chmod(0o755)
    script, call_id = f"echo x >>ran\n#{'x' * 100_000}\necho y >>ran", new_call_id()
    upload = tmp_path / "upload"
    upload.write_text(script)
    answer = await machine.ask(machine.request(script, call_id=call_id, upload_path=str(upload)))
    assert answer.refusal is not None
    assert answer.refusal.kind == "script"
    assert "No space left on device" in answer.refusal.detail
    assert not (machine.home / "ran").exists()
    assert [path.name for path in machine.folder(call_id).iterdir()] == []
    mover.unlink()
    upload.write_text(script)
    report = await machine.run(script, call_id=call_id, upload_path=str(upload), again=True)
    assert (report.state, report.exit_code, report.disk_was_full) == ("ended", 0, False)
    assert (machine.home / "ran").read_text() == "x\ny\n"


async def test_an_answer_is_found_among_noise_and_a_torn_one_is_noticed(dash: Machine) -> None:
    request = dash.request("echo hi")
    process = await dash.begin(request)
    output = (await process.communicate())[0].decode()
    noisy = f"zsh: a warning\n{output}\nbash: another"
    assert parse_answer(request.nonce, noisy).reports[0].stdout.head == b"hi\n"
    for cut in range(len(output) - 1):
        with pytest.raises(TornAnswer):
            parse_answer(request.nonce, output[:cut])


def test_nothing_of_the_users_is_in_the_command_line() -> None:
    request = start_request(
        "a.b:c-1",
        Script("echo script", "/somewhere"),
        wait_s=8,
        timeout_s=1,
        grace_s=1,
        again=False,
        cap_bytes=2**30,
    )
    assert "echo script" not in request.command
    assert "/somewhere" not in request.command
    assert request.env["SANDHOLD_SCRIPT"] == "echo script"


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_the_launcher_fits_beside_the_largest_script(program: str) -> None:
    assert len(program) < 24_000
    assert not any(line.lstrip().startswith("#") for line in program.splitlines())
