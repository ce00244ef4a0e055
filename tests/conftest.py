"""Fixtures of the whole suite: one Temporal server, one local Daytona and one pair of workers for all tests.

Tests of what lies in session storage are marked with `storage("folder", "s3")`: they run on a local folder and on an
S3-compatible server, with a second pair of workers. The mark of a test comes before that of its module: one that takes
long and shows nothing of storage runs on a folder only.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.testing import WorkflowEnvironment

from sandhold.client import SandholdError, Session
from tests.local_daytona_server import LocalDaytona, running_local_daytona
from tests.s3_server import S3Server, running_s3_server
from tests.stack import Stack, histories, replayer, running_stack, running_temporal

LEFT_OPEN_S = 5.0
"""How long the sessions that a test left open may take to end before the next test begins."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "storage(*kinds): the kinds of session storage to run on, `folder` and `s3`")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("storage")
    if mark is not None and "storage_kind" in metafunc.fixturenames:
        metafunc.parametrize("storage_kind", mark.args, indirect=True, scope="module")


@pytest.fixture(scope="session")
def opened() -> list[Session]:
    """The sessions that were opened through the shared stack, once that is down."""
    return []


@pytest.fixture(scope="session")
async def temporal(opened: list[Session]) -> AsyncIterator[WorkflowEnvironment]:
    """The development server. At the end every workflow that any test ran is replayed."""
    async with running_temporal() as environment:
        yield environment
        found = [history async for history in histories(environment.client)]
        _nothing_is_missing(found, opened)
        replayed = await replayer().replay_workflows(_each(found), raise_on_replay_failure=False)
        failures = replayed.replay_failures
        assert not failures, f"{len(failures)} workflows of the tests do not replay: {failures}"


def _nothing_is_missing(found: Sequence[WorkflowHistory], opened: Sequence[Session]) -> None:
    """The replay is of every session that tests opened, and of every sandbox that a session started."""
    ids = {history.workflow_id for history in found}
    sandboxes = {
        event.child_workflow_execution_started_event_attributes.workflow_execution.workflow_id
        for history in found
        for event in history.events
        if event.HasField("child_workflow_execution_started_event_attributes")
    }
    missing = ({session.workflow_id for session in opened} | sandboxes) - ids
    assert not missing, f"the server has no history of {sorted(missing)}: they are not replayed"


async def _each(found: Sequence[WorkflowHistory]) -> AsyncIterator[WorkflowHistory]:
    for history in found:
        yield history


@pytest.fixture(scope="session")
async def stack_daytona(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalDaytona]:
    """The local Daytona behind the stack."""
    async with running_local_daytona(tmp_path_factory.mktemp("stack") / "daytona") as server:
        yield server


@pytest.fixture(scope="session")
async def shared_stack(
    temporal: WorkflowEnvironment,
    stack_daytona: LocalDaytona,
    tmp_path_factory: pytest.TempPathFactory,
    opened: list[Session],
) -> AsyncIterator[Stack]:
    data_dir = tmp_path_factory.mktemp("data")
    async with running_stack(temporal.client, stack_daytona, data_dir, task_queue="sandhold-tests") as stack:
        yield stack
        opened += stack.opened


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3-compatible server; while it is there, this process and those that it starts know the way to it."""
    with (
        running_s3_server(tmp_path_factory.mktemp("s3") / "log") as server,
        pytest.MonkeyPatch.context() as environment,
    ):
        for name, value in server.environment.items():
            environment.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
async def s3_stack(
    temporal: WorkflowEnvironment,
    stack_daytona: LocalDaytona,
    tmp_path_factory: pytest.TempPathFactory,
    opened: list[Session],
    s3_server: S3Server,
) -> AsyncIterator[Stack]:
    """The shared stack's twin: other workers, whose session storage is a bucket."""
    async with running_stack(
        temporal.client,
        stack_daytona,
        tmp_path_factory.mktemp("data"),
        task_queue="sandhold-s3-tests",
        storage_url=s3_server.new_place(),
    ) as stack:
        yield stack
        opened += stack.opened


@pytest.fixture(scope="module")
def storage_kind(request: pytest.FixtureRequest) -> str:
    """`folder`, or what the test is marked with."""
    return str(getattr(request, "param", "folder"))


@pytest.fixture
def storage_url(request: pytest.FixtureRequest, storage_kind: str, tmp_path: Path) -> str:
    """Where the test may have a session storage of its own."""
    if storage_kind == "folder":
        return (tmp_path / "storage").as_uri()
    server: S3Server = request.getfixturevalue("s3_server")
    return server.new_place()


@pytest.fixture(scope="module")
def module_stack(request: pytest.FixtureRequest, storage_kind: str) -> Stack:
    """The stack with the kind of session storage that the test is marked with; whatever the tests before left."""
    stack: Stack = request.getfixturevalue({"folder": "shared_stack", "s3": "s3_stack"}[storage_kind])
    return stack


@pytest.fixture
async def stack(module_stack: Stack) -> AsyncIterator[Stack]:
    """The stack without faults; sessions that the test opened and left open are ended after it."""
    await module_stack.faults.clear()
    await module_stack.faults.forget_requests()
    opened_before = len(module_stack.opened)
    yield module_stack
    await module_stack.faults.clear()
    await asyncio.gather(*(_end(session) for session in module_stack.opened[opened_before:]))


async def _end(session: Session) -> None:
    """End the session, so that nothing of it falls into the next test; what takes longer goes on by itself."""
    try:
        await session.end("its test is over", timeout=LEFT_OPEN_S)
    except SandholdError as error:
        print(f"session {session.session_id} has not ended: {error}")


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
