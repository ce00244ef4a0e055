"""Access to the provider: its clients, and the one sandbox that a step is about.

Every request goes through `faults.request` and so has a deadline: the client has none of its own for most of
its methods (daytona 0.226.1).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from daytona import AsyncDaytona, AsyncSandbox, DaytonaConfig
from pydantic import SecretStr
from temporalio.exceptions import ApplicationError

from activities.absence import Absence
from activities.deadlines import time_left_s
from activities.faults import ProviderError, request
from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolError, as_application_error
from sandhold.contracts.names import provider_labels, provider_name
from sandhold.contracts.steps import ProviderSandbox, SandboxRef
from sandhold.settings import Settings

T = TypeVar("T")

REMEMBERED_SANDBOXES = 1000
"""How many live sandboxes a worker keeps at hand to save a request per call."""

STARTED = "started"
DESTROYED = "destroyed"
ENDING = frozenset({"destroying", DESTROYED})


class _Client(AsyncDaytona):
    """The official client, without the tracing that it sets up for the whole process when its environment says so."""

    def _init_otel(self, sdk_version: str) -> None:
        """Do nothing: a tracer provider and an instrumented aiohttp of its own would displace the worker's."""


@dataclass(frozen=True)
class Connection:
    """An owner's access to a provider. A new key for the same name is a new version."""

    name: str
    version: int
    api_url: str | None
    """None for the hosted service."""
    api_key: SecretStr


