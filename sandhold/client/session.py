"""One agent session: call its tools, look at it, end it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar, overload

from pydantic import JsonValue
from temporalio.client import WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from sandhold.client.absence import Absence
from sandhold.client.calls import Calls, as_tool_failure, failed, new_call_id
from sandhold.client.commands import Command
from sandhold.client.ending import Ending
from sandhold.client.errors import SessionEnded, SessionNotFound, WaitTimeout
from sandhold.client.files import SessionFiles
from sandhold.client.pending import last_failure
from sandhold.client.requests import Deadline, NeverRan, TemporalRequests
from sandhold.client.rows import ShownSession
from sandhold.contracts.base import Message
from sandhold.contracts.calls import CallEnvelope
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure
from sandhold.contracts.fields import Size
from sandhold.contracts.git import GitCloneResult
from sandhold.contracts.git_credentials import GitCredentialsResult
from sandhold.contracts.names import STATUS_QUERY, SUBMIT_SIGNAL, ToolName, sandbox_workflow_id, session_workflow_id
from sandhold.contracts.sandboxes import SandboxState, SandboxStatus, ShownSandbox
from sandhold.contracts.sessions import EndAnswer, SessionOutcome, SessionStatus, listed, shown_sandboxes
from sandhold.contracts.tools import (
    CreateSandboxResult,
    ExecResult,
    ListSandboxesResult,
    ManageSandboxResult,
    OutputDetail,
    ReadFileResult,
    WriteFileResult,
    parse_arguments,
)
from sandhold.contracts.transfers import PushFilesResult, RestoreFrom
from sandhold.contracts.workspaces import DownloadWorkspaceResult
from sandhold.storage import SessionStorage

Result = TypeVar("Result", bound=Message)

_STATUS_WITHIN_S = 5.0
"""A sandbox that has not told its status by then is shown as `unknown`."""


class Session:
    """A session by its id. Holds nothing but what never changes: any number of these, anywhere, speak for the same."""

    def __init__(self, session_id: str, requests: TemporalRequests, storage: Callable[[], SessionStorage]) -> None:
        self.session_id = session_id
        self.workflow_id = session_workflow_id(session_id)
        self._requests = requests
        self._storage = storage
        self.files = SessionFiles(session_id, requests, storage)
        """The session's files in storage."""
        self._calls = Calls(session_id, requests, storage, self.files.quota)
        self._absence = Absence(session_id, requests)
        self._ending = Ending(session_id, requests, self._absence)

    # Calls.

    async def call(
        self,
        tool: str,
        arguments: JsonValue = None,
        call_id: str | None = None,
        *,
        wait: bool = True,
        timeout: float | None = None,
    ) -> CallEnvelope:
        """Call a tool and return its envelope; what went wrong is in it.

        The same call id (by default a new one) never runs twice: repeating a call returns what became of it.
        Without `wait`, or when `timeout` seconds (and one more to look) pass first, the envelope of a call that
        still runs has the status `running`. Raises TemporalUnreachable, and what is wrong with the deployment.
        """
        call_id = new_call_id() if call_id is None else call_id
        deadline = Deadline.after(timeout)
        try:
            prepared = await self._calls.prepare(call_id, tool, arguments)
            if prepared.request.tool == ToolName.LIST_SANDBOXES:
                parse_arguments(ToolName.LIST_SANDBOXES, prepared.request.arguments)
                rows = await self._list(deadline)
                return CallEnvelope(
                    call_id=call_id,
                    session_id=self.session_id,
                    tool=tool,
                    status="done",
                    ok=True,
                    result=rows.model_dump(mode="json"),
                )
            return await self._calls.call(prepared, wait=wait, deadline=deadline)
        except ToolFailure as failure:
            error = failure.error
        except WorkflowQueryFailedError as failure:
            error = ToolError(code=ErrorCode.INTERNAL, message=f"the workflow does not tell: {failure}", ambiguous=True)
        sandbox_id = arguments.get("sandbox_id") if isinstance(arguments, dict) else None
        return failed(self.session_id, call_id, tool, sandbox_id if isinstance(sandbox_id, str) else None, error)

    async def submit(self, tool: str, arguments: JsonValue = None, call_id: str | None = None) -> str:
        """Hand a call to the session without waiting for anything but the server; `result` tells what became of it.

        Returns the call id. Raises ToolFailure for what can be told at once, SessionNotFound and SessionEnded.
        """
        call_id = new_call_id() if call_id is None else call_id
        prepared = await self._calls.prepare(call_id, tool, arguments)
        try:
            await self._requests.signal(self.workflow_id, SUBMIT_SIGNAL, prepared.request, deadline=Deadline())
        except RPCError as error:
            raise await self._ending.refusal(error) from error
        return call_id

    async def result(
        self, call_id: str, sandbox_id: str | None = None, *, timeout: float | None = None
    ) -> CallEnvelope | None:
        """The envelope of a call made earlier, by whatever way; None when nobody in the session knows its id.

        Costs no history. Without `sandbox_id` the session is asked first, then its sandboxes.
        """
        deadline = Deadline.after(timeout)
        found = None
        if sandbox_id is None:
            found = await self._calls.known(call_id, self.workflow_id, deadline)
            sandbox_ids = [found.sandbox_id] if found and found.sandbox_id else await self._sandbox_ids(deadline)
        else:
            sandbox_ids = [sandbox_id]
        # The session passes calls on, and points to a sandbox that has ended since.
        passed_on = found is not None and found.error is not None and found.error.code is ErrorCode.WRONG_TARGET
        if found is None or found.status == "running" or passed_on:
            workflow_ids = [sandbox_workflow_id(self.session_id, each) for each in sandbox_ids]
            answers = await asyncio.gather(*(self._calls.known(call_id, each, deadline) for each in workflow_ids))
            found = next((answer for answer in answers if answer is not None), found)
        if found is None:
            return None
        try:
            return await self._calls.resolved(found)
        except ToolFailure as failure:
            return failed(self.session_id, call_id, found.tool, found.sandbox_id, failure.error)

    # The tools, typed. Each returns the tool's result or raises ToolFailure.

    async def create_sandbox(
        self,
        title: str | None = None,
        *,
        sandbox_id: str | None = None,
        size: Size | None = None,
        snapshot: str | None = None,
        env: Mapping[str, str] | None = None,
        secret_env: Iterable[str] | None = None,
        auto_stop_minutes: int | None = None,
        upload_files: Iterable[tuple[str, str]] | None = None,
        restore_from: str | RestoreFrom | None = None,
        call_id: str | None = None,
        timeout: float | None = None,
    ) -> CreateSandboxResult:
        """Create a sandbox and return once it is started, with what it was asked to bring along.

        `secret_env` names secrets of the session that its commands get as environment variables, with the values of
        the moment. `upload_files` are pairs of a path in session storage and one in the sandbox. What could not be
        brought is told by the result, and fails nothing else.
        """
        arguments = _given(
            title=title,
            sandbox_id=sandbox_id,
            size=size,
            snapshot=snapshot,
            env=dict(env) if env is not None else None,
            secret_env=list(secret_env) if secret_env is not None else None,
            auto_stop_minutes=auto_stop_minutes,
            upload_files=None if upload_files is None else _pairs(upload_files),
            restore_from=None if restore_from is None else _source(restore_from),
        )
        return await self._typed(ToolName.CREATE_SANDBOX, arguments, CreateSandboxResult, call_id, timeout)

    async def exec(
        self,
        sandbox_id: str,
        command: str,
        *,
        cwd: str | None = None,
        timeout_ms: int | None = None,
        output: OutputDetail | None = None,
        call_id: str | None = None,
        timeout: float | None = None,
    ) -> ExecResult:
        """Run a command to its end. `timeout_ms` ends the command; `timeout` (seconds) only this waiting for it."""
        arguments = _given(sandbox_id=sandbox_id, command=command, cwd=cwd, timeout=timeout_ms, output=output)
        return await self._typed(ToolName.EXEC, arguments, ExecResult, call_id, timeout)

    async def start(
        self,
        sandbox_id: str,
        command: str,
        *,
        cwd: str | None = None,
        timeout_ms: int | None = None,
        output: OutputDetail | None = None,
        stdin: bool | None = None,
        call_id: str | None = None,
        timeout: float | None = None,
    ) -> Command:
        """Start a command in the background and return as soon as it runs (or has ended). Safe to repeat by call id.

        Without `timeout_ms` it runs until it ends, is cancelled, or its sandbox is stopped as unused.
        """
        call_id = new_call_id() if call_id is None else call_id
        arguments = _given(
            sandbox_id=sandbox_id,
            command=command,
            cwd=cwd,
            timeout=timeout_ms,
            output=output,
            background=True,
            stdin=stdin,
        )
        await self._typed(ToolName.EXEC, arguments, ExecResult, call_id, timeout)
        return self.command(sandbox_id, call_id)

    def command(self, sandbox_id: str, call_id: str) -> Command:
        """A command that was started by the call `call_id`, by whatever way."""
        return Command(self, sandbox_id, call_id, self._requests, self._storage)

    async def resolve(self, envelope: CallEnvelope) -> CallEnvelope:
        """The envelope with its result instead of a reference to it."""
        return await self._calls.resolved(envelope)

    async def git_credentials(
        self, sandbox_id: str, *, call_id: str | None = None, timeout: float | None = None
    ) -> GitCredentialsResult:
        """Let git in the sandbox reach the owner's GitHub over https, for as long as the sandbox runs."""
        arguments = _given(sandbox_id=sandbox_id)
        return await self._typed(ToolName.GIT_CREDENTIALS, arguments, GitCredentialsResult, call_id, timeout)

    async def read_file(
        self,
        sandbox_id: str,
        path: str,
        *,
        offset: int | None = None,
        limit: int | None = None,
        call_id: str | None = None,
        timeout: float | None = None,
    ) -> ReadFileResult:
        arguments = _given(sandbox_id=sandbox_id, path=path, offset=offset, limit=limit)
        return await self._typed(ToolName.READ_FILE, arguments, ReadFileResult, call_id, timeout)

    async def write_file(
        self,
        sandbox_id: str,
        path: str,
        content: str,
        *,
        encoding: Literal["text", "base64"] | None = None,
        mode: str | None = None,
        append: bool | None = None,
        call_id: str | None = None,
        timeout: float | None = None,
    ) -> WriteFileResult:
        arguments = _given(
            sandbox_id=sandbox_id, path=path, content=content, encoding=encoding, mode=mode, append=append
        )
        return await self._typed(ToolName.WRITE_FILE, arguments, WriteFileResult, call_id, timeout)

    async def download_workspace(
        self,
        sandbox_id: str,
        sandbox_path: str | None = None,
        *,
        session_path: str | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        format: Literal["files", "archive"] | None = None,  # noqa: A002 - the tool's own name for it
        call_id: str | None = None,
        timeout: float | None = None,
    ) -> DownloadWorkspaceResult:
        """Save a directory or a file of the sandbox to the session's storage; return once it is there."""
        arguments = _given(
            sandbox_id=sandbox_id,
            sandbox_path=sandbox_path,
            session_path=session_path,
            include=None if include is None else list(include),
            exclude=None if exclude is None else list(exclude),
            format=format,
        )
        return await self._typed(ToolName.DOWNLOAD_WORKSPACE, arguments, DownloadWorkspaceResult, call_id, timeout)

    async def push_files(
        self,
        sandbox_id: str,
        files: Iterable[tuple[str, str]],
        *,
        call_id: str | None = None,
        timeout: float | None = None,
    ) -> PushFilesResult:
        """Bring files and folders from the session's storage into a sandbox; each by itself, whole or not at all.

        `files` are at most 100 pairs of a path in session storage and one in the sandbox.
        """
        arguments = _given(sandbox_id=sandbox_id, files=_pairs(files))
        return await self._typed(ToolName.PUSH_FILES, arguments, PushFilesResult, call_id, timeout)

    async def git_clone(
        self,
        sandbox_id: str,
        repo_url: str,
        *,
        branch: str | None = None,
        path: str | None = None,
        depth: int | None = None,
        submodules: bool | None = None,
        timeout_ms: int | None = None,
        call_id: str | None = None,
        timeout: float | None = None,
    ) -> GitCloneResult:
        """Clone a repository into the sandbox; private ones with the owner's GitHub connection.

        `branch` is a branch, a tag or a commit. `timeout_ms` ends the clone; `timeout` (seconds) only this waiting.
        """
        arguments = _given(
            sandbox_id=sandbox_id,
            repo_url=repo_url,
            branch=branch,
            path=path,
            depth=depth,
            submodules=submodules,
            timeout=timeout_ms,
        )
        return await self._typed(ToolName.GIT_CLONE, arguments, GitCloneResult, call_id, timeout)

    async def list_sandboxes(self, *, timeout: float | None = None) -> ListSandboxesResult:
        return await self._typed(ToolName.LIST_SANDBOXES, {}, ListSandboxesResult, None, timeout)

    async def manage_sandbox(
        self,
        sandbox_id: str,
        action: Literal["start", "stop", "archive", "delete"],
        *,
        call_id: str | None = None,
        timeout: float | None = None,
    ) -> ManageSandboxResult:
        arguments = _given(sandbox_id=sandbox_id, action=action)
        return await self._typed(ToolName.MANAGE_SANDBOX, arguments, ManageSandboxResult, call_id, timeout)

    # The session itself.

    async def status(self, *, timeout: float | None = None) -> SessionStatus:
        """What the session says of itself, also after its end.

        Raises SessionNotFound, and SessionEnded when it was closed from outside before it did anything.
        """
        return await self._status(Deadline.after(timeout))

    async def show(self, *, timeout: float | None = None) -> ShownSession:
        """The session with the live state of everything it owns, without capabilities. Raises SessionNotFound."""
        deadline = Deadline.after(timeout)
        status = await self._status(deadline)
        return ShownSession(
            **{name: getattr(status, name) for name in ShownSession.model_fields if hasattr(status, name)}
            | {"capabilities": [], "sandboxes": await self._shown(status, deadline)}
        )

    @overload
    async def end(
        self, reason: str = "ended", *, wait: Literal[True] = True, timeout: float | None = None
    ) -> SessionOutcome: ...

    @overload
    async def end(self, reason: str = "ended", *, wait: Literal[False], timeout: float | None = None) -> EndAnswer: ...

    async def end(
        self, reason: str = "ended", *, wait: bool = True, timeout: float | None = None
    ) -> SessionOutcome | EndAnswer:
        """End the session, and return its outcome once every sandbox is confirmed absent at the provider.

        Safe to repeat, also after the end. Without `wait` it returns when the end has begun. Raises
        SessionNotFound, WaitTimeout (the end goes on), and EndNotConfirmed when an operator closed the
        session and its sandboxes by force.
        """
        deadline = Deadline.after(timeout)
        answer = await self._ending.begin(reason, deadline)
        return await self._ending.outcome(self._status, deadline) if wait else answer

    async def wait_for_end(self, *, timeout: float | None = None) -> SessionOutcome:
        """The outcome of the session once it has ended, whoever ends it. Raises as `end` does."""
        return await self._ending.outcome(self._status, Deadline.after(timeout))

    # Inside.

    async def _typed(
        self,
        tool: ToolName,
        arguments: dict[str, JsonValue],
        result: type[Result],
        call_id: str | None,
        timeout: float | None,
    ) -> Result:
        envelope = await self.call(tool, arguments, call_id, timeout=timeout)
        if envelope.error is not None:
            raise as_tool_failure(envelope.error)
        if envelope.status == "running":
            raise ToolFailure(
                ErrorCode.TIMEOUT,
                f"call {envelope.call_id} still runs",
                hint="Call again with the same call id to get its result.",
                retryable=True,
                ambiguous=True,
            )
        return result.model_validate(envelope.result)

    async def _list(self, deadline: Deadline) -> ListSandboxesResult:
        """The list tool, answered by queries alone: listing adds nothing to any history."""
        try:
            await self._absence.explain(None, deadline)
            return listed(await self._shown(await self._status(deadline), deadline))
        except (WaitTimeout, WorkflowQueryFailedError) as error:
            raise ToolFailure(ErrorCode.TIMEOUT, f"the session did not answer: {error}", retryable=True) from error

    async def _status(self, deadline: Deadline) -> SessionStatus:
        is_open = await self._absence.session_is_open(deadline)
        if is_open is None:
            raise SessionNotFound(self.session_id)
        try:
            status = await self._requests.query(self.workflow_id, STATUS_QUERY, answer=SessionStatus, deadline=deadline)
        except NeverRan:
            raise SessionEnded(self.session_id) from None
        return status if is_open else status.model_copy(update={"state": "ended"})

    async def _shown(self, status: SessionStatus, deadline: Deadline) -> list[ShownSandbox]:
        open_ids = [book.sandbox_id for book in status.sandboxes if book.ended is None]
        within = Deadline.after(min(_STATUS_WITHIN_S, deadline.check()))
        answers = await asyncio.gather(*(self._sandbox_status(each, within) for each in open_ids))
        return shown_sandboxes(self.session_id, status.sandboxes, dict(zip(open_ids, answers, strict=True)))

    async def _sandbox_status(self, sandbox_id: str, deadline: Deadline) -> SandboxStatus | None:
        workflow_id = sandbox_workflow_id(self.session_id, sandbox_id)
        try:
            status = await self._requests.query(workflow_id, STATUS_QUERY, answer=SandboxStatus, deadline=deadline)
        except (WaitTimeout, NeverRan, WorkflowQueryFailedError):
            return None
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise
        if status.state == SandboxState.DELETING and status.error is None:
            # It is repeated for ever; the workflow itself hears of no failed attempt.
            status.error = await last_failure(self._requests, workflow_id, deadline)
        return status

    async def _sandbox_ids(self, deadline: Deadline) -> list[str]:
        try:
            return [book.sandbox_id for book in (await self._status(deadline)).sandboxes]
        except (SessionNotFound, SessionEnded):
            return []


def _pairs(files: Iterable[tuple[str, str]]) -> list[JsonValue]:
    return [{"session_path": session_path, "sandbox_path": sandbox_path} for session_path, sandbox_path in files]


def _source(restore_from: str | RestoreFrom) -> JsonValue:
    wanted = {"session_path": restore_from} if isinstance(restore_from, str) else restore_from.model_dump()
    return {name: value for name, value in wanted.items() if value is not None}


def _given(**arguments: JsonValue) -> dict[str, JsonValue]:
    """The arguments that were given: what is left out is for the session's policy to say."""
    return {name: value for name, value in arguments.items() if value is not None}
