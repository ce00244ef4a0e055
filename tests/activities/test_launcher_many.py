"""A follower of as many commands as may run in a sandbox, on every sh that is here: it answers, and costs little."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from activities.launcher import Answer, LauncherRequest, Position, Slice, follow_request, parse_answer
from tests.activities.shells import Machine, shells_present

MOST_COMMANDS = 200
CPU_S = 1.5


@pytest.fixture(params=shells_present())
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine.made_of(tmp_path, request.param)


def make_calls(machine: Machine, *, ended: bool) -> list[str]:
    """The folders of commands that have written two bytes; all of those that run are owned by this process."""
    born = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]
    calls = [f"call-{number:03}-{'x' * 119}" for number in range(MOST_COMMANDS)]
    for call_id in calls:
        folder = machine.folder(call_id)
        folder.mkdir(parents=True)
        (folder / "lock").write_text("hash 1\n")
        (folder / "stdout").write_text("x\n")
        (folder / "stderr").touch()
        (folder / f"owner.{os.getpid()}.{born}.0").touch()
        if ended:
            (folder / "ended.0.1.2.-").touch()
    assert {len(call_id) for call_id in calls} == {128}
    return calls


def ask(machine: Machine, request: LauncherRequest) -> tuple[Answer, float]:
    """The answer, and the processor time of the request with every process that it has waited for."""
    process = subprocess.Popen(
        [str(Path(machine.path.split(":")[0]) / "sh"), "-c", f"ulimit -t 4; {request.command}"],
        env={"PATH": machine.path, "HOME": str(machine.home), **request.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout as output:
        answer = parse_answer(request.nonce, output.read().decode())
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return answer, used.ru_utime + used.ru_stime


def test_following_many_commands_that_run_costs_little(machine: Machine) -> None:
    calls = make_calls(machine, ended=False)
    nothing_new = follow_request([Position(each, 2, 0) for each in calls], wait_s=0, budget_bytes=2**20)
    answer, cpu_s = ask(machine, nothing_new)
    assert answer.reports == []
    assert cpu_s < CPU_S
    known = [Position(each, 0 if each in {calls[7], calls[-1]} else 2, 0) for each in calls]
    answer, cpu_s = ask(machine, follow_request(known, wait_s=0.1, budget_bytes=2**20))
    assert [(each.folder, each.stdout_slice) for each in answer.reports] == [
        (calls[7], Slice(2, 0, b"x\n")),
        (calls[-1], Slice(2, 0, b"x\n")),
    ]
    assert cpu_s < CPU_S


def test_following_many_commands_that_are_over_costs_little(machine: Machine) -> None:
    calls = make_calls(machine, ended=True)
    answer, cpu_s = ask(machine, follow_request([Position(each) for each in calls], wait_s=0, budget_bytes=2**20))
    assert [each.folder for each in answer.reports] == calls[: len(answer.reports)]
    assert answer.reports
    assert {(each.state, each.exit_code, each.stdout.head) for each in answer.reports} == {("ended", 0, b"x\n")}
    assert {each.stdout_slice for each in answer.reports} == {Slice(2, 0, b"x\n")}
    assert cpu_s < CPU_S


def test_following_many_commands_that_have_removed_their_folders_costs_little(machine: Machine) -> None:
    calls = make_calls(machine, ended=False)
    shutil.rmtree(machine.home / ".sandhold")
    owns = {"SANDHOLD_OWNS": f"{calls[0]}/"}
    with subprocess.Popen(["sleep", "60"], env=owns) as owner:
        known = [Position(each) for each in [calls[0]] * MOST_COMMANDS]
        answer, cpu_s = ask(machine, follow_request(known, wait_s=0, budget_bytes=2**20))
        owner.kill()
    assert answer.reports == []
    assert cpu_s < CPU_S


def test_sizes_are_told_of_the_right_files_where_some_are_missing(machine: Machine) -> None:
    calls = make_calls(machine, ended=False)[:6]
    sizes = {each: (number + 1, 10 * number + 1) for number, each in enumerate(calls)}
    for each, (stdout, stderr) in sizes.items():
        (machine.folder(each) / "stdout").write_bytes(b"o" * stdout)
        (machine.folder(each) / "stderr").write_bytes(b"e" * stderr)
    for number, stream in [(0, "stdout"), (2, "stderr"), (3, "stdout"), (3, "stderr"), (5, "stderr")]:
        (machine.folder(calls[number]) / stream).unlink()
        stdout, stderr = sizes[calls[number]]
        sizes[calls[number]] = (0, stderr) if stream == "stdout" else (stdout, 0)
    answer, _ = ask(machine, follow_request([Position(each) for each in calls], wait_s=0.6, budget_bytes=2**20))
    told = {
        each.folder: (each.stdout_slice.size, each.stderr_slice.size)
        for each in answer.reports
        if each.stdout_slice and each.stderr_slice
    }
    assert told == {each: both for each, both in sizes.items() if any(both)}
