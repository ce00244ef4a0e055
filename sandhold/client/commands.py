"""A command that runs in a sandbox, as a client sees it: its output while it grows, its end, and the ways to end it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue
from temporalio.client import WorkflowQueryFailedError, WorkflowQueryRejectedError
from temporalio.service import RPCError, RPCStatusCode

from sandhold.client.absence import Absence
from sandhold.client.calls import as_tool_failure
from sandhold.client.reading import ReadingTold
from sandhold.client.requests import Backoff, Deadline, TemporalRequests
from sandhold.client.standard_input import INPUT_BYTES, Read, StandardInput
from sandhold.contracts.calls import CallEnvelope, CallOutcome
from sandhold.contracts.commands import CommandResult, Signal
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure
from sandhold.contracts.names import COMMAND_QUERY, COMMAND_TOOLS, ToolName, sandbox_workflow_id
from sandhold.contracts.sandboxes import CommandState
from sandhold.contracts.tools import ExecResult
from sandhold.storage import OutputWindow, SessionStorage, StorageError

if TYPE_CHECKING:
    from sandhold.client.session import Session

__all__ = ["INPUT_BYTES", "STREAMS", "Command", "OutputChunk", "Stream"]

_CHUNK_BYTES = 1024 * 1024
_LOOK_FIRST_S, _LOOK_MOST_S = 0.1, 1.0
"""Pauses between two looks for new output: short after some has come."""

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, ...] = ("stdout", "stderr")

_CLOSED = ToolError(
    code=ErrorCode.INTERRUPTED,
    message="the sandbox's workflow ended before the command did",
    hint="The command may have had part of its effect; it was not run again.",
    ambiguous=True,
)
_FORGOTTEN = CallOutcome(error=_CLOSED)
"""Of a command whose output is all that is left; it does not run."""


@dataclass(frozen=True)
class OutputChunk:
    """What may be shown of `size` bytes of one stream from `offset` on, with `[redacted:NAME]` for each secret."""

    stream: Stream
    offset: int
    data: bytes
    size: int

    @property
    def end(self) -> int:
        """Where the next chunk begins."""
        return self.offset + self.size


class Command:
    """A command by the id of the call that started it. Holds no state of its own: anybody may attach at any time."""

    def __init__(
        self,
        session: Session,
        sandbox_id: str,
        call_id: str,
        requests: TemporalRequests,
        storage: Callable[[], SessionStorage],
    ) -> None:
        self.sandbox_id = sandbox_id
        self.call_id = call_id
        self._session = session
        self._requests = requests
        self._storage = storage
        self._absence = Absence(session.session_id, requests)

    async def state(self, *, timeout: float | None = None) -> CommandState:
        """Where the command stands; costs no history.

        Raises ToolFailure when the sandbox does not know it: there is no such command, it is not on record yet, or
        so many have ended since that it is not any more.
        """
        found = await self._record(Deadline.after(timeout))
        if found is None:
            raise self._unknown()
        return found

    async def output(
        self, stdout_offset: int = 0, stderr_offset: int = 0, *, follow: bool = True
    ) -> AsyncIterator[OutputChunk]:
        """Both streams from the offsets on, as they grow, until the command has ended and everything has come.

        Without `follow` only what there is by now.

        Within a stream the chunks come in order and without a gap, byte for byte but for secrets. Offsets count what
        the command wrote; what may be the beginning of a secret comes once that is known. Memory stays bounded whatever
        the command writes. The sandbox is told now and then, so that a command whose output is followed goes on to
        count as its use. Also the output of a command that nobody remembers any more comes, while session storage has
        it. Raises ToolFailure when there is no such command, or its output cannot be read.
        """
        offsets: dict[Stream, int] = {"stdout": stdout_offset, "stderr": stderr_offset}
        pause = Backoff(_LOOK_FIRST_S, _LOOK_MOST_S)
        reading = ReadingTold(self._session, self.sandbox_id, self.call_id)
        while True:
            # Asked first: once it has ended, all its output is in storage.
            try:
                state = await self._record(Deadline())
                outcome = await self._outcome_of(state)
                if state is not None:
                    await reading.tell(state)
            except ToolFailure as failure:
                may_still_run = failure.error.retryable or failure.error.code in {ErrorCode.INTERNAL, ErrorCode.TIMEOUT}
                if may_still_run or not await self._is_stored():
                    raise
                outcome = _FORGOTTEN
            found = False
            async for chunk in self._stored_from(offsets):
                found = True
                yield chunk
            if outcome is not None:
                for chunk in await self._kept_in_result(outcome, offsets):
                    yield chunk
                return
            if not follow:
                return
            if found:
                pause = Backoff(_LOOK_FIRST_S, _LOOK_MOST_S)
            await pause.sleep(Deadline())

    async def wait(self) -> ExecResult:
        """The command's result once it has ended. Raises ToolFailure when it came to an error, or nobody knows it."""
        pause = Backoff(_LOOK_FIRST_S, _LOOK_MOST_S)
        while (outcome := await self._outcome()) is None:
            await pause.sleep(Deadline())
        return await self._result(outcome)

    async def cancel(self) -> CommandResult:
        """End the command and everything it started."""
        return await self._act({"action": "cancel"})

    async def write(self, data: bytes, *, close: bool = False, call_id: str | None = None) -> CommandResult:
        """Write at most INPUT_BYTES to its standard input, once per `call_id`. It must have been started with `stdin`.

        When this returns the command will get them in its turn, whenever it reads. Raises ToolFailure `conflict` when
        it has ended.
        """
        given: dict[str, JsonValue] = {"action": "write", "close": close}
        if data:
            given |= {"input": base64.b64encode(data).decode(), "encoding": "base64"}
        return await self._act(given, call_id)

    async def feed(self, read: Read) -> None:
        """Pass a whole input on, and its end. `read(n)` gives at most n bytes once there are some, none at the end.

        Safe to repeat from the beginning with the same input, however that comes in pieces then: nothing is written
        twice, nothing is left out. What has come is written once a full piece of it has, or it pauses. Raises
        ToolFailure `conflict` when the command has ended, `call_id_conflict` when another input was passed on before.
        """
        await StandardInput(self, self._session.session_id, self._storage(), read).pass_on()

    async def signal(self, name: Signal, *, call_id: str | None = None) -> CommandResult:
        """Send a signal to its process group, once per `call_id`."""
        return await self._act({"action": "signal", "signal": name}, call_id)

    async def _record(self, deadline: Deadline) -> CommandState | None:
        """What the sandbox's workflow has on record, also after its end."""
        workflow_id = sandbox_workflow_id(self._session.session_id, self.sandbox_id)

        async def ask(*, only_open: bool) -> CommandState | None:
            return await self._requests.query(
                workflow_id, COMMAND_QUERY, self.call_id, answer=CommandState, deadline=deadline, only_open=only_open
            )

        try:
            try:
                return await ask(only_open=True)
            except WorkflowQueryRejectedError:
                last = await ask(only_open=False)
        except WorkflowQueryFailedError as error:
            raise ToolFailure(ErrorCode.INTERNAL, f"the sandbox's workflow does not tell: {error}") from error
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise
        if last is None or last.outcome is not None:
            return last
        return last.model_copy(update={"status": "interrupted", "outcome": CallOutcome(error=_CLOSED)})

    async def _outcome(self) -> CallOutcome | None:
        """What the command came to; None while it runs, or is about to. Raises ToolFailure when nobody knows it."""
        return await self._outcome_of(await self._record(Deadline()))

    async def _outcome_of(self, state: CommandState | None) -> CallOutcome | None:
        if state is not None:
            return state.outcome
        # Not on record (yet): the call that starts it may be known.
        call = await self._session.result(self.call_id, self.sandbox_id)
        if call is None or call.tool not in COMMAND_TOOLS:
            await self._absence.explain(self.sandbox_id, Deadline())
            raise self._unknown()
        if call.status == "running":
            return None
        if call.tool != ToolName.EXEC:
            return _FORGOTTEN if call.error is None else CallOutcome(error=call.error)
        if call.error is None and ExecResult.model_validate(call.result).status == "running":
            state = await self._record(Deadline())  # It may have come on record since.
            if state is None:
                raise self._unknown()
            return state.outcome
        return CallOutcome(result=call.result, error=call.error)

    def _unknown(self) -> ToolFailure:
        return ToolFailure(
            ErrorCode.INVALID_ARGUMENTS,
            f"sandbox {self.sandbox_id} knows no command {self.call_id!r}",
            hint="daytona_command with action list shows the commands of a sandbox.",
        )

    async def _stored_from(self, offsets: dict[Stream, int]) -> AsyncIterator[OutputChunk]:
        """What is stored from the offsets on, by turns, so that neither stream holds the other up. Moves them on."""
        found = True
        while found:
            found = False
            for stream in STREAMS:
                read = await self._read(stream, offsets[stream], _CHUNK_BYTES)
                offsets[stream] = read.end
                if read.size:
                    found = True
                    yield OutputChunk(stream, read.offset, read.data, read.size)

    async def _is_stored(self) -> bool:
        return any([(await self._read(stream, 0, 1)).size for stream in STREAMS])

    async def _read(self, stream: Stream, offset: int, limit: int) -> OutputWindow:
        try:
            return await self._storage().read_output(self._session.session_id, self.call_id, stream, offset, limit)
        except StorageError as error:
            raise error.failure("the output cannot be read") from error

    async def _kept_in_result(self, outcome: CallOutcome, offsets: dict[Stream, int]) -> list[OutputChunk]:
        """The output of a command so short that it never reached storage: all of it is in its result.

        Raises ToolFailure when it should be in storage and is not.
        """
        if outcome.error is not None:
            return []
        result = await self._result(outcome)
        if result.output_files is not None:
            behind = offsets["stdout"] < result.stdout_bytes or offsets["stderr"] < result.stderr_bytes
            if behind and result.output_files.whole:
                raise ToolFailure(
                    ErrorCode.INTERNAL,
                    "the output is not in session storage: client and worker seem to see different storages, or it "
                    "was removed",
                    hint="Set SANDHOLD_STORAGE_URL for the client and the workers so that both reach the same storage.",
                )
            return []
        kept: tuple[tuple[Stream, str], ...] = (("stdout", result.stdout), ("stderr", result.stderr))
        return [
            OutputChunk(stream, offsets[stream], data, len(data))
            for stream, text in kept
            if (data := text.encode()[offsets[stream] :])
        ]

    async def _result(self, outcome: CallOutcome) -> ExecResult:
        envelope = await self._session.resolve(
            CallEnvelope(
                call_id=self.call_id,
                session_id=self._session.session_id,
                sandbox_id=self.sandbox_id,
                tool=ToolName.EXEC,
                status="done",
                ok=outcome.ok,
                result=outcome.result,
                result_ref=outcome.result_ref,
                error=outcome.error,
            )
        )
        if envelope.error is not None:
            raise as_tool_failure(envelope.error)
        return ExecResult.model_validate(envelope.result)

    async def _act(self, given: dict[str, JsonValue], call_id: str | None = None) -> CommandResult:
        arguments: dict[str, JsonValue] = {"sandbox_id": self.sandbox_id, "call_id": self.call_id, **given}
        envelope = await self._session.call(ToolName.COMMAND, arguments, call_id)
        if envelope.error is not None:
            raise as_tool_failure(envelope.error)
        return CommandResult.model_validate(envelope.result)
