"""Running workflows so that another worker can replay them, whatever was asked in between.

A worker that does not know a workflow yet may get a query about it before its next workflow task. It then applies
what has happened since the last completed task, a timer that fired for example, to answer from the latest state, and
keeps the workflow in that state. When the task itself comes with an update, a signal or further events, these are
applied after the timer; but a worker that replays the history later applies all of them together, updates and signals
first. Commands then come in another order than they are recorded in, every further task fails with
`NonDeterministicError`, and the workflow is stuck for good (temporalio 1.35.0: seen after a worker was killed, in
about one of thirty kills under load).

Mostly what is applied for a query shows in its time, which is that of the task before. But the history that comes
with a query may end with a task that had just been started, and was lost: then it looks like one that was applied for
its task (seen after the server was killed, in one of some five hundred commands). What tells it apart is that the query
follows at once. To be asked so soon after its task happens to others too, which costs them a replay, once.
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

_NO_EVENTS = frozenset({"query_workflow", "remove_from_cache"})
_QUERY_BY_ITSELF = "legacy_query"
"""The id of a query that came without a workflow task."""
_AT_ONCE_S = 0.25
"""A query that a workflow was replayed for follows within a few milliseconds; one that comes after a task has been
completed needs at least two requests to the server."""


class ReplayableRunner(WorkflowRunner):
    """Lets `inner` run the workflows; one that a query has brought ahead of its task is run from its beginning again.

    That costs one failed workflow task, which the server repeats at once with all that it carried.
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
        self._was_replaying = False
        self._task_started_at: tuple[int, int] | None = None
        self._replayed_at: float | None = None
        """When the first events after a replay were applied, until others are."""
        self._ahead = False

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        if any(job.WhichOneof("variant") not in _NO_EVENTS for job in act.jobs):
            if self._ahead:
                self._replay(act.run_id)
                return _to_be_replayed(act)
            # A workflow task brings the time at which it was started. What follows a replay without one is for a query.
            started_at = (act.timestamp.seconds, act.timestamp.nanos)
            is_replayed = self._was_replaying and not act.is_replaying
            self._ahead = is_replayed and started_at == self._task_started_at
            self._was_replaying = act.is_replaying
            self._task_started_at = started_at
            completion = self._inner.activate(act)
            self._replayed_at = time.monotonic() if is_replayed else None
            return completion
        if self._replayed_at is not None and not self._is_for_its_task:
            by_itself = any(job.query_workflow.query_id == _QUERY_BY_ITSELF for job in act.jobs)
            self._ahead |= by_itself and time.monotonic() - self._replayed_at < _AT_ONCE_S
        return self._inner.activate(act)

    def get_serialization_context(self, command_info: CommandInfo | None) -> SerializationContext | None:
        return self._inner.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: CommandInfo | None) -> StorageDriverStoreContext:
        return self._inner.get_external_store_context(command_info)

    def get_info(self) -> workflow.Info:
        return self._inner.get_info()

    def get_thread_id(self) -> int | None:
        return self._inner.get_thread_id()


def _to_be_replayed(act: WorkflowActivation) -> WorkflowActivationCompletion:
    """The answer that makes the worker forget the workflow, and the server send its whole history."""
    completion = WorkflowActivationCompletion(run_id=act.run_id)
    completion.failed.failure.message = "a query had brought the workflow ahead of this task; it is replayed"
    return completion
