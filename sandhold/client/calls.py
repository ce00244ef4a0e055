"""The conversation about one tool call: deliver it, wait for its end, say what became of it.

A call goes straight to the workflow that owns what it is about: create and list to the session, all others to
the sandbox. The update answers soon, with the status `running` if need be; then the query `result` is polled,
which costs no history and holds no update slot. Whatever breaks in between, the call is sent again under the
same call id, which the workflow knows.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import JsonValue
from pydantic_core import to_json
from temporalio.client import WorkflowQueryFailedError, WorkflowQueryRejectedError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from sandhold.client.absence import Absence, session_not_found
from sandhold.client.errors import WaitTimeout
from sandhold.client.requests import Backoff, Deadline, NeverRan, NoSlot, TemporalRequests
from sandhold.contracts.calls import (
    INLINE_LIMIT_BYTES,
    MESSAGE_LIMIT_BYTES,
    CallEnvelope,
    CallRequest,
    json_bytes,
    json_sha256,
)
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure
from sandhold.contracts.names import (
    CALL_ID_PATTERN,
    CALL_UPDATE,
    COMMAND_TOOLS,
    RESULT_QUERY,
    SESSION_TOOLS,
    SUBMIT_SIGNAL,
    ToolName,
    call_folder,
    is_call_id,
    is_id,
    sandbox_workflow_id,
    session_workflow_id,
)
from sandhold.contracts.tools import ManageSandboxResult, parse_arguments, tool_named
from sandhold.storage import DocumentMissing, Quota, SessionStorage, StorageError

_BY_REFERENCE = frozenset(
    {
        ToolName.EXEC,
        ToolName.READ_FILE,
        ToolName.WRITE_FILE,
        ToolName.DOWNLOAD_WORKSPACE,
        ToolName.PUSH_FILES,
    }
)
"""Tools whose arguments are read by an activity; the arguments of the others are read by a workflow."""
_ONCE_PER_ID = frozenset({*COMMAND_TOOLS, ToolName.COMMAND, ToolName.READ_FILE, ToolName.WRITE_FILE})
"""Tools that change nothing when a call comes again long after its end: what changes a sandbox is noted inside it."""
_SLOT_WITHIN_S = 0.25
"""How long a call waits for others to be answered; then it goes by a signal, so that it is not behind long ones."""
_TAKEN_WITHIN_S = 10.0
"""How long a sandbox may take to show a call that was handed to it."""
_TRIES_WHILE_CLOSED = 6
_LOOK_S = 1.0
"""How long a call whose timeout has passed is looked for before it is given up."""
CLOSED_WITH_UPDATE = "AcceptedUpdateCompletedWorkflow"
"""The server's failure type when a workflow closed before it had answered an update (server 1.32)."""


def new_call_id() -> str:
    return f"call-{uuid.uuid4().hex}"


@dataclass(frozen=True)
class Prepared:
    """A call that can be sent: the request, and the workflow that takes it."""

    request: CallRequest
    workflow_id: str
    sandbox_id: str | None


