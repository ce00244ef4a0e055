"""Reading and writing files of a sandbox: one request each, a second one to send what is large."""

from __future__ import annotations

import base64
import hashlib
import math
import posixpath
import secrets

from daytona import AsyncSandbox
from temporalio import activity

from activities.deadlines import time_left_s
from activities.faults import ProviderError
from activities.file_scripts import COMMAND, READ, WRITE, BrokenAnswer, ScriptAnswer, parse_answer
from activities.file_windows import WINDOW_BOUND_BYTES, shown_file, shown_window
from activities.heartbeats import heartbeats
from activities.outcomes import arguments_of, failed_outcome, outcome_of
from activities.provider import ProviderAccess
from activities.reasons import failure_for
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure, as_application_error
from sandhold.contracts.names import WORKSPACE_PATH, Activity, ToolName, call_folder
from sandhold.contracts.steps import CallStep, SandboxRef
from sandhold.contracts.tools import ReadFileArguments, ReadFileResult, WriteFileArguments, WriteFileResult
from sandhold.storage import SessionStorage

INLINE_CONTENT_BYTES = 64 * 1024
"""Content up to this size travels in the request itself: a variable holds 128 KiB, and base64 adds a third."""
SCRIPT_TIMEOUT_S = 60.0
UPLOAD_TIMEOUT_S = 180.0

# Errors of the provider that are about the file, so that the agent can do something about them.
_ABOUT_THE_FILE = frozenset(
    {ErrorCode.PATH_NOT_FOUND, ErrorCode.PERMISSION_DENIED, ErrorCode.STORAGE_FULL, ErrorCode.TOO_LARGE}
)


