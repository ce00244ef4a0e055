"""The sandbox's life at the provider: created once, started, stopped, archived, and deleted until it is gone.

Every method looks before it acts and may be repeated, also by two at once. What an answer does not tell is
asked for by name or id; the provider's list is never used, as it lags behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from daytona import AsyncSandbox, CreateSandboxFromSnapshotParams
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.connections import Connection
from activities.deadlines import time_left_s
from activities.deletion import delete_until_gone
from activities.faults import ProviderError, readable, request
from activities.heartbeats import heartbeats
from activities.provider import AT_REST, BROKEN, ENDING, STARTED, ProviderAccess, shown, state_of
from activities.session_secrets import SessionSecrets
from activities.shown_texts import shown_here
from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolError, as_application_error
from sandhold.contracts.names import Activity
from sandhold.contracts.steps import (
    CreateSandboxStep,
    DeleteSandboxStep,
    LifecycleStep,
    ProviderSandbox,
    SandboxRef,
)
from sandhold.settings import Settings

LASTING = AT_REST | BROKEN | ENDING | {STARTED}
"""All other states pass by themselves."""

CHANGE_ANSWER_S = 60.0
"""How long one request for a change, its end included, is waited for; then the sandbox is looked at again."""
LOOK_EVERY_S = 1.0
EVENT_LOOK_S = 0.02
PAUSE_S = 0.3
"""Between two requests for a change of state."""
TYPED_TIMEOUT_MARGIN_S = 0.5
"""Time kept back so that our own error for a timeout is heard before Temporal's."""

# Answers by which the provider surely did not create anything.
_REFUSED = frozenset({400, 401, 402, 403, 413, 422, 429})

Look = Callable[[], Awaitable[AsyncSandbox]]


