"""What the client's tests share: speaking workflows, and a cable to Temporal that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from sandhold.client import Sandhold, Session
from sandhold.contracts.names import sandbox_workflow_id, session_workflow_id
from sandhold.contracts.sessions import SessionSandbox
from sandhold.settings import Settings
from tests.client.speakers import (
    SpeakingSandbox,
    SpeakingSandboxStart,
    SpeakingSession,
    SpeakingSessionStart,
    on_the_books,
)

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


@dataclass
class Cable:
    """A TCP relay to Temporal. While it is cut, connections are refused and those that were open are reset."""

    target: str
    address: str = ""
    _server: asyncio.Server | None = None
    _pairs: set[asyncio.Task[None]] = field(default_factory=set)

    async def plug(self) -> None:
        """Listen, on the same port as before."""
        host, _, port = self.address.partition(":")
        self._server = await asyncio.start_server(self._accept, host or "127.0.0.1", int(port or 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def cut(self) -> None:
        """Refuse new connections and break those that are open."""
        if self._server is not None:
            self._server.close()
        for pair in list(self._pairs):
            pair.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = asyncio.current_task()
        assert pair is not None
        self._pairs.add(pair)
        host, _, port = self.target.partition(":")
        onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(_pump(reader, onward_writer), _pump(onward_reader, writer))
        except asyncio.CancelledError:
            pass  # cut: the ends are broken below, and nobody waits for this task but `cut`
        finally:
            self._pairs.discard(pair)
            for end in (writer, onward_writer):
                end.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()


@pytest.fixture
async def cable(temporal: WorkflowEnvironment) -> AsyncIterator[Cable]:
    relay = Cable(temporal.client.service_client.config.target_host)
    await relay.plug()
    yield relay
    await relay.cut()