class FileActivities:
    """The tools `daytona_read_file` and `daytona_write_file`.

    What the agent can do something about comes back as the error of the outcome; what a retry may mend, and
    what concerns the sandbox itself, is raised.
    """

    def __init__(self, access: ProviderAccess, storage: SessionStorage) -> None:
        self._access = access
        self._storage = storage

    @activity.defn(name=Activity.READ_FILE)
    async def read_file(self, step: CallStep) -> CallOutcome:
        """Read a file, or a window of its lines; no more than the window is ever held in memory."""
        async with heartbeats():
            try:
                arguments = await arguments_of(self._storage, step, ToolName.READ_FILE, ReadFileArguments)
                result = await self._read(step.ref, arguments)
            except ToolFailure as failure:
                return failed_outcome(failure)
            except ProviderError as error:
                return _outcome_or_raise(error)
            return await outcome_of(self._storage, step.ref.session_id, step.call_id, result)

    @activity.defn(name=Activity.WRITE_FILE)
    async def write_file(self, step: CallStep) -> CallOutcome:
        """Write a file as a whole, or append to it, once for each call id.

        The old content is there until the new one is complete, and stays when anything fails. Bytes are
        appended once however often this is repeated. A link is followed. The file keeps its mode unless the
        call names one.
        """
        async with heartbeats():
            try:
                arguments = await arguments_of(self._storage, step, ToolName.WRITE_FILE, WriteFileArguments)
                result = await self._write(step, arguments)
            except ToolFailure as failure:
                return failed_outcome(failure)
            except ProviderError as error:
                return _outcome_or_raise(error)
            return await outcome_of(self._storage, step.ref.session_id, step.call_id, result)

    async def _read(self, ref: SandboxRef, arguments: ReadFileArguments) -> ReadFileResult:
        path = absolute(arguments.path)
        answer = await self._run(
            ref,
            READ,
            {
                "SANDHOLD_PATH": path,
                "SANDHOLD_OFFSET": str(arguments.offset),
                "SANDHOLD_LIMIT": str(arguments.limit),
                "SANDHOLD_BOUND": str(WINDOW_BOUND_BYTES),
            },
        )
        try:
            if answer.kind == "whole":
                return shown_file(path, answer.data(), arguments.offset, arguments.limit)
            if answer.kind == "window":
                return shown_window(
                    path, answer.data(), answer.size, int(answer.third), arguments.offset, arguments.limit
                )
        except BrokenAnswer as error:
            raise _broken(str(error)) from error
        raise _refusal(answer, path)

    async def _write(self, step: CallStep, arguments: WriteFileArguments) -> WriteFileResult:
        path = absolute(arguments.path)
        data = arguments.data()
        environment = {
            "SANDHOLD_PATH": path,
            "SANDHOLD_MODE": arguments.mode or "",
            "SANDHOLD_APPEND": "1" if arguments.append else "0",
            "SANDHOLD_CALL": call_folder(step.call_id),
            "SANDHOLD_SIZE": str(len(data)),
            "SANDHOLD_SHA256": hashlib.sha256(data).hexdigest(),
            "SANDHOLD_DATA": "",
            "SANDHOLD_UPLOAD": "",
        }
        answer = None
        if len(data) <= INLINE_CONTENT_BYTES:
            encoded = base64.b64encode(data).decode()
            answer = await self._run(step.ref, WRITE, {**environment, "SANDHOLD_DATA": encoded})
        if answer is None or answer.kind == "need-upload":
            uploaded = await self._upload(step, data)
            answer = await self._run(step.ref, WRITE, {**environment, "SANDHOLD_UPLOAD": uploaded})
        if answer.kind == "written":
            return WriteFileResult(path=path, bytes=answer.size, sha256=answer.third)
        if answer.kind == "damaged":
            raise _broken("the content did not arrive whole")
        raise _refusal(answer, path)

    async def _upload(self, step: CallStep, data: bytes) -> str:
        """Send content to a file of its own for this attempt, and return its path. The write removes it."""
        # The provider makes the folders of an uploaded file (seen with the local server; the daemon of
        # v0.190 does too).
        folder = f"{WORKSPACE_PATH}/.sandhold/calls/{call_folder(step.call_id)}"
        path = f"{folder}/upload-{secrets.token_hex(8)}"
        limit_s = _bounded(UPLOAD_TIMEOUT_S)

        async def send(sandbox: AsyncSandbox) -> None:
            await sandbox.fs.upload_file(data, path, timeout=math.ceil(limit_s))

        await self._access.toolbox(step.ref, send, limit_s, sure=False)
        return path

    async def _run(self, ref: SandboxRef, script: str, environment: dict[str, str]) -> ScriptAnswer:
        limit_s = _bounded(SCRIPT_TIMEOUT_S)

        async def execute(sandbox: AsyncSandbox) -> str:
            answer = await sandbox.process.exec(
                COMMAND, cwd="/", env={"SANDHOLD_SCRIPT": script, **environment}, timeout=math.ceil(limit_s)
            )
            if answer.exit_code != 0:
                raise _broken(f"the shell in the sandbox ended with {answer.exit_code}")
            return answer.result

        output = await self._access.toolbox(ref, execute, limit_s + 5, sure=False)
        try:
            return parse_answer(output)
        except BrokenAnswer as error:
            raise _broken(str(error)) from error


def absolute(path: str) -> str:
    """The path in the sandbox: relative ones begin at the workspace, which `~` stands for as well."""
    if path == "~" or path.startswith("~/"):
        path = path[2:]
    return posixpath.join(WORKSPACE_PATH, path)


def _bounded(limit_s: float) -> float:
    return max(1.0, min(limit_s, time_left_s() - 1.0))


def _outcome_or_raise(error: ProviderError) -> CallOutcome:
    if error.error.code in _ABOUT_THE_FILE:
        return CallOutcome(error=error.error)
    raise error


def _broken(what: str) -> Exception:
    message = f"reading or writing the file was cut short: {what}"
    return as_application_error(
        ToolError(code=ErrorCode.PROVIDER_UNAVAILABLE, message=message, retryable=True), non_retryable=False
    )


def _refusal(answer: ScriptAnswer, path: str) -> ToolFailure:
    if answer.kind == "directory":
        return ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"{path} is a directory", hint="List it with daytona_exec.")
    if answer.kind == "special":
        return ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"{path} is not a regular file but a device, pipe or socket")
    if answer.kind == "changed":
        return ToolFailure(
            ErrorCode.CONFLICT,
            f"an attempt began to append to {path}, and others have changed the file since",
            hint="Read the file to see whether the content is there.",
            ambiguous=True,
        )
    return failure_for(path, answer.body if answer.body.strip() else answer.kind)
