"""A command that runs in a sandbox, as a client sees it: its output while it grows, its end, and the ways to end it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from sandhold.client.calls import as_tool_failure
from sandhold.client.requests import Backoff, Deadline, TemporalRequests
from sandhold.contracts.calls import CallEnvelope
from sandhold.contracts.commands import CommandResult, Signal
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import COMMAND_QUERY, ToolName, sandbox_workflow_id
from sandhold.contracts.sandboxes import CommandState
from sandhold.contracts.tools import ExecResult
from sandhold.storage import SessionStorage

if TYPE_CHECKING:
    from sandhold.client.session import Session

_CHUNK_BYTES = 1024 * 1024
_LOOK_FIRST_S, _LOOK_MOST_S = 0.1, 1.0
"""Pauses between two looks for new output: short after some has come."""

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, ...] = ("stdout", "stderr")


@dataclass(frozen=True)
class OutputChunk:
    """Raw bytes of one stream and where they begin in it."""

    stream: Stream
    offset: int
    data: bytes


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

    async def state(self, *, timeout: float | None = None) -> CommandState:
        """Where the command stands; costs no history. Raises ToolFailure when the sandbox does not know it."""
        found: CommandState | None = await self._requests.query(
            sandbox_workflow_id(self._session.session_id, self.sandbox_id),
            COMMAND_QUERY,
            self.call_id,
            answer=CommandState,
            deadline=Deadline.after(timeout),
        )
        if found is None:
            raise ToolFailure(
                ErrorCode.INVALID_ARGUMENTS,
                f"sandbox {self.sandbox_id} knows no command {self.call_id!r}",
                hint="daytona_command with action list shows the commands of a sandbox.",
            )
        return found

    async def output(
        self, stdout_offset: int = 0, stderr_offset: int = 0, *, follow: bool = True
    ) -> AsyncIterator[OutputChunk]:
        """Both streams from the offsets on, as they grow, until the command has ended and everything has come.

        Without `follow` only what there is by now.

        Within a stream the chunks come in order and without a gap. Memory stays bounded whatever the command writes.
        """
        offsets: dict[Stream, int] = {"stdout": stdout_offset, "stderr": stderr_offset}
        pause = Backoff(_LOOK_FIRST_S, _LOOK_MOST_S)
        while True:
            # Asked first: once it has ended, all its output is in storage.
            state = await self.state()
            found = False
            for stream in STREAMS:
                async for chunk in self._new_output(stream, offsets[stream]):
                    offsets[stream] = chunk.offset + len(chunk.data)
                    found = True
                    yield chunk
            if state.outcome is not None:
                async for chunk in self._kept_in_result(state, offsets):
                    yield chunk
                return
            if not follow:
                return
            if found:
                pause = Backoff(_LOOK_FIRST_S, _LOOK_MOST_S)
            await pause.sleep(Deadline())

    async def wait(self) -> ExecResult:
        """The command's result once it has ended. Raises ToolFailure when it came to an error."""
        pause = Backoff(_LOOK_FIRST_S, _LOOK_MOST_S)
        while (state := await self.state()).outcome is None:
            await pause.sleep(Deadline())
        return await self._result(state)

    async def cancel(self) -> CommandResult:
        """End the command and everything it started."""
        return await self._act({"action": "cancel"})

    async def write(self, data: bytes, *, close: bool = False, call_id: str | None = None) -> CommandResult:
        """Write to its standard input, once per `call_id`. It must have been started with `stdin`."""
        given: dict[str, JsonValue] = {"action": "write", "close": close}
        if data:
            given |= {"input": base64.b64encode(data).decode(), "encoding": "base64"}
        return await self._act(given, call_id)

    async def signal(self, name: Signal, *, call_id: str | None = None) -> CommandResult:
        """Send a signal to its process group, once per `call_id`."""
        return await self._act({"action": "signal", "signal": name}, call_id)

    async def _new_output(self, stream: Stream, offset: int) -> AsyncIterator[OutputChunk]:
        while True:
            data = await self._storage().read_output(
                self._session.session_id, self.call_id, stream, offset, _CHUNK_BYTES
            )
            if not data:
                return
            yield OutputChunk(stream, offset, data)
            offset += len(data)

    async def _kept_in_result(self, state: CommandState, offsets: dict[Stream, int]) -> AsyncIterator[OutputChunk]:
        """The output of a command so short that it never reached storage: all of it is in its result."""
        assert state.outcome is not None
        if state.outcome.error is not None:
            return
        result = await self._result(state)
        if result.output_files is not None:
            return
        for stream in STREAMS:
            data = (result.stdout if stream == "stdout" else result.stderr).encode()[offsets[stream] :]
            if data:
                yield OutputChunk(stream, offsets[stream], data)

    async def _result(self, state: CommandState) -> ExecResult:
        assert state.outcome is not None
        envelope = await self._session.resolve(
            CallEnvelope(
                call_id=self.call_id,
                session_id=self._session.session_id,
                sandbox_id=self.sandbox_id,
                tool=ToolName.EXEC,
                status="done",
                ok=state.outcome.ok,
                result=state.outcome.result,
                result_ref=state.outcome.result_ref,
                error=state.outcome.error,
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
