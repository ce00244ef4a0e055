"""Running workflows so that another worker can replay them, whatever was asked in between.

A query may reach a worker together with events that came after the last completed workflow task: it waited behind
others while they came in, or the worker did not know the workflow yet. The worker would apply these events to answer
from the latest state, and keep the workflow in that state. When the task itself comes, with an update, a signal or
further events, these would be applied after them; but a worker that replays the history later applies all together,
updates and signals first, and at the time of the task. Commands would then come in another order than they are
recorded in, every further task would fail with `NonDeterministicError`, and the workflow would be stuck for good
(temporalio 1.35.0, sdk-python#1591; seen in one of four runs of fifty commands at once on a busy machine, and in about
one of thirty kills of a worker). So such a query is refused, and asked again by our clients.

Events that are applied for a query have the time of the task before, which tells them. Only where the history that
comes with the query ends with a task that had just been started, and was lost, they look like that task (seen after the
server was killed, in one of some five hundred commands). What tells them then is that the query follows at once. To be
asked so soon after its task happens to others too: the workflow is run from its beginning for its next task, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from temporalio import workflow
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.converter import SerializationContext, StorageDriverStoreContext
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.worker._command_aware_visitor import CommandInfo

from sandhold.contracts.names import QUERY_TOO_EARLY

_NO_EVENTS = frozenset({"query_workflow", "remove_from_cache"})
_QUERY_BY_ITSELF = "legacy_query"
"""The id of a query that came without a workflow task."""
_AT_ONCE_S = 0.25
"""A query that a workflow was replayed for follows within a few milliseconds; one that comes after a task has been
completed needs at least two requests to the server."""


class ReplayableRunner(WorkflowRunner):
    """Lets `inner` run the workflows, and refuses queries that would bring one ahead of its task.

    Such a query fails with QUERY_TOO_EARLY, and the worker runs the workflow from its beginning for the next request.
    """

    def __init__(self, inner: WorkflowRunner) -> None:
        self._inner = inner
        self._to_be_replayed: set[str] = set()
        """Runs whose replay was asked for: what comes with it is their task."""

    def prepare_workflow(self, defn: workflow._Definition) -> None:
        self._inner.prepare_workflow(defn)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        run_id = det.info.run_id
        is_for_its_task = run_id in self._to_be_replayed
        self._to_be_replayed.discard(run_id)
        return _Replayable(self._inner.create_instance(det), self._to_be_replayed.add, is_for_its_task=is_for_its_task)

    def set_worker_level_failure_exception_types(self, types: Sequence[type[BaseException]]) -> None:
        self._inner.set_worker_level_failure_exception_types(types)


class _Replayable(WorkflowInstance):
    """One workflow in the worker's cache."""

    def __init__(self, inner: WorkflowInstance, replay: Callable[[str], None], *, is_for_its_task: bool) -> None:
        """`replay` hears of the run that is to be replayed; `is_for_its_task` says that this is such a replay."""
        self._inner = inner
        self._replay = replay
        self._is_for_its_task = is_for_its_task
        self._task_started_at: tuple[int, int] | None = None
        self._events = 0
        self._was_replaying = False
        self._replayed_at: float | None = None
        """When the first events after a replay were applied, until others are."""
        self._may_be_ahead = False

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        if all(job.WhichOneof("variant") in _NO_EVENTS for job in act.jobs):
            self._look_for_query(act)
            return self._inner.activate(act)
        # A workflow task brings the time at which it was started: further events without one are for a query.
        started_at = (act.timestamp.seconds, act.timestamp.nanos)
        if not act.is_replaying and started_at == self._task_started_at and act.history_length > self._events:
            return _refused(act, QUERY_TOO_EARLY)
        if self._may_be_ahead:
            self._replay(act.run_id)
            return _refused(act, "a query may have brought the workflow ahead of this task; it is replayed")
        is_replayed = self._was_replaying and not act.is_replaying
        self._task_started_at, self._events, self._was_replaying = started_at, act.history_length, act.is_replaying
        completion = self._inner.activate(act)
        self._replayed_at = time.monotonic() if is_replayed else None
        return completion

    def _look_for_query(self, act: WorkflowActivation) -> None:
        """Note whether what was applied after the replay may have been for this query."""
        if self._replayed_at is not None and not self._is_for_its_task:
            by_itself = any(job.query_workflow.query_id == _QUERY_BY_ITSELF for job in act.jobs)
            self._may_be_ahead |= by_itself and time.monotonic() - self._replayed_at < _AT_ONCE_S

    def get_serialization_context(self, command_info: CommandInfo | None) -> SerializationContext | None:
        return self._inner.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: CommandInfo | None) -> StorageDriverStoreContext:
        return self._inner.get_external_store_context(command_info)

    def get_info(self) -> workflow.Info:
        return self._inner.get_info()

    def get_thread_id(self) -> int | None:
        return self._inner.get_thread_id()


def _refused(act: WorkflowActivation, why: str) -> WorkflowActivationCompletion:
    """The answer that fails the query or the task, and makes the worker forget the workflow."""
    completion = WorkflowActivationCompletion(run_id=act.run_id)
    completion.failed.failure.message = why
    return completion
