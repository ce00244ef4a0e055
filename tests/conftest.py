"""Fixtures of the whole suite: one Temporal server, one local Daytona and one pair of workers for all tests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio.testing import WorkflowEnvironment

from tests.local_daytona_server import LocalDaytona, running_local_daytona
from tests.stack import Stack, histories, replayer, running_stack, running_temporal


@pytest.fixture(scope="session")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    """The development server. At the end every workflow that any test ran is replayed."""
    async with running_temporal() as environment:
        yield environment
        replayed = await replayer().replay_workflows(histories(environment.client), raise_on_replay_failure=False)
        failures = replayed.replay_failures
        assert not failures, f"{len(failures)} workflows of the tests do not replay: {failures}"


@pytest.fixture(scope="session")
async def stack_daytona(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalDaytona]:
    """The local Daytona behind the stack."""
    async with running_local_daytona(tmp_path_factory.mktemp("stack") / "daytona") as server:
        yield server


@pytest.fixture(scope="session")
async def shared_stack(
    temporal: WorkflowEnvironment, stack_daytona: LocalDaytona, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    data_dir = tmp_path_factory.mktemp("data")
    async with running_stack(temporal.client, stack_daytona, data_dir, task_queue="sandhold-tests") as stack:
        yield stack


@pytest.fixture
async def stack(shared_stack: Stack) -> AsyncIterator[Stack]:
    """The stack without faults, and with the sessions that a failed test left behind ended."""
    await shared_stack.faults.clear()
    await shared_stack.faults.forget_requests()
    yield shared_stack
    await shared_stack.faults.clear()


@pytest.fixture
def short_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without the interpreter's own end: it sometimes aborts after Temporal's client ran (sdk-python#300)."""
    status = getattr(config, "exit_status", None)
    if status is not None:
        os._exit(status)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.exit_status = int(exitstatus)  # type: ignore[attr-defined]