class Calls:
    """The calls of one session."""

    def __init__(
        self,
        session_id: str,
        requests: TemporalRequests,
        storage: Callable[[], SessionStorage],
        quota: Callable[[Deadline], Awaitable[Quota | None]],
    ) -> None:
        self._session_id = session_id
        self._session_workflow_id = session_workflow_id(session_id)
        self._requests = requests
        self._storage = storage
        self._quota = quota
        self._absence = Absence(session_id, requests)

    async def prepare(self, call_id: str, tool: str, arguments: JsonValue) -> Prepared:
        """What can be sent. Raises ToolFailure for a call that has no place to go to, or is too large for a message.

        Arguments that name their sandbox are checked where they are read, so that there is one judge of them.
        """
        if not is_call_id(call_id):
            raise ToolFailure(
                ErrorCode.INVALID_ARGUMENTS, f"{call_id[:140]!r} is not a call id; it must match {CALL_ID_PATTERN}"
            )
        name = tool_named(tool)
        arguments = {} if arguments is None else arguments
        sandbox_id = _named_sandbox(arguments)
        request, size = _message(call_id, name, arguments, sandbox_id)
        to_session = name in SESSION_TOOLS
        if size > INLINE_LIMIT_BYTES or (sandbox_id is None and not to_session):
            parse_arguments(name, arguments)
        if size > INLINE_LIMIT_BYTES and name in _BY_REFERENCE:
            request = await self._by_reference(request)
        elif size > MESSAGE_LIMIT_BYTES:
            raise ToolFailure(
                ErrorCode.TOO_LARGE, f"the arguments are {size} bytes long; at most {MESSAGE_LIMIT_BYTES} can be sent"
            )
        if to_session or sandbox_id is None:
            return Prepared(request, self._session_workflow_id, None)
        return Prepared(request, sandbox_workflow_id(self._session_id, sandbox_id), sandbox_id)

    async def call(self, prepared: Prepared, *, wait: bool, deadline: Deadline) -> CallEnvelope:
        """The envelope of the call; `running` only without `wait`, or when the deadline passed first.

        Raises ToolFailure when the call could not be delivered, TemporalUnreachable when Temporal is away for long.
        """
        try:
            envelope = await self._deliver(prepared, wait, deadline)
        except WaitTimeout:
            envelope = await self._look_once_more(prepared)
        if wait and envelope.status == "running":
            envelope = await self._until_done(prepared, envelope, deadline)
        return await self.resolved(envelope)

    async def known(self, call_id: str, workflow_id: str, deadline: Deadline) -> CallEnvelope | None:
        """What a workflow knows of a call; None when it knows nothing, or does not exist."""
        try:
            return await self._requests.query(
                workflow_id, RESULT_QUERY, call_id, answer=CallEnvelope, deadline=deadline
            )
        except NeverRan:
            return None
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise

    async def resolved(self, envelope: CallEnvelope) -> CallEnvelope:
        """The envelope as the caller sees it: with its result instead of a reference."""
        result = envelope.result
        if envelope.result_ref is not None and result is None and envelope.status == "done" and envelope.error is None:
            try:
                result = await self._storage().get_json(self._session_id, envelope.result_ref)
            except DocumentMissing as error:
                raise ToolFailure(
                    ErrorCode.INTERNAL,
                    f"the call has ended, but the client cannot find its result ({error}): "
                    "client and worker seem to see different storages",
                    hint="Set SANDHOLD_STORAGE_URL for the client and the workers so that both reach the same "
                    "storage; then call again with the same call id.",
                    retryable=True,
                ) from error
            except StorageError as error:
                raise error.failure("the call has ended, but its result cannot be read") from error
        spent = {"result_ref": None, "fingerprint": None, "generation": None}
        return envelope.model_copy(update={"result": result, **spent})

    async def _by_reference(self, request: CallRequest) -> CallRequest:
        """Put the arguments into session storage, under a name that other arguments cannot take.

        Raises ToolFailure `quota_exceeded` when the session's storage is full, and `session_not_found`.
        """
        quota = await self._quota(Deadline())
        if quota is None:
            raise ToolFailure(**session_not_found(self._session_id).model_dump())
        digest = json_sha256(request.arguments)
        path = f"calls/{call_folder(request.call_id)}/arguments-{digest[:16]}.json"
        try:
            ref = await self._storage().put_json(self._session_id, path, request.arguments, quota=quota.session_bytes)
        except StorageError as error:
            raise error.failure("the arguments could not be stored") from error
        return request.model_copy(update={"arguments": None, "arguments_ref": ref})

    async def _submit(self, prepared: Prepared, deadline: Deadline) -> CallEnvelope:
        """Hand the call over without waiting for it; the envelope as soon as the sandbox has taken it.

        A signal holds no update slot. Raises RPCError NOT_FOUND when the sandbox's workflow does not run.
        """
        call_id = prepared.request.call_id
        await self._requests.signal(prepared.workflow_id, SUBMIT_SIGNAL, prepared.request, deadline=deadline)
        pause = Backoff(0.02, 0.5)
        taken_by = Deadline.after(min(_TAKEN_WITHIN_S, deadline.check()))
        while True:
            known = await self.known(call_id, prepared.workflow_id, deadline)
            if known is not None:
                return known
            await pause.sleep(taken_by)

    async def _deliver(self, prepared: Prepared, wait: bool, deadline: Deadline) -> CallEnvelope:
        """The first envelope of the call, whose status may be `running`. Raises ToolFailure when nobody takes it."""
        closed = Backoff(0.1, 1.0)
        for _ in range(_TRIES_WHILE_CLOSED):
            try:
                if wait or prepared.sandbox_id is None:
                    return _same_call(prepared, await self._update(prepared, deadline))
                return _same_call(prepared, await self._submit(prepared, deadline))
            except WorkflowUpdateFailedError as refusal:
                if not (isinstance(refusal.cause, ApplicationError) and refusal.cause.type == CLOSED_WITH_UPDATE):
                    raise _refused(refusal) from refusal
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise ToolFailure(ErrorCode.INTERNAL, f"Temporal refused the call: {error.message}") from error
            # The workflow has closed, or never was. What it recorded is the answer; else the session knows why.
            known = await self.known(prepared.request.call_id, prepared.workflow_id, deadline)
            if known is not None:
                return _same_call(prepared, known)
            if prepared.request.deletes and await self._absence.sandbox_has_ended(prepared.sandbox_id, deadline):
                return self._deleted(prepared)
            await self._absence.explain(prepared.sandbox_id, deadline)
            # The session counts it as open: it is between two runs, or about to be deleted.
            await closed.sleep(deadline)
        raise ToolFailure(
            ErrorCode.SANDBOX_LOST,
            f"the workflow of sandbox {prepared.sandbox_id!r} was closed from outside; its session deletes the sandbox",
            hint="Create a new sandbox.",
        )

    def _deleted(self, prepared: Prepared) -> CallEnvelope:
        """The answer to a deletion of what is confirmed absent already."""
        assert prepared.sandbox_id is not None
        return CallEnvelope(
            call_id=prepared.request.call_id,
            session_id=self._session_id,
            sandbox_id=prepared.sandbox_id,
            tool=prepared.request.tool,
            status="done",
            ok=True,
            result=ManageSandboxResult.deleted(prepared.sandbox_id).model_dump(mode="json"),
        )

    async def _update(self, prepared: Prepared, deadline: Deadline) -> CallEnvelope:
        try:
            return await self._requests.update(
                prepared.workflow_id,
                CALL_UPDATE,
                prepared.request,
                update_id=prepared.request.call_id,
                answer=CallEnvelope,
                deadline=deadline,
                # Creates are answered at once: they can wait for a slot.
                slot_within_s=None if prepared.sandbox_id is None else _SLOT_WITHIN_S,
            )
        except NoSlot:
            return await self._submit(prepared, deadline)

    async def _look_once_more(self, prepared: Prepared) -> CallEnvelope:
        """The timeout passed before an answer: the call may run all the same, and is then told as running."""
        try:
            known = await self.known(prepared.request.call_id, prepared.workflow_id, Deadline.after(_LOOK_S))
        except (WaitTimeout, WorkflowQueryFailedError):
            known = None
        if known is not None:
            return _same_call(prepared, known)
        raise ToolFailure(
            ErrorCode.TIMEOUT,
            "the call was not answered within the caller's timeout",
            hint="It may still run. Call again with the same call id to get its result.",
            retryable=True,
            ambiguous=True,
        )

    async def _until_done(self, prepared: Prepared, envelope: CallEnvelope, deadline: Deadline) -> CallEnvelope:
        """Poll until the call has ended; the running envelope when the deadline passes first.

        A workflow that knows nothing of it any more has forgotten its end: then it is sent again.
        """
        sandbox_id = prepared.sandbox_id or envelope.sandbox_id
        workflow_id = sandbox_workflow_id(self._session_id, sandbox_id) if sandbox_id else prepared.workflow_id
        pause = Backoff(0.1, 2.0, factor=1.3)
        repeated = False
        try:
            while True:
                await pause.sleep(deadline)
                known, closed = await self._poll(prepared.request.call_id, workflow_id, deadline)
                if known is not None and known.status == "done":
                    return _same_call(prepared, _of_repetition(known) if repeated else known)
                if closed:
                    raise _interrupted("the sandbox's workflow ended before the call did")
                if known is None:
                    await self._repeat(prepared, envelope, deadline)
                    repeated = True
        except WaitTimeout:
            return envelope

    async def _repeat(self, prepared: Prepared, envelope: CallEnvelope, deadline: Deadline) -> None:
        """Send a call again to the open sandbox that has taken it, `envelope` says so, and has forgotten it since.

        By a signal: the server itself would answer the update, as it did before. Raises ToolFailure `interrupted` when
        that could do the call's work a second time.
        """
        if envelope.generation is None or prepared.request.tool not in _ONCE_PER_ID:
            raise _interrupted("the sandbox knows nothing of the call any more")
        request = prepared.request.model_copy(update={"generation": envelope.generation})
        try:
            await self._requests.signal(prepared.workflow_id, SUBMIT_SIGNAL, request, deadline=deadline)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            # The workflow has just closed: the next look at it tells what it recorded.

    async def _poll(self, call_id: str, workflow_id: str, deadline: Deadline) -> tuple[CallEnvelope | None, bool]:
        """What the workflow knows of the call, and whether the workflow has closed."""
        try:
            known = await self._requests.query(
                workflow_id, RESULT_QUERY, call_id, answer=CallEnvelope, deadline=deadline, only_open=True
            )
        except WorkflowQueryRejectedError:
            return await self.known(call_id, workflow_id, deadline), True
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None, True
            raise
        return known, False