class LifecycleActivities:
    """Brings provider sandboxes into the state that a step names."""

    def __init__(self, access: ProviderAccess, settings: Settings, secrets: SessionSecrets) -> None:
        self._access = access
        self._secrets = secrets
        self._create_settle_s = settings.create_settle_s

    @activity.defn(name=Activity.CREATE_SANDBOX)
    async def create_sandbox(self, step: CreateSandboxStep) -> ProviderSandbox:
        """Create the sandbox, or take up what an earlier attempt left; return it once it has started.

        Never more than one provider sandbox comes of it, whatever is lost on the way. Raises `sandbox_failed`
        when the provider gives it up, `conflict` when its name belongs to somebody else, and `timeout`; the
        caller then deletes.
        """
        async with _within(step.timeout_s, f"creating the sandbox {step.ref.sandbox_id}"):
            sandbox = None
            is_first = activity.info().attempt == 1
            if not is_first:  # also saves one of the few creates per minute
                ref, sandbox = await self._left_by_an_earlier_attempt(step.ref)
            if sandbox is None:
                connection = await self._may_be_created(step, is_first=is_first)
                ref = step.ref.model_copy(update={"connection": connection.id})
                sandbox = await self._create(connection, step.model_copy(update={"ref": ref}))

            async def look() -> AsyncSandbox:
                found = await self._access.find(ref)
                if found is None or state_of(found) in ENDING:
                    raise _vanished(ref)
                return found

            return shown(await self._to_started(sandbox, look), ref.connection)

    async def _left_by_an_earlier_attempt(self, ref: SandboxRef) -> tuple[SandboxRef, AsyncSandbox | None]:
        """What an earlier attempt has created, and the reference to it, under whichever connection that was."""
        for connection in await self._access.pool.connections.possible(ref):
            under = ref.model_copy(update={"connection": connection.id})
            if (sandbox := await self._access.find(under)) is not None:
                return under, sandbox
        return ref, None

    async def _may_be_created(self, step: CreateSandboxStep, *, is_first: bool) -> Connection:
        """The connection to create the sandbox under.

        Raises ApplicationError `connection_required`, and `invalid_arguments` when a secret is missing that its
        commands will want.
        """
        try:
            connection = await self._access.pool.connections.for_new(step.ref.owner, activity.info().scheduled_time)
            if is_first and step.secret_env:
                await self._secrets.environment(step.ref, step.secret_env)
        except ApplicationError as error:
            if is_first and error.non_retryable:
                raise nothing_created(error) from error
            raise
        return connection

    async def _create(self, connection: Connection, step: CreateSandboxStep) -> AsyncSandbox:
        client = self._access.pool.client_of(connection)
        wanted = CreateSandboxFromSnapshotParams(
            name=self._access.name(step.ref),
            language=client.default_language,
            labels=self._access.labels(step.ref),
            snapshot=step.snapshot or (f"daytona-{step.size}" if step.size else None),
            env_vars=step.env,
            auto_stop_interval=step.auto_stop_minutes,
            auto_archive_interval=0,  # the longest there is
            auto_delete_interval=-1,  # never
            ttl_minutes=step.ttl_minutes,
        )
        created: list[str] = []
        try:
            # As its `create` does, which does not tell whether the request was answered before it failed.
            creating = client._create(wanted, timeout=CHANGE_ANSWER_S, created=created)
            sandbox = await request(creating, CHANGE_ANSWER_S + 5)
        except ProviderError as error:
            if error.refuses_the_key and not created and activity.info().attempt == 1:
                raise nothing_created(error) from error
            if error.fault.status in _REFUSED:
                raise
            activity.logger.info("the create was not answered as hoped, looking by name: %s", await shown_here(error))
            found = await self._access.find(step.ref)
            if found is None:
                raise
            return found
        self._access.came_by(connection, sandbox)
        return sandbox

    @activity.defn(name=Activity.START_SANDBOX)
    async def start_sandbox(self, step: LifecycleStep) -> ProviderSandbox:
        """Return the sandbox once it has started.

        Raises `sandbox_lost` only when it is confirmed absent, `sandbox_failed` when the provider holds it in
        an error that it does not recover from, and `timeout`.
        """
        async with _within(step.timeout_s, f"starting the sandbox {step.ref.sandbox_id}"):
            look = self._look(step.ref)
            return await self._shown(step.ref, await self._to_started(await look(), look))

    @activity.defn(name=Activity.STOP_SANDBOX)
    async def stop_sandbox(self, step: LifecycleStep) -> ProviderSandbox:
        """Return the sandbox once nothing runs in it; its files stay. Raises as `start_sandbox` does."""
        async with _within(step.timeout_s, f"stopping the sandbox {step.ref.sandbox_id}"):
            look = self._look(step.ref)
            self._access.forget(step.ref)
            return await self._shown(step.ref, await self._to_rest(await look(), look))

    @activity.defn(name=Activity.ARCHIVE_SANDBOX)
    async def archive_sandbox(self, step: LifecycleStep) -> ProviderSandbox:
        """Stop the sandbox if it runs, and return it once the provider has accepted to archive it.

        The move itself can take long and needs nobody to wait: a sandbox that is being archived can be
        started. Raises as `start_sandbox` does.
        """
        async with _within(step.timeout_s, f"archiving the sandbox {step.ref.sandbox_id}"):
            look = self._look(step.ref)
            self._access.forget(step.ref)
            sandbox = await self._to_rest(await look(), look)
            while not _is_archived(sandbox):
                sandbox = await self._change(sandbox, sandbox.archive(self._access.request_timeout_s), look)
                if not _is_archived(sandbox):
                    await asyncio.sleep(PAUSE_S)
                    sandbox = await self._to_rest(sandbox, look)
            return await self._shown(step.ref, sandbox)

    @activity.defn(name=Activity.DELETE_SANDBOX)
    async def delete_sandbox(self, step: DeleteSandboxStep) -> None:
        """Delete the sandbox and return when its absence is confirmed, never before.

        Every error is one to be retried, whatever it says: a sandbox is not given up because a key was wrong
        for a while.
        """
        async with heartbeats():
            try:
                await self._delete(step)
            except ApplicationError as error:
                if not error.non_retryable:
                    raise
                raise ApplicationError(
                    error.message, *error.details, type=error.type, next_retry_delay=error.next_retry_delay
                ) from error

    async def _delete(self, step: DeleteSandboxStep) -> None:
        if step.nothing_created:
            return
        # While it is unknown under which connection it was created, it may be under any of them.
        for connection in await self._access.pool.connections.possible(step.ref):
            ref = step.ref.model_copy(update={"connection": connection.id})
            await delete_until_gone(self._access, step.model_copy(update={"ref": ref}), self._create_settle_s)

    async def _shown(self, ref: SandboxRef, sandbox: AsyncSandbox) -> ProviderSandbox:
        return shown(sandbox, (await self._access.pool.connections.of(ref)).id)

    def _look(self, ref: SandboxRef) -> Look:
        return lambda: self._access.find_or_confirm_lost(ref)

    async def _to_started(self, sandbox: AsyncSandbox, look: Look) -> AsyncSandbox:
        recovered = False
        while True:
            sandbox = await self._settled(sandbox, look)
            state = state_of(sandbox)
            if state == STARTED:
                self._access.remember(sandbox)
                return sandbox
            if state in AT_REST:
                sandbox = await self._change(sandbox, sandbox.start(CHANGE_ANSWER_S), look)
            elif state in BROKEN and sandbox.recoverable and not recovered:
                recovered = True
                sandbox = await self._change(sandbox, sandbox.recover(CHANGE_ANSWER_S), look)
            elif state in BROKEN:
                raise _failed(sandbox)
            else:
                sandbox = await look()

    async def _to_rest(self, sandbox: AsyncSandbox, look: Look) -> AsyncSandbox:
        while True:
            sandbox = await self._settled(sandbox, look)
            state = state_of(sandbox)
            if state in AT_REST:
                return sandbox
            if state == STARTED:
                sandbox = await self._change(sandbox, sandbox.stop(CHANGE_ANSWER_S), look)
            elif state in BROKEN:
                raise _failed(sandbox)
            else:
                sandbox = await look()

    async def _change(self, sandbox: AsyncSandbox, asking: Awaitable[None], look: Look) -> AsyncSandbox:
        """Ask for a change of state; return the sandbox as it is afterwards, changed or on its way.

        A refusal counts only when the state is what it was: stop refuses a stopped sandbox, start one that is
        starting, and 409 says that somebody else is at it.
        """
        before = state_of(sandbox)
        try:
            await request(asking, CHANGE_ANSWER_S + 5)
        except ProviderError as error:
            if error.fault.status in {401, 403, 429}:
                raise
            if error.is_conflict:
                await asyncio.sleep(PAUSE_S)
            sandbox = await self._refreshed(sandbox, look)
            if state_of(sandbox) == before and not (error.is_conflict or error.saw_error_state):
                raise
        return sandbox

    async def _settled(self, sandbox: AsyncSandbox, look: Look) -> AsyncSandbox:
        """The sandbox once it is in a state that lasts: told by the provider's events, asked every second."""
        looked = time.monotonic()
        waited = False
        while state_of(sandbox) not in LASTING:
            waited = True
            await asyncio.sleep(EVENT_LOOK_S)
            if time.monotonic() - looked >= LOOK_EVERY_S:
                sandbox = await self._refreshed(sandbox, look)
                looked = time.monotonic()
        if waited and state_of(sandbox) in BROKEN:  # an event brings the state alone, without its reason
            sandbox = await self._refreshed(sandbox, look)
        return sandbox

    async def _refreshed(self, sandbox: AsyncSandbox, look: Look) -> AsyncSandbox:
        try:
            await request(sandbox.refresh_data(), self._access.request_timeout_s)
        except ProviderError as error:
            if not error.not_found:
                raise
            return await look()
        return sandbox


