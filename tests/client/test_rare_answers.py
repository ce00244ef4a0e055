"""What the server answers at rare moments, and what it means: nothing was done, or the workflow goes on.

It does so for some milliseconds in a continue-as-new, or when a worker loses what it was given. Chaos meets that now
and then, a test that waits for it does not. So it stands here in the client's own place for it.
"""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    QueryWorkflowInput,
    StartWorkflowUpdateInput,
    WorkflowExecutionStatus,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateHandle,
)
from temporalio.exceptions import ApplicationError

from sandhold.client.requests import Deadline, TemporalRequests
from sandhold.contracts.calls import CallEnvelope, CallRequest
from sandhold.contracts.names import CALL_UPDATE
from tests.client.conftest import Speakers


class Rare(Interceptor):
    """The next queries and updates are answered with these, before any reaches its workflow."""

    def __init__(self, *answers: Exception) -> None:
        self.answers = list(answers)

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002
        return _Answering(self.answers, next)


class _Answering(OutboundInterceptor):
    def __init__(self, answers: list[Exception], following: OutboundInterceptor) -> None:
        super().__init__(following)
        self._answers = answers

    async def query_workflow(self, input: QueryWorkflowInput) -> Any:  # noqa: A002
        if self._answers:
            raise self._answers.pop()
        return await super().query_workflow(input)

    async def start_workflow_update(self, input: StartWorkflowUpdateInput) -> WorkflowUpdateHandle[Any]:  # noqa: A002
        if self._answers:
            raise self._answers.pop()
        return await super().start_workflow_update(input)


def requests_with(rare: Rare, speakers: Speakers) -> TemporalRequests:
    return TemporalRequests(Client(**speakers.temporal.config() | {"interceptors": [rare]}), reconnect_s=30.0)


async def test_a_query_that_meets_a_run_which_is_over_is_asked_of_the_next_one(speakers: Speakers) -> None:
    sandbox = await speakers.sandbox(await speakers.session())
    between_runs = Rare(*[WorkflowQueryRejectedError(WorkflowExecutionStatus.CONTINUED_AS_NEW)] * 3)
    requests = requests_with(between_runs, speakers)

    async def ask() -> dict[str, Any]:
        return await requests.query(sandbox.id, "seen", answer=dict, deadline=Deadline.after(30), only_open=True)

    assert (await ask())["started"] == []
    assert between_runs.answers == []
    await sandbox.signal("close")
    await sandbox.result()
    with pytest.raises(WorkflowQueryRejectedError) as rejection:
        await ask()
    assert rejection.value.status is WorkflowExecutionStatus.COMPLETED


async def test_an_update_that_no_worker_has_seen_is_sent_again(speakers: Speakers) -> None:
    sandbox = await speakers.sandbox(await speakers.session())
    unseen = WorkflowUpdateFailedError(ApplicationError("it wasn't processed by worker", type="UnprocessedUpdate"))
    lost = Rare(*[unseen] * 3)

    async def call(requests: TemporalRequests, call_id: str) -> CallEnvelope:
        return await requests.update(
            sandbox.id,
            CALL_UPDATE,
            CallRequest(call_id=call_id, tool="daytona_manage_sandbox", arguments={}),
            update_id=call_id,
            answer=CallEnvelope,
            deadline=Deadline.after(30),
        )

    assert (await call(requests_with(lost, speakers), "unseen")).status == "done"
    assert lost.answers == []
    assert (await sandbox.query("seen"))["started"] == ["unseen"]
    with pytest.raises(WorkflowUpdateFailedError):
        await call(requests_with(Rare(*[unseen] * 1000), speakers), "never")
    await sandbox.signal("close")
