"""The provider that the activities are tried against: the local server, or a real account."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from daytona import AsyncDaytona, AsyncSandbox, DaytonaNotFoundError, ListSandboxesQuery
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.clients import ProviderPool
from activities.files import FileActivities
from activities.lifecycle import LifecycleActivities
from activities.provider import ProviderAccess
from activities.session_secrets import SessionSecrets
from sandhold.contracts.names import DEPLOYMENT_LABEL
from sandhold.contracts.steps import CreateSandboxStep, DeleteSandboxStep, LifecycleStep, SandboxRef
from sandhold.settings import Settings
from sandhold.storage import SessionStorage
from sandhold.vault import Vault
from tests.local_daytona_server import LocalDaytona

S = TypeVar("S")
R = TypeVar("R")

_numbers = itertools.count(1)


@dataclass
class ProviderUnderTest:
    """A provider with our activities on top, as a worker has them."""

    settings: Settings
    storage: SessionStorage
    local: LocalDaytona | None
    """None for a real account."""
    deployment: str = field(default_factory=lambda: f"test-{uuid.uuid4()}")
    vault: Vault | None = None

    def __post_init__(self) -> None:
        self.pool = ProviderPool(self.settings, self.vault)
        self.access = ProviderAccess(self.pool, self.settings, self.deployment)
        self.secrets = SessionSecrets(self.settings, self.pool.connections, _no_session)
        self.lifecycle = LifecycleActivities(self.access, self.settings, self.secrets)
        self.files = FileActivities(self.access, self.storage)

    def with_storage(self, storage: SessionStorage) -> ProviderUnderTest:
        """The same provider and sandboxes with another session storage."""
        other = copy.copy(self)
        other.storage = storage
        other.files = FileActivities(self.access, storage)
        return other

    async def client(self) -> AsyncDaytona:
        """The official client, to look and to meddle behind our back."""
        return await self.pool.client("tests")

    def new_ref(self) -> SandboxRef:
        return SandboxRef(
            session_id=f"s-{os.getpid()}", sandbox_id=f"sandbox-{next(_numbers)}", owner="me", generation=1
        )

    async def run(
        self,
        step_of: Callable[[S], Awaitable[R]],
        step: S,
        *,
        attempt: int = 1,
        limit_s: float = 120.0,
        environment: ActivityEnvironment | None = None,
    ) -> R:
        """One attempt of an activity."""
        environment = environment or ActivityEnvironment()
        now = datetime.now(UTC)
        environment.info = dataclasses.replace(
            environment.info,
            attempt=attempt,
            started_time=now,
            scheduled_time=now,
            current_attempt_scheduled_time=now,
            start_to_close_timeout=None,
            schedule_to_close_timeout=timedelta(seconds=limit_s),
        )
        return await environment.run(step_of, step)

    async def persist(
        self, step_of: Callable[[S], Awaitable[R]], step: S, *, attempts: int = 6
    ) -> tuple[R, list[ApplicationError]]:
        """Attempts as Temporal makes them, until one succeeds; and how the earlier ones failed.

        Raises the first failure that is not to be retried.
        """
        failures: list[ApplicationError] = []
        for attempt in range(1, attempts + 1):
            try:
                return await self.run(step_of, step, attempt=attempt), failures
            except ApplicationError as error:
                if error.non_retryable:
                    raise
                failures.append(error)
        raise failures[-1]

    async def created(self, **changes: Any) -> SandboxRef:
        """A new started sandbox."""
        return (await self.create(self.new_ref(), **changes))[0]

    async def create(self, ref: SandboxRef, **changes: Any) -> tuple[SandboxRef, list[ApplicationError]]:
        """Create by as many attempts as it takes; the reference then knows the provider's id."""
        found, failures = await self.persist(self.lifecycle.create_sandbox, create_step(ref, **changes))
        return ref.model_copy(update={"provider_id": found.provider_id}), failures

    async def start(self, ref: SandboxRef) -> str:
        return (await self.run(self.lifecycle.start_sandbox, lifecycle_step(ref))).state

    async def stop(self, ref: SandboxRef) -> str:
        return (await self.run(self.lifecycle.stop_sandbox, lifecycle_step(ref))).state

    async def archive(self, ref: SandboxRef) -> str:
        return (await self.run(self.lifecycle.archive_sandbox, lifecycle_step(ref))).state

    async def delete(self, ref: SandboxRef, **changes: Any) -> None:
        await self.run(self.lifecycle.delete_sandbox, DeleteSandboxStep(ref=ref, **changes))

    async def sh(self, ref: SandboxRef, command: str) -> str:
        """Run a command without our activities' help; its output. Fails the test when the command fails."""
        sandbox = await self.look(ref)
        assert sandbox is not None
        answer = await sandbox.process.exec(command, timeout=60)
        assert answer.exit_code == 0, answer.result
        return answer.result

    async def look(self, ref: SandboxRef) -> AsyncSandbox | None:
        """What the provider holds under the sandbox's name."""
        try:
            return await (await self.client()).get(self.access.name(ref))
        except DaytonaNotFoundError:
            return None

    async def held(self) -> list[AsyncSandbox]:
        """Everything that these tests left at the provider, by its list."""
        client = await self.client()
        query = ListSandboxesQuery(labels={DEPLOYMENT_LABEL: self.deployment})
        return [sandbox async for sandbox in client.list(query)]

    async def close(self) -> None:
        """Leave nothing at the provider."""
        for sandbox in await self.held():
            await sandbox.delete()
        await self.pool.close()


async def _no_session(session_id: str) -> None:
    """What Temporal knows of these sessions."""


def create_step(ref: SandboxRef, **changes: Any) -> CreateSandboxStep:
    return CreateSandboxStep(**{"ref": ref, "auto_stop_minutes": 15, "ttl_minutes": 120, "timeout_s": 60.0, **changes})


def lifecycle_step(ref: SandboxRef, **changes: Any) -> LifecycleStep:
    return LifecycleStep(**{"ref": ref, "timeout_s": 60.0, **changes})