@asynccontextmanager
async def _within(limit_s: float, doing: str) -> AsyncIterator[None]:
    """Heartbeats while the block runs, and ApplicationError `timeout` when it runs for longer than `limit_s`."""
    limit_s = min(limit_s, max(time_left_s() - TYPED_TIMEOUT_MARGIN_S, 0.0))
    try:
        async with heartbeats(), asyncio.timeout(limit_s):
            yield
    except TimeoutError as error:
        raise as_application_error(
            ToolError(
                code=ErrorCode.TIMEOUT,
                message=f"{doing} took longer than {limit_s:.0f} s",
                retryable=True,
                ambiguous=True,
            )
        ) from error


def _is_archived(sandbox: AsyncSandbox) -> bool:
    """Whether the sandbox is archived, or the provider has accepted to do it."""
    desired = sandbox.desired_state.value if sandbox.desired_state is not None else None
    return state_of(sandbox) in {"archived", "archiving"} or desired == "archived"


def _failed(sandbox: AsyncSandbox) -> ApplicationError:
    reason = readable(sandbox.error_reason or "") or "the provider gives no reason"
    return as_application_error(
        ToolError(
            code=ErrorCode.SANDBOX_FAILED,
            message=f"the provider holds the sandbox in the state {state_of(sandbox)}: {reason}",
            hint="Create a new sandbox.",
        )
    )


def _vanished(ref: SandboxRef) -> ApplicationError:
    message = f"the sandbox {ref.sandbox_id} disappeared at the provider while it was created"
    return as_application_error(
        ToolError(code=ErrorCode.PROVIDER_UNAVAILABLE, message=message, retryable=True), non_retryable=False
    )


def nothing_created(error: ApplicationError) -> ApplicationError:
    """The same failure, of a creation that the provider was never asked for."""
    return ApplicationError(error.message, *error.details, type=SandboxSignal.NOTHING_CREATED, non_retryable=True)