def failed(session_id: str, call_id: str, tool: str, sandbox_id: str | None, error: ToolError) -> CallEnvelope:
    """The envelope of a call that failed without a workflow's answer."""
    return CallEnvelope(
        call_id=call_id,
        session_id=session_id,
        sandbox_id=sandbox_id,
        tool=tool,
        status="done",
        ok=False,
        error=error,
    )


def _named_sandbox(arguments: JsonValue) -> str | None:
    """The sandbox that the arguments name, if its id can be one."""
    named = arguments.get("sandbox_id") if isinstance(arguments, dict) else None
    return named if isinstance(named, str) and is_id(named) else None


def _message(call_id: str, tool: ToolName, arguments: JsonValue, sandbox_id: str | None) -> tuple[CallRequest, int]:
    """The request, and the bytes of its arguments as canonical JSON.

    Raises ToolFailure when they cannot be in a message: not JSON at all, or text with unpaired surrogates.
    """
    try:
        size = len(json_bytes(arguments))
        request = CallRequest(call_id=call_id, tool=tool.value, arguments=arguments, sandbox_id=sandbox_id)
        to_json(arguments)
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolFailure(
            ErrorCode.INVALID_ARGUMENTS,
            f"{tool.value}: the arguments are not JSON with valid Unicode text",
            hint="Send bytes that are not text as base64, where the tool takes it.",
        ) from error
    return request, size


