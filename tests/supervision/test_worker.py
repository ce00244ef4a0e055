"""The worker as a process: how it starts, says how it is, and stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from activities.clients import ProviderPool
from activities.provider import ProviderAccess
from sandhold.client import Sandhold, Session
from sandhold.contracts.names import Activity, sandbox_workflow_id
from sandhold.github import GitHub
from sandhold.health import Health, WorkerProbe
from sandhold.settings import Settings
from tests.dev_process import PATIENCE_S, Dev, clean_environment, wait_until
from tests.stack import KEY_RING, RING, Stack
from worker import activities_of, build_workers, run_until

REPOSITORY = Path(__file__).resolve().parent.parent.parent
NO_PROVIDER = {
    "SANDHOLD_DAYTONA_API_URL": "http://127.0.0.1:1/api",
    "SANDHOLD_DAYTONA_API_KEY": "none",
    "SANDHOLD_KEYRING": KEY_RING,
}


@contextlib.contextmanager
def worker_process(data_dir: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, REPOSITORY / "worker.py"],
        env=clean_environment() | {"SANDHOLD_DATA_DIR": str(data_dir)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _logged(text: str) -> list[dict[str, Any]]:
    """Every line of the log: each is one JSON object."""
    return [json.loads(line) for line in text.splitlines()]


def _health(url: str) -> tuple[int, dict[str, str]]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@dataclass(frozen=True)
class CannotStart:
    """What is wrong, the exit code, and what the last line of the log must name."""

    env: dict[str, str]
    code: int
    named: str


async def test_what_keeps_a_worker_from_starting_is_named_and_told_by_its_exit_code(
    tmp_path: Path, temporal: WorkflowEnvironment
) -> None:
    address = temporal.client.service_client.config.target_host
    unreachable = {"SANDHOLD_TEMPORAL_ADDRESS": "127.0.0.1:1", "SANDHOLD_RECONNECT_S": "0.5"}
    cases = [
        CannotStart({"SANDHOLD_HEALTH_ADDRESS": "nowhere"}, 2, "SANDHOLD_HEALTH_ADDRESS"),
        CannotStart({"SANDHOLD_TEMPORAL_ADDRESS": address, "SANDHOLD_TEMPORAL_NAMESPACE": "gone"}, 2, "'gone'"),
        CannotStart(unreachable, 4, "127.0.0.1:1"),
        CannotStart({"SANDHOLD_KEYRING": ""}, 2, f"there is no key ring at {tmp_path / 'keyring.json'}"),
        CannotStart({"SANDHOLD_KEYRING": '{"version": 1, "keys": []}'}, 2, "SANDHOLD_KEYRING"),
    ]

    async def fails(case: CannotStart) -> None:
        with worker_process(tmp_path, **NO_PROVIDER | case.env) as worker:
            out, err = await asyncio.to_thread(worker.communicate, timeout=PATIENCE_S)
            assert worker.returncode == case.code, err
            assert out == ""
            assert case.named in _logged(err)[-1]["reason"]

    await asyncio.gather(*(fails(case) for case in cases))


def test_a_worker_that_waits_for_temporal_can_be_stopped(tmp_path: Path) -> None:
    env = {"SANDHOLD_TEMPORAL_ADDRESS": "127.0.0.1:1", "SANDHOLD_RECONNECT_S": "600", **NO_PROVIDER}
    with worker_process(tmp_path, **env) as worker:
        assert worker.stderr is not None
        assert "waiting for Temporal" in worker.stderr.readline()
        worker.send_signal(signal.SIGTERM)
        _, err = worker.communicate(timeout=PATIENCE_S)
        assert worker.returncode == 0
        assert _logged(err)[-1]["event"] == "stopped"


async def test_a_build_that_is_not_current_is_told_and_not_refused(
    tmp_path: Path, temporal: WorkflowEnvironment
) -> None:
    env = NO_PROVIDER | {
        "SANDHOLD_TEMPORAL_ADDRESS": temporal.client.service_client.config.target_host,
        "SANDHOLD_TASK_QUEUE": "sandhold-versioned",
        "SANDHOLD_BUILD_ID": "build-7",
        "SANDHOLD_DATA_DIR": str(tmp_path),
    }
    # The command line that docs/operating.md gives for a worker's container.
    setup = [sys.executable, "-m", "sandhold.cli", "setup"]

    async def health(url: str) -> tuple[int, dict[str, str]]:
        return await asyncio.to_thread(_health, url)

    with worker_process(tmp_path, **env) as worker:
        assert worker.stdout is not None
        url = (await asyncio.to_thread(worker.stdout.readline)).split()[1]
        status, body = await health(url)
        assert (status, body["status"], body["build"]) == (200, "degraded", "not_current")
        assert "sandhold setup" in body["reason"]
        made = await asyncio.to_thread(
            subprocess.run, setup, cwd=REPOSITORY, env=clean_environment() | env, capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr
        assert "current build: build-7" in made.stdout
        async with asyncio.timeout(PATIENCE_S):
            while (await health(url)) != (200, {"status": "ok", "build": "current"}):
                await asyncio.sleep(0.1)
        worker.send_signal(signal.SIGTERM)
        _, err = await asyncio.to_thread(worker.communicate, timeout=PATIENCE_S)
        [ready] = [event for event in _logged(err) if event["event"] == "ready"]
        assert (ready["level"], "is not current" in ready["reason"]) == ("warning", True)


class BrokenProbe(WorkerProbe):
    """A probe that fails by something else than an answer of Temporal."""

    async def __call__(self) -> Health:
        raise UnicodeError("told in no known encoding")


async def test_a_probe_that_breaks_before_ready_ends_the_worker_and_is_told(shared_stack: Stack) -> None:
    client = shared_stack.temporal
    async with asyncio.timeout(PATIENCE_S):
        async with contextlib.AsyncExitStack() as resources:
            pool = ProviderPool(shared_stack.settings, shared_stack.vault)
            resources.push_async_callback(pool.close)
            access = ProviderAccess(pool, shared_stack.settings, shared_stack.deployment)
            github = GitHub(shared_stack.settings, shared_stack.vault)
            activities = activities_of(client, shared_stack.settings, access, shared_stack.vault, RING, github)
            workers = build_workers(client, "sandhold-broken-probe", activities=activities)
            probe = BrokenProbe(client, "nobody", [])
            with pytest.raises(UnicodeError, match="no known encoding"):
                await run_until(asyncio.Event(), probe, "http://127.0.0.1:1/healthz", *workers)
            assert all(worker.is_shutdown for worker in workers)


def test_health_is_what_temporal_says(dev: Dev) -> None:
    url = dev.stack()["health_urls"]["worker"]
    temporal = dev.pid_of("temporal")
    assert temporal is not None
    wait_until(lambda: _health(url) == (200, {"status": "ok"}))
    os.kill(temporal, signal.SIGSTOP)
    try:
        status, body = _health(url)
    finally:
        os.kill(temporal, signal.SIGCONT)
    assert status == 503
    assert body["status"] == "unavailable"
    assert "Temporal does not answer" in body["reason"]
    wait_until(lambda: _health(url)[0] == 200)


def test_the_worker_says_ready_once_and_logs_one_json_object_a_line(dev: Dev) -> None:
    lines = (dev.data_dir / "logs" / "worker.log").read_text().splitlines()
    announced = [line for line in lines if not line.startswith("{")]
    assert announced, "stdout goes into the same file"
    for line in announced:
        assert line.startswith("ready http://127.0.0.1:")
    assert {"connected", "ready"} <= {event["event"] for event in _logged("\n".join(set(lines) - set(announced)))}


@pytest.fixture(scope="module")
async def sandhold(dev: Dev) -> Sandhold:
    settings = Settings(data_dir=dev.data_dir, temporal_address=dev.stack()["temporal_address"])
    return await Sandhold.connect(settings)


@pytest.fixture
async def session(sandhold: Sandhold) -> AsyncIterator[Session]:
    session = await sandhold.open_session(policy={"end_grace_s": 0.5})
    await session.create_sandbox("work", sandbox_id="work")
    yield session
    await session.end()


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_that_is_stopped_finishes_the_command_it_runs(
    dev: Dev, sandhold: Sandhold, session: Session, name: signal.Signals
) -> None:
    command = asyncio.create_task(session.exec("work", "echo begun >> starts; sleep 2; cat starts", output="normal"))
    await _until_started(session)
    stopped = dev.pid_of("worker")
    assert stopped is not None
    os.kill(stopped, name)
    result = await asyncio.wait_for(command, PATIENCE_S)
    assert (result.status, result.exit_code, result.stdout) == ("completed", 0, "begun\n")
    attempts = await _attempts(sandhold.client, session, Activity.RUN_COMMAND)
    assert set(attempts) == {1}, "nothing had to be tried again"
    await asyncio.to_thread(wait_until, lambda: dev.pid_of("worker") not in {None, stopped}, dev.text)
    assert "worker: ended with code 0" in dev.text()


async def test_a_long_command_moves_to_the_next_worker(dev: Dev, sandhold: Sandhold, session: Session) -> None:
    script = "echo begun >> starts; for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 1; done; cat starts"
    command = asyncio.create_task(session.exec("work", script, output="normal"))
    deadline = time.monotonic() + PATIENCE_S
    while not await _attempts(sandhold.client, session, Activity.FOLLOW_COMMANDS, scheduled=True):
        assert time.monotonic() < deadline, "the command is never followed"
        await asyncio.sleep(0.2)
    stopped = dev.pid_of("worker")
    assert stopped is not None
    os.kill(stopped, signal.SIGTERM)
    result = await asyncio.wait_for(command, PATIENCE_S)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [*(str(number) for number in range(1, 11)), "begun"]


async def _until_started(session: Session) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        envelope = await session.call("daytona_read_file", {"sandbox_id": "work", "path": "starts"})
        if envelope.ok:
            return
        assert time.monotonic() < deadline, envelope
        await asyncio.sleep(0.1)


async def _attempts(client: Client, session: Session, activity: Activity, *, scheduled: bool = False) -> list[int]:
    """The attempts at an activity in the sandbox's history; with `scheduled`, an entry for each that was asked for."""
    history = await client.get_workflow_handle(sandbox_workflow_id(session.session_id, "work")).fetch_history()
    ours = {
        event.event_id
        for event in history.events
        if event.activity_task_scheduled_event_attributes.activity_type.name == activity
    }
    if scheduled:
        return [0] * len(ours)
    return [
        event.activity_task_started_event_attributes.attempt
        for event in history.events
        if event.activity_task_started_event_attributes.scheduled_event_id in ours
    ]
