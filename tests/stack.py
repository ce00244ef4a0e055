"""The real stack for tests: Temporal's development server, a local Daytona, workers in this process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daytona import AsyncDaytona
from pydantic import SecretStr
from temporalio.client import Client, WorkflowHistory, WorkflowQueryFailedError
from temporalio.converter import DataConverter
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Replayer
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.clients import ProviderPool
from activities.provider import ProviderAccess
from sandhold.cli.stack.temporal_server import dev_server_tuning, temporal_program
from sandhold.client import Sandhold, Session
from sandhold.contracts.names import (
    CLEAN_STORAGE_WORKFLOW,
    DEPLOYMENT_LABEL,
    QUERY_TOO_EARLY,
    SANDBOX_WORKFLOW,
    SESSION_LABEL,
    SESSION_WORKFLOW,
    STATUS_QUERY,
    sandbox_workflow_id,
)
from sandhold.contracts.sandboxes import SandboxStatus
from sandhold.contracts.tools import CreateSandboxResult
from sandhold.github import GitHub
from sandhold.security import open_key_ring
from sandhold.security.key_document import KeyDocument
from sandhold.security.key_rings import EnvironmentKeyRing
from sandhold.settings import Settings
from sandhold.temporal import data_converter, deployment_id
from sandhold.vault import Vault, open_vault
from tests.local_daytona_faults import FaultPlan
from tests.local_daytona_server import LocalDaytona
from worker import PASSED_THROUGH, activities_of, build_workers
from workflows.clean_storage import CleanStorage
from workflows.intake import MessageIntake
from workflows.sandbox import Sandbox
from workflows.session import AgentSession

KEY_RING = KeyDocument.new().dump()
"""The key ring of everything that this process tests."""
RING = EnvironmentKeyRing(KEY_RING)
CONVERTER = data_converter(RING)
"""What the processes of a deployment with this ring convert with."""
ABSENCE_CONFIRM_S = 0.2
CREATE_SETTLE_S = 0.5
# A deletion waits until the queues before it are acknowledged, which is every ten seconds or more otherwise.
_FORGETS_SOON = [
    argument
    for queue in ("transfer", "visibility", "timer")
    for argument in ("--dynamic-config-value", f'history.{queue}ProcessorUpdateAckInterval="500ms"')
]
_numbers = itertools.count(1)


@contextlib.asynccontextmanager
async def running_temporal() -> AsyncIterator[WorkflowEnvironment]:
    """A tuned development server that forgets everything at the end."""
    environment = await WorkflowEnvironment.start_local(
        data_converter=CONVERTER,
        dev_server_existing_path=str(temporal_program()),
        dev_server_log_level="error",
        dev_server_extra_args=[*dev_server_tuning(), *_FORGETS_SOON],
    )
    try:
        yield environment
    finally:
        await environment.shutdown()


@dataclass(frozen=True)
class Stack:
    """Everything a test of the workflows needs."""

    temporal: Client
    daytona: LocalDaytona
    provider: AsyncDaytona
    """The official client, to look at the provider behind our back."""
    settings: Settings
    sandhold: Sandhold
    deployment: str
    vault: Vault
    opened: list[Session] = field(default_factory=list)
    """Every session that `open` has opened."""

    @property
    def faults(self) -> FaultPlan:
        return self.daytona.faults

    async def open(self, owner: str = "tests", **policy: Any) -> Session:
        """A new session; short grace and lifecycle bounds unless the policy says otherwise."""
        chosen = {"end_grace_s": 0.5, "lifecycle_timeout_s": 20.0, "create_timeout_s": 30.0, **policy}
        session = await self.sandhold.open_session(f"test-{os.getpid()}-{next(_numbers)}", owner=owner, policy=chosen)
        self.opened.append(session)
        return session

    async def provider_sandboxes(self, session: Session) -> list[Any]:
        """What the provider holds for this session, whatever its state."""
        labels = {DEPLOYMENT_LABEL: self.deployment, SESSION_LABEL: session.session_id}
        return [sandbox async for sandbox in self.provider.list(query_of(labels))]

    async def status(self, session: Session, sandbox_id: str) -> SandboxStatus:
        """The sandbox workflow's own word."""
        handle = self.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, sandbox_id))
        while True:
            try:
                return await handle.query(STATUS_QUERY, result_type=SandboxStatus)
            except WorkflowQueryFailedError as failure:
                if failure.message != QUERY_TOO_EARLY:
                    raise
                await asyncio.sleep(0.1)


