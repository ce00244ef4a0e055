"""Two workflows that speak the contracts and do nothing else, to put the client through rare conversations."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import Field
from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.base import Message
    from sandhold.contracts.calls import CallEnvelope, CallRequest
    from sandhold.contracts.errors import ErrorCode, ToolError
    from sandhold.contracts.names import (
        CALL_UPDATE,
        DRAINING,
        RESULT_QUERY,
        STATUS_QUERY,
        SUBMIT_SIGNAL,
        session_workflow_id,
    )
    from sandhold.contracts.policy import Policy
    from sandhold.contracts.sessions import SessionSandbox, SessionStatus


class SpeakingSandboxStart(Message):
    """How a speaking sandbox behaves."""

    sandbox_id: str = "box"
    generation: int = 1
    takes_s: float = 0.0
    """How long a call runs."""
    answer_within_s: float = 9.0
    """After this long a call is answered `running`."""
    draining: bool = False
    refuses_as: str = DRAINING
    """Calls are refused until the signal `open`."""


@workflow.defn
class SpeakingSandbox:
    """Carries out calls by waiting; knows how many updates were in flight at once."""

    @workflow.init
    def __init__(self, start: SpeakingSandboxStart) -> None:
        self._start = start
        self._calls: dict[str, CallEnvelope] = {}
        self._started: list[str] = []
        self._by_signal: list[str] = []
        self._for_generations: list[int | None] = []
        self._in_flight = 0
        self._most_in_flight = 0
        self._closed = False

    @workflow.run
    async def run(self, start: SpeakingSandboxStart) -> None:
        await workflow.wait_condition(lambda: self._closed)

    @workflow.update(name=CALL_UPDATE, unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON)
    async def call(self, request: CallRequest) -> CallEnvelope:
        self._in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self._in_flight)
        envelope = self._begin(request)
        wait_s = min(self._start.takes_s, self._start.answer_within_s)
        if wait_s:
            await workflow.sleep(wait_s)
        if self._start.takes_s <= self._start.answer_within_s:
            self._finish(request.call_id)
        self._in_flight -= 1
        return self._calls.get(request.call_id, envelope)

    @call.validator
    def _refuse_while_draining(self, request: CallRequest) -> None:
        if self._start.draining:
            raise ApplicationError("draining", type=self._start.refuses_as)

    @workflow.signal(name=SUBMIT_SIGNAL)
    async def submit(self, request: CallRequest) -> None:
        self._by_signal.append(request.call_id)
        self._for_generations.append(request.generation)
        self._begin(request)
        await workflow.sleep(max(self._start.takes_s, 0.001))
        self._finish(request.call_id)

    @workflow.signal
    def open(self) -> None:
        self._start.draining = False

    @workflow.signal
    def end_call(self, call_id: str) -> None:
        self._finish(call_id)

    @workflow.signal
    def forget_call(self, call_id: str) -> None:
        """As a sandbox does once enough other calls have ended."""
        del self._calls[call_id]

    @workflow.signal
    def close(self) -> None:
        self._closed = True

    @workflow.query(name=RESULT_QUERY)
    def result(self, call_id: str) -> CallEnvelope | None:
        return self._calls.get(call_id)

    @workflow.query
    def seen(self) -> dict[str, Any]:
        return {
            "started": self._started,
            "by_signal": self._by_signal,
            "for_generations": self._for_generations,
            "most_in_flight": self._most_in_flight,
        }

    def _begin(self, request: CallRequest) -> CallEnvelope:
        if request.call_id not in self._calls:
            self._started.append(request.call_id)
            self._calls[request.call_id] = CallEnvelope(
                call_id=request.call_id,
                session_id="speaks",
                sandbox_id=self._start.sandbox_id,
                tool=request.tool,
                status="running",
                fingerprint=request.fingerprint(),
                generation=self._start.generation,
            )
        return self._calls[request.call_id]

    def _finish(self, call_id: str) -> None:
        result = {"sandbox_id": self._start.sandbox_id, "action": "start", "state": "started"}
        self._calls[call_id] = self._calls[call_id].model_copy(update={"status": "done", "ok": True, "result": result})


class SpeakingSessionStart(Message):
    """What a speaking session has on its books."""

    session_id: str
    sandboxes: list[SessionSandbox] = Field(default_factory=list)
    refusal: ToolError | None = None
    """Every create is refused with this."""


@workflow.defn
class SpeakingSession:
    """Answers for its books."""

    @workflow.init
    def __init__(self, start: SpeakingSessionStart) -> None:
        self._start = start

    @workflow.run
    async def run(self, start: SpeakingSessionStart) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.update(name=CALL_UPDATE)
    async def call(self, request: CallRequest) -> CallEnvelope:
        if self._start.refusal is None:
            # A fault of ours, as an operator would see it.
            raise ApplicationError("a bug in a handler", type="KeyError")
        raise ApplicationError(
            self._start.refusal.message, self._start.refusal, type=self._start.refusal.code, non_retryable=True
        )

    @workflow.query(name=RESULT_QUERY)
    def result(self, call_id: str) -> CallEnvelope | None:
        return None

    @workflow.query(name=STATUS_QUERY)
    def status(self) -> SessionStatus:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        return SessionStatus(
            session_id=self._start.session_id,
            workflow_id=session_workflow_id(self._start.session_id),
            owner="tests",
            state="open",
            policy=Policy(),
            created_at=now,
            ends_at=now,
            sandboxes=self._start.sandboxes,
        )


def on_the_books(sandbox_id: str, **fields: Any) -> SessionSandbox:
    """A sandbox as a session has it on its books."""
    return SessionSandbox(sandbox_id=sandbox_id, created_at=datetime(2026, 1, 1, tzinfo=UTC), **fields)


REFUSAL = ToolError(code=ErrorCode.QUOTA_EXCEEDED, message="full", hint="delete one")
