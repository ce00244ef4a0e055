"""A workflow that continues as new goes on: a question that comes at that moment does not find it ended."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    QueryWorkflowInput,
    WorkflowExecutionStatus,
    WorkflowQueryRejectedError,
)

from sandhold.client.requests import Deadline, TemporalRequests
from tests.client.conftest import Speakers

# The server does this for some milliseconds in each continue-as-new: chaos meets it now and then, a test that waits
# for it does not. So it stands here in the client's own place for it.


class BetweenRuns(Interceptor):
    """The next queries meet the run before, as the server tells it."""

    def __init__(self, times: int) -> None:
        self.times = times

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002
        return _Rejecting(self, next)


class _Rejecting(OutboundInterceptor):
    def __init__(self, plan: BetweenRuns, following: OutboundInterceptor) -> None:
        super().__init__(following)
        self._plan = plan

    async def query_workflow(self, input: QueryWorkflowInput) -> Any:  # noqa: A002
        if input.reject_condition is not None and self._plan.times:
            self._plan.times -= 1
            raise WorkflowQueryRejectedError(WorkflowExecutionStatus.CONTINUED_AS_NEW)
        return await super().query_workflow(input)


async def test_a_query_that_meets_a_run_which_is_over_is_asked_of_the_next_one(speakers: Speakers) -> None:
    session = await speakers.session()
    sandbox = await speakers.sandbox(session)
    plan = BetweenRuns(times=3)
    requests = TemporalRequests(Client(**speakers.temporal.config() | {"interceptors": [plan]}), reconnect_s=30.0)

    async def ask() -> dict[str, Any]:
        return await requests.query(sandbox.id, "seen", answer=dict, deadline=Deadline.after(30), only_open=True)

    assert (await ask())["started"] == []
    assert plan.times == 0
    await sandbox.signal("close")
    await sandbox.result()
    with pytest.raises(WorkflowQueryRejectedError) as rejection:
        await ask()
    assert rejection.value.status is WorkflowExecutionStatus.COMPLETED
