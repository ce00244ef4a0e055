"""The way in: one connection to a deployment, from which sessions are opened, found and listed."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property

from pydantic import JsonValue, ValidationError
from temporalio.client import Client, WorkflowExecution, WorkflowFailureError
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.runtime import Runtime
from temporalio.service import RetryConfig, RPCError, RPCStatusCode

from sandhold.client.errors import (
    InvalidRequest,
    OwnerMismatch,
    SearchAttributesMissing,
    SessionEnded,
    SessionNotFound,
    TemporalRefused,
)
from sandhold.client.requests import Deadline, TemporalRequests, is_open
from sandhold.client.rows import SessionRow
from sandhold.client.session import Session
from sandhold.contracts.names import (
    CLEAN_STORAGE_SCHEDULE,
    CLEAN_STORAGE_WORKFLOW,
    SESSION_WORKFLOW,
    is_id,
    is_owner,
    session_workflow_id,
)
from sandhold.contracts.policy import Policy
from sandhold.contracts.sessions import SessionOutcome, SessionRecord, SessionStart, SessionState
from sandhold.contracts.storage import CleanStorageStep, StorageCleaned
from sandhold.search_attributes import OWNER, SESSION, STATE
from sandhold.security import open_key_ring
from sandhold.settings import Settings
from sandhold.storage import SessionStorage, StorageError
from sandhold.temporal import connect, encrypting, session_record

logger = logging.getLogger("sandhold.client")

DEFAULT_OWNER = "default"
_STORAGE_TELLS_WITHIN_S = 5.0
"""How long opening a session waits for a storage that does not answer."""
# Requests are repeated by `TemporalRequests`, which can be interrupted and knows what an answer means; the SDK's own
# retries wait up to 7 s when a workflow has ten updates in flight (temporalio 1.35). One try is how it spells none.
NO_RETRIES = RetryConfig(max_retries=1)


class Sandhold:
    """A connection to one deployment, made with `connect` or from a Temporal client, whose connection it shares."""

    def __init__(self, client: Client, settings: Settings | None = None) -> None:
        """What a client without our data converter would send as plain text is encrypted under the settings' key ring.

        Raises KeyRingMissing and KeyRingUnusable when there is none.
        """
        self._settings = settings or Settings.load()
        self._requests = TemporalRequests(encrypting(client, self._settings), reconnect_s=self._settings.reconnect_s)

    @classmethod
    async def connect(cls, settings: Settings | None = None, *, runtime: Runtime | None = None) -> Sandhold:
        """Connect to the deployment that the environment names, or a running `sandhold dev`.

        Raises TemporalUnreachable when Temporal does not answer, SettingsError when the environment is wrong,
        KeyRingMissing and KeyRingUnusable when it names no key ring.
        """
        settings = settings or Settings.load()
        return cls(await connect(settings, runtime=runtime, retries=NO_RETRIES), settings)

    @property
    def client(self) -> Client:
        """The Temporal client underneath."""
        return self._requests.client

    @cached_property
    def _all_storage(self) -> SessionStorage:
        return SessionStorage.open(self._settings.storage_location, open_key_ring(self._settings))

    @cached_property
    def _storage(self) -> SessionStorage:
        """The storage for whoever works for a session."""

        async def lookup(session_id: str) -> SessionRecord | None:
            async def attempt(request_timeout: timedelta) -> SessionRecord:
                return await session_record(self.client, session_id, timeout=request_timeout)

            try:
                return await self._requests.send(attempt, deadline=Deadline())
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    return None
                raise TemporalRefused(f"Temporal refused to tell of the session: {error.message}") from error

        return self._all_storage.guarded(lookup)

    async def open_session(
        self,
        session_id: str | None = None,
        owner: str = DEFAULT_OWNER,
        policy: Policy | Mapping[str, JsonValue] | None = None,
        *,
        timeout: float | None = None,
    ) -> Session:
        """Start a session, or attach to the open one of this id, whose policy then stays as it is.

        Needs no worker. Raises InvalidRequest, OwnerMismatch when the open session is someone else's, and
        SessionEnded when the id was used before: as Temporal says, or storage that still holds something of it.
        """
        deadline = Deadline.after(timeout)
        is_chosen = session_id is not None
        session_id = new_session_id() if session_id is None else _valid_session_id(session_id)
        if not is_owner(owner):
            raise InvalidRequest(f"{owner[:140]!r} cannot be an owner: letters, digits and _ . : @ -, at most 128")
        start = SessionStart(session_id=session_id, owner=owner, policy=_valid_policy(policy))
        if is_chosen and await self._is_left_over(session_id, deadline):
            raise SessionEnded(session_id)
        try:
            await self._start(start, deadline)
        except WorkflowAlreadyStartedError:
            existing = await self.find_session(session_id, timeout=None if timeout is None else deadline.left_s())
            if existing.state == "ended":
                raise SessionEnded(session_id) from None
            if existing.owner != owner:
                raise OwnerMismatch(session_id, owner) from None
        except RPCError as error:
            if "search attribute" in error.message.lower():
                raise SearchAttributesMissing(
                    f"Temporal's namespace {self.client.namespace!r} lacks Sandhold's search attributes; "
                    "run `sandhold setup` (a worker registers them as well)"
                ) from error
            raise TemporalRefused(f"Temporal refused to start the session: {error.message}") from error
        return self.session(session_id)

    async def _is_left_over(self, session_id: str, deadline: Deadline) -> bool:
        """Whether storage holds something of a session of this id that Temporal has forgotten.

        Where storage does not say so in time the session is opened: it cannot use what an earlier one left.
        """
        try:
            async with asyncio.timeout(min(_STORAGE_TELLS_WITHIN_S, deadline.check())):
                if await anext(self._all_storage.objects.list(session_id), None) is None:
                    return False
        except (StorageError, TimeoutError) as error:
            logger.warning("session %s is opened without a look at what storage holds of it: %s", session_id, error)
            return False
        try:
            await self.find_session(session_id, timeout=None if deadline.at is None else deadline.check())
        except SessionNotFound:
            return True
        return False

    def session(self, session_id: str) -> Session:
        """The session of this id, whether it exists or not: asking it for something tells. Raises InvalidRequest."""
        return Session(_valid_session_id(session_id), self._requests, lambda: self._storage)

    async def find_session(self, session_id: str, *, timeout: float | None = None) -> SessionRow:
        """The row of one session, up to date. Needs no worker. Raises InvalidRequest and SessionNotFound."""
        handle = self.client.get_workflow_handle(session_workflow_id(_valid_session_id(session_id)))

        async def attempt(request_timeout: timedelta) -> SessionRow:
            return _row(await handle.describe(rpc_timeout=request_timeout))

        try:
            return await self._requests.send(attempt, deadline=Deadline.after(timeout))
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise SessionNotFound(session_id) from error
            raise TemporalRefused(f"Temporal refused to describe the session: {error.message}") from error

    async def list_sessions(
        self,
        *,
        owner: str | None = None,
        state: SessionState | None = None,
        limit: int = 1000,
        timeout: float | None = None,
    ) -> list[SessionRow]:
        """Sessions, newest first, at most `limit`; ended ones as long as Temporal retains them.

        The list may lag behind by what the server's visibility store needs. Needs no worker.
        """
        clauses = [f"WorkflowType = '{SESSION_WORKFLOW}'", "ExecutionStatus != 'ContinuedAsNew'"]
        if owner is not None:
            if not is_owner(owner):
                return []
            clauses.append(f"{OWNER.name} = '{owner}'")
        if state is not None:
            clauses.append(f"ExecutionStatus {'!=' if state == 'ended' else '='} 'Running'")

        async def attempt(request_timeout: timedelta) -> list[SessionRow]:
            rows: list[SessionRow] = []
            async for execution in self.client.list_workflows(" AND ".join(clauses), rpc_timeout=request_timeout):
                row = _row(execution)
                if state in (None, row.state):
                    rows.append(row)
                if len(rows) >= limit:
                    break
            return rows

        try:
            return await self._requests.send(attempt, deadline=Deadline.after(timeout))
        except RPCError as error:
            raise TemporalRefused(f"Temporal refused to list the sessions: {error.message}") from error

    async def clean_storage(self, *, dry_run: bool = False, timeout: float | None = None) -> StorageCleaned:
        """Remove what sessions left that their policies keep no longer, now instead of by the schedule; what was done.

        A dry run only tells what would be removed. Needs a worker. Raises WaitTimeout (the clean-up goes on), and
        TemporalRefused when the clean-up failed.
        """
        handle = self.client.get_workflow_handle(
            f"{CLEAN_STORAGE_SCHEDULE}-{uuid.uuid4().hex[:16]}", result_type=StorageCleaned
        )
        deadline = Deadline.after(timeout)

        async def begin(request_timeout: timedelta) -> None:
            await self.client.start_workflow(
                CLEAN_STORAGE_WORKFLOW,
                CleanStorageStep(dry_run=dry_run),
                id=handle.id,
                task_queue=self._settings.task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                static_summary="Removes what ended sessions left in storage",
                rpc_timeout=request_timeout,
            )

        async def outcome(request_timeout: timedelta) -> StorageCleaned:
            cleaned: StorageCleaned = await handle.result(rpc_timeout=request_timeout)
            return cleaned

        try:
            await self._requests.send(begin, deadline=deadline)
            return await self._requests.send(outcome, deadline=deadline)
        except RPCError as error:
            raise TemporalRefused(f"Temporal refused to clean the storage: {error.message}") from error
        except WorkflowFailureError as failure:
            raise TemporalRefused(f"the clean-up failed: {failure.cause.__cause__ or failure.cause}") from failure

    async def _start(self, start: SessionStart, deadline: Deadline) -> None:
        # A start that is repeated because its answer was lost finds its own session, which is then attached to.
        async def attempt(request_timeout: timedelta) -> None:
            await self.client.start_workflow(
                SESSION_WORKFLOW,
                start,
                id=session_workflow_id(start.session_id),
                task_queue=self._settings.task_queue,
                result_type=SessionOutcome,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                search_attributes=TypedSearchAttributes(
                    [
                        SearchAttributePair(OWNER, start.owner),
                        SearchAttributePair(SESSION, start.session_id),
                        SearchAttributePair(STATE, "open"),
                    ]
                ),
                static_summary=f"Agent session of {start.owner}",
                rpc_timeout=request_timeout,
            )

        await self._requests.send(attempt, deadline=deadline)


def new_session_id() -> str:
    return f"session-{uuid.uuid4().hex[:16]}"


def _row(execution: WorkflowExecution) -> SessionRow:
    attributes = execution.typed_search_attributes
    state: SessionState = "ended"
    if is_open(execution.status):
        state = "ending" if attributes.get(STATE) == "ending" else "open"
    return SessionRow(
        session_id=execution.id.removeprefix(session_workflow_id("")),
        workflow_id=execution.id,
        owner=attributes.get(OWNER) or "",
        state=state,
        started_at=execution.start_time,
        ended_at=execution.close_time,
    )


def _valid_session_id(session_id: str) -> str:
    if not is_id(session_id):
        raise InvalidRequest(
            f"{session_id[:100]!r} cannot be a session id: lower-case letters, digits and hyphens, at most 63"
        )
    return session_id


def _valid_policy(policy: Policy | Mapping[str, JsonValue] | None) -> Policy:
    if isinstance(policy, Policy):
        return policy
    try:
        return Policy.model_validate(policy or {})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        )
        raise InvalidRequest(f"policy: {faults}") from None
