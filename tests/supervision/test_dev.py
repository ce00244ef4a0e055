"""`sandhold dev` as its user meets it: what it starts, what it survives, what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from daytona import AsyncDaytona, DaytonaConfig, SandboxState
from temporalio.client import WorkflowExecutionStatus

from sandhold.settings import Settings
from sandhold.temporal import connect
from tests.dev_process import Dev, ProcessId, dev_process, wait_until

SERVERS_ONLY = ("--without", "worker,console")


def _provider(dev: Dev) -> AsyncDaytona:
    key = (dev.data_dir / "daytona" / "api-key").read_text().strip()
    return AsyncDaytona(DaytonaConfig(api_key=key, api_url=dev.stack()["daytona_api_url"]))


async def _sandbox_with_a_command(dev: Dev) -> str:
    """The id of a sandbox in which a process runs that nobody waits for."""
    async with _provider(dev) as provider:
        sandbox = await provider.create()
        await sandbox.process.exec("setsid sleep 600 </dev/null >/dev/null 2>&1 &")
        return sandbox.id


def _command(process: ProcessId) -> bytes:
    return Path(f"/proc/{process.pid}/cmdline").read_bytes()


def _restarted(dev: Dev, part: str, old: int) -> bool:
    new = dev.pid_of(part)
    return new is not None and new != old


async def test_every_address_is_told_and_kept_in_the_stack_file(dev: Dev) -> None:
    stack = dev.stack()
    assert set(stack["pids"]) == {"dev", "temporal", "daytona", "worker", "console"}
    assert stack["pids"]["dev"] == dev.process.pid
    for name in ("temporal_address", "ui_url", "daytona_api_url", "console_url", "data_dir"):
        assert stack[name] in dev.text()
    client = await connect(Settings(data_dir=dev.data_dir, temporal_address=stack["temporal_address"]))
    assert client.namespace == "default"


def test_a_worker_is_a_child_process_that_can_be_found_by_its_command_line(dev: Dev) -> None:
    pid = dev.pid_of("worker")
    assert pid in {child.pid for child in dev.descendants()}
    assert b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("part", ["worker", "daytona", "temporal", "console"])
def test_a_part_that_is_killed_is_started_again_at_the_same_address(dev: Dev, part: str) -> None:
    before = dev.stack()
    old = before["pids"][part]
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: _restarted(dev, part, old), dev.text)
    wait_until(
        lambda: dev.text().rstrip().splitlines()[-1].endswith(f"runs again as process {dev.pid_of(part)}"), dev.text
    )
    after = dev.stack()
    assert {name: value for name, value in after.items() if name.endswith(("_address", "_url"))} == {
        name: value for name, value in before.items() if name.endswith(("_address", "_url"))
    }


def test_a_second_dev_on_the_same_folder_names_the_first_and_leaves_it_alone(dev: Dev) -> None:
    before = dev.stack()
    with dev_process(dev.data_dir) as second:
        assert second.code() == 1
        assert f"process {dev.process.pid}" in second.text()
    assert dev.stack() == before
    assert dev.process.poll() is None


def test_an_interrupt_ends_everything_in_order(tmp_path: Path) -> None:
    with dev_process(tmp_path / "data", "--workers", "2") as dev:
        dev.until_ready()
        assert {"worker", "worker-2"} <= set(dev.stack()["pids"])
        processes = dev.descendants()
        dev.signal(signal.SIGINT)
        assert dev.code() == 0, dev.text()
        assert not [process for process in processes if process.alive]
        assert not (dev.data_dir / "stack.json").exists()
        assert "stopped" in (dev.data_dir / "logs" / "worker.log").read_text().splitlines()[-1]


def test_a_second_interrupt_does_not_wait_for_anything(tmp_path: Path) -> None:
    with dev_process(tmp_path / "data", *SERVERS_ONLY) as dev:
        dev.until_ready()
        processes = dev.descendants()
        temporal = dev.pid_of("temporal")
        assert temporal is not None
        os.kill(temporal, signal.SIGSTOP)  # does not end when it is asked to
        dev.signal(signal.SIGINT)
        wait_until(lambda: not Path(f"/proc/{dev.pid_of('daytona') or 0}/exe").exists())
        dev.signal(signal.SIGINT)
        assert dev.code() == 0
        assert not [process for process in processes if process.alive]


def test_an_interrupt_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    with dev_process(tmp_path / "data", *SERVERS_ONLY) as dev:
        wait_until(lambda: "temporal: starting" in dev.text())
        processes = dev.descendants()
        dev.signal(signal.SIGTERM)
        assert dev.code() in {0, 130}
        assert not [process for process in processes if process.alive]
        assert not (dev.data_dir / "stack.json").exists()


async def test_a_killed_dev_takes_everything_with_it_and_the_next_one_goes_on_from_its_data(tmp_path: Path) -> None:
    with dev_process(tmp_path / "data", *SERVERS_ONLY) as dev:
        dev.until_ready()
        client = await connect(Settings(data_dir=dev.data_dir, temporal_address=dev.stack()["temporal_address"]))
        await client.start_workflow("Kept", id="kept", task_queue="nobody")
        inside = await _sandbox_with_a_command(dev)
        processes = dev.descendants()
        assert any(b"bwrap" in command for command in map(_command, processes)), "the sandbox is among them"
        os.killpg(dev.process.pid, signal.SIGKILL)
        assert dev.code() == -signal.SIGKILL
        wait_until(lambda: not [process for process in processes if process.alive], lambda: str(processes))
    with dev_process(tmp_path / "data", *SERVERS_ONLY) as dev:
        dev.until_ready()
        client = await connect(Settings(data_dir=dev.data_dir, temporal_address=dev.stack()["temporal_address"]))
        kept = await client.get_workflow_handle("kept").describe()
        assert kept.status is WorkflowExecutionStatus.RUNNING
        async with _provider(dev) as provider:
            assert (await provider.get(inside)).state == SandboxState.STOPPED


def test_a_stack_that_lost_its_guard_ends_rather_than_run_unguarded(tmp_path: Path) -> None:
    with dev_process(tmp_path / "data", "--without", "worker,daytona") as dev:
        dev.until_ready()
        processes = dev.descendants()
        (guard,) = [process for process in processes if b"guard_program" in _command(process)]
        os.kill(guard.pid, signal.SIGKILL)
        assert dev.code() == 1
        assert "guard" in dev.text()
        assert not [process for process in processes if process.alive]


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with dev_process(tmp_path / "data", "--temporal-port", str(port)) as dev:
            assert dev.code() == 1
            assert f"port {port}" in dev.text()
            assert not (dev.data_dir / "stack.json").exists()


def test_the_usual_port_gives_way_when_it_is_taken(dev: Dev, tmp_path: Path) -> None:
    with dev_process(tmp_path / "data", "--without", "worker,daytona") as second:
        second.until_ready()
        assert second.stack()["temporal_address"] != dev.stack()["temporal_address"]
        assert second.stack()["ui_url"] != dev.stack()["ui_url"]


def test_temporal_is_served_where_the_environment_says_whatever_a_dead_stack_left_behind(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "stack.json").write_text(json.dumps({"temporal_address": "127.0.0.1:1", "pids": {"dev": 1}}))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {"SANDHOLD_TEMPORAL_ADDRESS": f"127.0.0.1:{port}"}
    with dev_process(data, "--without", "worker,daytona", env=env) as dev:
        dev.until_ready()
        assert dev.stack()["temporal_address"] == f"127.0.0.1:{port}"
        assert dev.stack()["pids"]["dev"] == dev.process.pid


def test_an_address_elsewhere_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with dev_process(tmp_path / "data", env={"SANDHOLD_TEMPORAL_ADDRESS": "temporal.example:7233"}) as dev:
        assert dev.code() == 1
        assert "--without temporal" in dev.text()


def test_a_part_that_cannot_start_shows_the_end_of_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "temporal.db").write_text("this is no database " * 100)
    with dev_process(data) as dev:
        wait_until(lambda: "temporal: starting" in dev.text())
        processes = dev.descendants()
        assert dev.code() == 1
        assert "the end of" in dev.text()
        assert "not a database" in dev.text()
        assert not [process for process in processes if process.alive]


def test_a_part_that_does_not_exist_cannot_be_left_out(tmp_path: Path) -> None:
    with dev_process(tmp_path / "data", "--without", "wrker") as dev:
        assert dev.code() == 2
        assert "worker" in dev.text()