def environment_of(stack: Stack, data_dir: Path) -> Mapping[str, str]:
    """The environment for a worker or a command line in a process of its own."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SANDHOLD_", "DAYTONA_"))},
        "SANDHOLD_DATA_DIR": str(data_dir),
        "SANDHOLD_TEMPORAL_ADDRESS": stack.temporal.service_client.config.target_host,
        "SANDHOLD_TASK_QUEUE": stack.settings.task_queue,
        "SANDHOLD_STORAGE_URL": stack.settings.storage_location,
        "SANDHOLD_KEYRING": KEY_RING,
        "SANDHOLD_DATABASE_URL": f"sqlite:///{stack.settings.data_dir.absolute()}/vault.db",
        "SANDHOLD_DAYTONA_API_URL": stack.daytona.url,
        "SANDHOLD_DAYTONA_API_KEY": stack.daytona.api_key,
        "SANDHOLD_ABSENCE_CONFIRM_S": str(ABSENCE_CONFIRM_S),
        "SANDHOLD_CREATE_SETTLE_S": str(CREATE_SETTLE_S),
    }


def query_of(labels: dict[str, str]) -> Any:
    from daytona import ListSandboxesQuery

    return ListSandboxesQuery(labels=labels)


@contextlib.asynccontextmanager
async def running_stack(
    temporal: Client,
    daytona: LocalDaytona,
    data_dir: Path,
    *,
    task_queue: str,
    storage_url: str | None = None,
    workers: bool = True,
    keyring: str = KEY_RING,
    keyring_provider: str | None = None,
    is_connected: bool = True,
    more: Mapping[str, Any] | None = None,
) -> AsyncIterator[Stack]:
    """A stack with workers in this process, or without any. Session storage is in `data_dir` unless a URL is given.

    Unless `is_connected` the deployment has no provider of its own. `more` are further settings.
    """
    settings = Settings(
        data_dir=data_dir,
        temporal_address=temporal.service_client.config.target_host,
        task_queue=task_queue,
        storage_url=storage_url,
        keyring=SecretStr(keyring) if keyring_provider is None else None,
        keyring_provider=keyring_provider,
        daytona_api_url=daytona.url if is_connected else None,
        daytona_api_key=SecretStr(daytona.api_key) if is_connected else None,
        absence_confirm_s=ABSENCE_CONFIRM_S,
        create_settle_s=CREATE_SETTLE_S,
        **(more or {}),
    )
    deployment = await deployment_id(temporal)
    async with contextlib.AsyncExitStack() as resources:
        provider = daytona.client()
        resources.push_async_callback(provider.close)
        sandhold = Sandhold(temporal, settings)
        ring = open_key_ring(settings)
        vault = await open_vault(settings, ring)
        resources.push_async_callback(vault.close)
        if workers:
            pool = ProviderPool(settings, vault)
            resources.push_async_callback(pool.close)
            access = ProviderAccess(pool, settings, deployment)
            github = GitHub(settings, vault)
            resources.push_async_callback(github.close)
            activities = activities_of(temporal, settings, access, vault, ring, github)
            for worker in build_workers(temporal, task_queue, activities=activities):
                await resources.enter_async_context(worker)
        yield Stack(temporal, daytona, provider, settings, sandhold, deployment, vault)


def replayer(converter: DataConverter = CONVERTER) -> Replayer:
    """Replays with the worker's own runner, so that what it forbids is found here as well."""
    restrictions = SandboxRestrictions.default.with_passthrough_modules(*PASSED_THROUGH)
    return Replayer(
        workflows=[AgentSession, Sandbox, CleanStorage],
        interceptors=[MessageIntake()],
        data_converter=converter,
        # Payloads open only in the namespace that they were encrypted in.
        namespace="default",
        workflow_runner=SandboxedWorkflowRunner(restrictions=restrictions),
        # Without the SDK's watch on wall-clock time: a busy machine is no fault of the workflow's.
        debug_mode=True,
    )


async def histories(temporal: Client, query: str = "") -> AsyncIterator[WorkflowHistory]:
    """The history of every run of our workflows that the server has."""
    ours = f"WorkflowType IN ('{SESSION_WORKFLOW}', '{SANDBOX_WORKFLOW}', '{CLEAN_STORAGE_WORKFLOW}')"
    async for history in temporal.list_workflows(f"{ours} AND {query}" if query else ours).map_histories():
        yield history


async def started(session: Session, **arguments: Any) -> CreateSandboxResult:
    """A started sandbox of the session."""
    return await session.create_sandbox(**arguments)