class ProviderPool:
    """One client per connection and version, made when it is first needed, closed with the pool.

    A client per call would leak descriptors and cost a connection each time.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[tuple[str, int], AsyncDaytona] = {}

    async def client(self, owner: str) -> AsyncDaytona:
        """The client for this owner's sandboxes. Raises ApplicationError `connection_required` without a key."""
        connection = self._connection(owner)
        key = (connection.name, connection.version)
        if key not in self._clients:
            self._clients[key] = _Client(
                DaytonaConfig(
                    api_key=connection.api_key.get_secret_value(),
                    api_url=connection.api_url,
                    # Requests that wait for a command hold a connection for seconds each; the worker's own
                    # limit on activities bounds them.
                    connection_pool_maxsize=None,
                )
            )
        return self._clients[key]

    def _connection(self, owner: str) -> Connection:
        """The connection that `owner` uses: today the deployment's own, for every owner."""
        key = self._settings.daytona_api_key
        if key is None:
            raise as_application_error(
                ToolError(
                    code=ErrorCode.CONNECTION_REQUIRED,
                    message=f"no Daytona connection for the owner {owner!r}",
                    hint="Ask the user to connect Daytona, or set DAYTONA_API_KEY for the worker.",
                    provider="daytona",
                )
            )
        return Connection("default", 1, self._settings.daytona_api_url, key)

    async def close(self) -> None:
        """Close every client. Safe to repeat."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.close()  # type: ignore[no-untyped-call]


class ProviderAccess:
    """What activities need of the provider about one sandbox: find it, use what runs in it."""

    def __init__(self, pool: ProviderPool, settings: Settings, deployment: str) -> None:
        """`deployment` is the UUID of the Temporal namespace: it keeps two deployments on one account apart."""
        self.pool = pool
        self.deployment = deployment
        self.request_timeout_s = settings.request_timeout_s
        self.absence_confirm_s = settings.absence_confirm_s
        self._live: OrderedDict[str, AsyncSandbox] = OrderedDict()

    def name(self, ref: SandboxRef) -> str:
        """The sandbox's name at the provider: the same for every attempt at creating this generation."""
        return provider_name(self.deployment, ref.session_id, ref.sandbox_id, ref.generation)

    def labels(self, ref: SandboxRef) -> dict[str, str]:
        """The labels by which the provider knows whose the sandbox is."""
        return provider_labels(self.deployment, ref.owner, ref.session_id, ref.sandbox_id)

    async def find(self, ref: SandboxRef) -> AsyncSandbox | None:
        """The sandbox as the provider holds it now, in whatever state; None when it answers "not found".

        Looked up by its id when that is known, else by its name. Raises ApplicationError `conflict`, not to be
        retried, when the sandbox of that name is not ours.
        """
        sandbox = await self.find_any(ref)
        if sandbox is not None and not self.is_ours(ref, sandbox):
            raise as_application_error(
                ToolError(
                    code=ErrorCode.CONFLICT,
                    message=f"the provider already holds a sandbox named {sandbox.name} that is not ours",
                    hint="It is left alone. Somebody with access to the provider account has to rename or delete it.",
                )
            )
        return sandbox

    async def find_any(self, ref: SandboxRef) -> AsyncSandbox | None:
        """As `find`, also when the sandbox of that name is not ours."""
        client = await self.pool.client(ref.owner)
        try:
            return await request(client.get(ref.provider_id or self.name(ref)), self.request_timeout_s)
        except ProviderError as error:
            if error.not_found:
                return None
            raise

    def is_ours(self, ref: SandboxRef, sandbox: AsyncSandbox) -> bool:
        """Whether this is the sandbox that we created: by its id, or by the labels that we gave it."""
        if ref.provider_id is not None:
            return sandbox.id == ref.provider_id
        return all(sandbox.labels.get(name) == value for name, value in self.labels(ref).items())

    async def find_or_confirm_lost(self, ref: SandboxRef) -> AsyncSandbox:
        """The sandbox as the provider holds it now.

        Raises ApplicationError `sandbox_lost` when it is confirmed absent, which takes `absence_confirm_s`.
        """
        absence = Absence(self.absence_confirm_s)
        while True:
            sandbox = await self.find(ref)
            if sandbox is None:
                absence.was_missing()
            elif sandbox.state == DESTROYED:
                absence.was_destroyed()
            elif sandbox.state not in ENDING:
                return sandbox
            else:
                absence.was_there()
            if absence.confirmed:
                self.forget(ref)
                raise lost(ref)
            await asyncio.sleep(absence.look_again_s)

    async def sandbox(self, ref: SandboxRef) -> AsyncSandbox:
        """The running sandbox, without a request when this worker knows it already.

        Raises ApplicationError `SandboxSignal.NOT_STARTED` when it is not running, and `sandbox_lost` when it
        is confirmed absent. A short activity has no time for that confirmation and says NOT_STARTED: starting
        the sandbox then confirms.
        """
        live = self._live.get(ref.provider_id or "")
        if live is not None and live.state == STARTED:  # kept up to date by the provider's events
            self._live.move_to_end(live.id)
            return live
        self.forget(ref)
        sandbox = await self.find(ref)
        going = sandbox is None or sandbox.state in ENDING
        if going and time_left_s() > self.absence_confirm_s + self.request_timeout_s:
            sandbox = await self.find_or_confirm_lost(ref)
        if sandbox is None or sandbox.state != STARTED:
            raise not_started(ref, "missing" if sandbox is None else state_of(sandbox))
        self.remember(sandbox)
        return sandbox

    async def toolbox(self, ref: SandboxRef, use: Callable[[AsyncSandbox], Awaitable[T]], within_s: float) -> T:
        """Make one request to what runs inside the sandbox, for at most `within_s` seconds.

        Costs one provider request while this worker knows the sandbox. Raises as `sandbox` does, and
        ProviderError for everything else. An answer that did not come from inside the sandbox (seen from the
        provider's proxy for a stopped one: 400, 404 and an empty 502) makes it look again.
        """
        sandbox = await self.sandbox(ref)
        try:
            return await request(use(sandbox), within_s)
        except ProviderError as error:
            if error.came_from_inside or error.fault.status is None:
                raise
            self.forget(ref)
            await self.sandbox(ref)
            raise

    def remember(self, sandbox: AsyncSandbox) -> None:
        """Keep a running sandbox at hand for the calls that follow."""
        self._live[sandbox.id] = sandbox
        while len(self._live) > REMEMBERED_SANDBOXES:
            self._live.popitem(last=False)

    def forget(self, ref: SandboxRef) -> None:
        """Look the sandbox up again before its next use."""
        if ref.provider_id is not None:
            self._live.pop(ref.provider_id, None)


def state_of(sandbox: AsyncSandbox) -> str:
    """The provider's name for the sandbox's state."""
    return sandbox.state.value if sandbox.state is not None else "unknown"


def shown(sandbox: AsyncSandbox) -> ProviderSandbox:
    """What the workflow keeps of a provider's sandbox."""
    return ProviderSandbox(provider_id=sandbox.id, provider_name=sandbox.name, state=state_of(sandbox))


def lost(ref: SandboxRef) -> ApplicationError:
    """The failure that says that a sandbox is confirmed absent."""
    return as_application_error(
        ToolError(
            code=ErrorCode.SANDBOX_LOST,
            message=f"the sandbox {ref.sandbox_id} no longer exists at the provider; its files are gone",
            hint="Create a new sandbox and do the work again.",
        )
    )


def not_started(ref: SandboxRef, state: str) -> ApplicationError:
    """The failure that asks the workflow to start the sandbox and to call again."""
    message = f"the sandbox {ref.sandbox_id} is not running at the provider: {state}"
    return ApplicationError(
        message,
        ToolError(code=ErrorCode.PROVIDER_UNAVAILABLE, message=message, retryable=True),
        type=SandboxSignal.NOT_STARTED,
        non_retryable=True,
    )
