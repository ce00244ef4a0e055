"""Access to the provider: its clients, and the one sandbox that a step is about.

Every request goes through `faults.request` and so has a deadline: the client has none of its own for most of
its methods (daytona 0.226.1).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from daytona import AsyncSandbox
from temporalio.exceptions import ApplicationError

from activities.absence import Absence
from activities.clients import Key, ProviderPool
from activities.connections import Connection, elsewhere
from activities.deadlines import time_left_s
from activities.faults import ProviderError, request
from activities.organizations import Organizations
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
AT_REST = frozenset({"stopped", "archived", "archiving", "paused"})
"""States that a start leads out of, and in which nothing runs."""
BROKEN = frozenset({"error", "build_failed"})

LOOK_AGAIN_S = 2.0
"""Between two looks at a sandbox that seems to be at rest."""


class ProviderAccess:
    """What activities need of the provider about one sandbox: find it, use what runs in it."""

    def __init__(self, pool: ProviderPool, settings: Settings, deployment: str) -> None:
        """`deployment` is the UUID of the Temporal namespace: it keeps two deployments on one account apart."""
        self.pool = pool
        self.deployment = deployment
        self.request_timeout_s = settings.request_timeout_s
        self.absence_confirm_s = settings.absence_confirm_s
        self._live: OrderedDict[str, tuple[Key, AsyncSandbox]] = OrderedDict()
        self._found_under: OrderedDict[str, Key] = OrderedDict()
        self._organizations = Organizations()

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
        return await self._find_under(await self.pool.connections.of(ref), ref)

    async def _find_under(self, connection: Connection, ref: SandboxRef) -> AsyncSandbox | None:
        client = self.pool.client_of(connection)
        try:
            sandbox = await request(client.get(ref.provider_id or self.name(ref)), self.request_timeout_s)
        except ProviderError as error:
            if not error.not_found:
                raise
        else:
            self.came_by(connection, sandbox)
            return sandbox
        if ref.organization is not None:
            # A key of another organization gets this answer for everything.
            organization = await self._organizations.of(connection, client, self.request_timeout_s)
            if organization not in {None, ref.organization}:
                raise elsewhere(ref)
        return None

    def came_by(self, connection: Connection, sandbox: AsyncSandbox) -> None:
        """Note by which key this object of a sandbox was had, and works."""
        self._found_under[sandbox.id] = connection.key
        self._found_under.move_to_end(sandbox.id)
        while len(self._found_under) > REMEMBERED_SANDBOXES:
            self._found_under.popitem(last=False)

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

    async def toolbox(
        self, ref: SandboxRef, use: Callable[[AsyncSandbox], Awaitable[T]], within_s: float, *, sure: bool = True
    ) -> T:
        """Make one request to what runs inside the sandbox, for at most `within_s` seconds.

        Costs one provider request while this worker knows the sandbox. Whatever a read says of the sandbox the request
        is made: reads are cached, and the answer is the better proof. When nothing inside answers, this raises
        ApplicationError `SandboxSignal.NOT_STARTED` when the sandbox is at rest, so that nothing runs in it, and
        `sandbox_lost` when it is confirmed absent; else ProviderError or ApplicationError `provider_unavailable`, to
        be repeated. NOT_STARTED is certain: besides a read it takes the word of the provider's proxy, or another read
        `absence_confirm_s` later. With `sure` false a read is enough, for callers that conclude nothing final from it,
        such as those whose failure makes the workflow start the sandbox.
        """
        connection = await self.pool.connections.of(ref)
        sandbox = self._known(connection, ref) or await self._looked_up(ref, sure=sure)
        believed_running = sandbox.state == STARTED
        try:
            return await request(use(sandbox), within_s)
        except ProviderError as error:
            if error.came_from_inside or (believed_running and error.fault.status is None):
                raise
            self.forget(ref)
            await self._explain(ref, error, sure=sure)
            raise

    def _known(self, connection: Connection, ref: SandboxRef) -> AsyncSandbox | None:
        """The running sandbox, if this worker knows it already by the present key."""
        key, live = self._live.get(ref.provider_id or "", (None, None))
        if live is None or key != connection.key or live.state != STARTED:  # kept up to date by the provider's events
            self.forget(ref)
            return None
        self.pool.client_of(connection)  # it works through this one, which stays open
        self._live.move_to_end(live.id)
        return live

    async def _looked_up(self, ref: SandboxRef, *, sure: bool) -> AsyncSandbox:
        """The sandbox as a read shows it, in any state that it may come back from.

        Raises as `toolbox` does for one that seems gone. A short activity has no time to confirm that.
        """
        sandbox = await self.find(ref)
        if sandbox is None or sandbox.state in ENDING:
            if not self._has_time_to_confirm():
                state = "missing" if sandbox is None else state_of(sandbox)
                raise unclear(ref, state) if sure else not_started(ref, state)
            sandbox = await self.find_or_confirm_lost(ref)
        if sandbox.state == STARTED:
            self.remember(sandbox)
        return sandbox

    async def _explain(self, ref: SandboxRef, error: ProviderError, *, sure: bool) -> None:
        """After a request that nothing inside answered: return when the sandbox runs, else raise as `toolbox` does."""
        resting_since: float | None = None
        while (sandbox := await self._looked_up(ref, sure=sure)).state != STARTED:
            state = state_of(sandbox)
            if not sure:
                raise not_started(ref, state) from error
            if state not in AT_REST | BROKEN:
                raise unclear(ref, state) from error
            now = time.monotonic()
            resting_since = now if resting_since is None else resting_since
            left_s = resting_since + self.absence_confirm_s - now
            if error.says_not_running or left_s <= 0:
                raise not_started(ref, state) from error
            if not self._has_time_to_confirm(left_s):
                raise unclear(ref, state) from error
            await asyncio.sleep(min(left_s, LOOK_AGAIN_S))

    def _has_time_to_confirm(self, confirm_s: float | None = None) -> bool:
        return time_left_s() > (self.absence_confirm_s if confirm_s is None else confirm_s) + self.request_timeout_s

    def remember(self, sandbox: AsyncSandbox) -> None:
        """Keep a running sandbox, which was found here, at hand for the calls that follow."""
        self._live[sandbox.id] = self._found_under[sandbox.id], sandbox
        while len(self._live) > REMEMBERED_SANDBOXES:
            self._live.popitem(last=False)

    def forget(self, ref: SandboxRef) -> None:
        """Look the sandbox up again before its next use."""
        if ref.provider_id is not None:
            self._live.pop(ref.provider_id, None)


def state_of(sandbox: AsyncSandbox) -> str:
    """The provider's name for the sandbox's state."""
    return sandbox.state.value if sandbox.state is not None else "unknown"


def shown(sandbox: AsyncSandbox, connection: str | None) -> ProviderSandbox:
    """What the workflow keeps of a provider's sandbox, and under which connection it was found."""
    return ProviderSandbox(
        provider_id=sandbox.id,
        provider_name=sandbox.name,
        state=state_of(sandbox),
        connection=connection,
        organization=sandbox.organization_id or None,
    )


def lost(ref: SandboxRef) -> ApplicationError:
    """The failure that says that a sandbox is confirmed absent."""
    return as_application_error(
        ToolError(
            code=ErrorCode.SANDBOX_LOST,
            message=f"the sandbox {ref.sandbox_id} no longer exists at the provider; its files are gone",
            hint="Create a new sandbox and do the work again.",
        )
    )


def unclear(ref: SandboxRef, state: str) -> ApplicationError:
    """The failure for a sandbox of which it is not certain that nothing runs in it: to be asked again."""
    return as_application_error(
        ToolError(
            code=ErrorCode.PROVIDER_UNAVAILABLE,
            message=f"the sandbox {ref.sandbox_id} does not answer; the provider says that it is {state}",
            retryable=True,
            ambiguous=True,
        ),
        non_retryable=False,
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
