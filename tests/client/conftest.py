"""What the client's tests share: speaking workflows, and a cable to Temporal."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from pydantic import SecretStr
from temporalio.client import Client, WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from sandhold.client import Sandhold, Session
from sandhold.contracts.names import sandbox_workflow_id, session_workflow_id
from sandhold.contracts.sessions import SessionSandbox
from sandhold.settings import Settings
from tests.cable import Cable
from tests.client.speakers import (
    SpeakingSandbox,
    SpeakingSandboxStart,
    SpeakingSession,
    SpeakingSessionStart,
    on_the_books,
)
from tests.stack import KEY_RING

QUEUE = "client-tests"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Speakers:
    """Starts speaking workflows, and talks to them through our client."""

    temporal: Client
    settings: Settings
    sandhold: Sandhold

    async def session(self, *sandboxes: SessionSandbox, task_queue: str = QUEUE, **fields: object) -> Session:
        """A session with these sandboxes on its books, by default one that is open: `box`."""
        session_id = f"speaks-{os.getpid()}-{next(_numbers)}"
        books = list(sandboxes) or [on_the_books("box")]
        start = SpeakingSessionStart.model_validate({"session_id": session_id, "sandboxes": books, **fields})
        await self.temporal.start_workflow(
            SpeakingSession.run, start, id=session_workflow_id(session_id), task_queue=task_queue
        )
        return self.sandhold.session(session_id)

    async def sandbox(
        self, session: Session, start: SpeakingSandboxStart | None = None, *, task_queue: str = QUEUE
    ) -> WorkflowHandle[SpeakingSandbox, None]:
        """The workflow of a sandbox of the session."""
        start = start or SpeakingSandboxStart()
        return await self.temporal.start_workflow(
            SpeakingSandbox.run,
            start,
            id=sandbox_workflow_id(session.session_id, start.sandbox_id),
            task_queue=task_queue,
        )


@pytest.fixture(scope="session")
async def client_settings(temporal: WorkflowEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        data_dir=tmp_path_factory.mktemp("client"),
        keyring=SecretStr(KEY_RING),
        temporal_address=temporal.client.service_client.config.target_host,
        task_queue=QUEUE,
    )


@pytest.fixture(scope="session")
async def speakers(temporal: WorkflowEnvironment, client_settings: Settings) -> AsyncIterator[Speakers]:
    restrictions = SandboxRestrictions.default.with_passthrough_modules("pydantic", "sandhold")
    worker = Worker(
        temporal.client,
        task_queue=QUEUE,
        workflows=[SpeakingSession, SpeakingSandbox],
        workflow_runner=SandboxedWorkflowRunner(restrictions=restrictions),
    )
    async with worker:
        yield Speakers(temporal.client, client_settings, await Sandhold.connect(client_settings))


@pytest.fixture
async def cable(temporal: WorkflowEnvironment) -> AsyncIterator[Cable]:
    relay = Cable(temporal.client.service_client.config.target_host)
    await relay.plug()
    yield relay
    await relay.cut()