def _same_call(prepared: Prepared, envelope: CallEnvelope) -> CallEnvelope:
    """The envelope, unless it answers another call under this id.

    The server itself answers an update id that it knows, without asking the workflow: a conflict shows only here.
    """
    if envelope.fingerprint and envelope.fingerprint != prepared.request.fingerprint():
        raise ToolFailure(
            ErrorCode.CALL_ID_CONFLICT,
            f"call id {prepared.request.call_id!r} was used for another call; nothing was done",
            hint="Use a new call id for every new call.",
        )
    return envelope


def _of_repetition(envelope: CallEnvelope) -> CallEnvelope:
    """The answer to a call that was sent again: when that was refused, the call has had its effect all the same."""
    if envelope.error is None:
        return envelope
    return envelope.model_copy(update={"error": envelope.error.model_copy(update={"ambiguous": True})})


def _interrupted(message: str) -> ToolFailure:
    hint = "The call may have had its effect. Look before you repeat it."
    return ToolFailure(ErrorCode.INTERRUPTED, message, hint=hint, ambiguous=True)


def _refused(refusal: WorkflowUpdateFailedError) -> ToolFailure:
    """The typed error that a workflow refused a call with; any other failure is an internal one."""
    cause = refusal.cause
    if isinstance(cause, ApplicationError):
        if cause.details:
            return as_tool_failure(ToolError.model_validate(cause.details[0]))
        if cause.type in set(ErrorCode):
            return ToolFailure(ErrorCode(cause.type), cause.message)
    return ToolFailure(ErrorCode.INTERNAL, f"the workflow failed to answer the call: {cause}")


def as_tool_failure(error: ToolError) -> ToolFailure:
    return ToolFailure(error.code, error.message, **error.model_dump(exclude={"code", "message"}))
