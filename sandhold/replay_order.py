"""Running workflows so that another worker can replay them, whatever was asked in between.

A worker that does not know a workflow yet may get a query about it before its next workflow task. It then applies
what has happened since the last completed task, a timer that fired for example, to answer from the latest state, and
keeps the workflow in that state. When the task itself comes with an update, a signal or further events, these are
applied after the timer; but a worker that replays the history later applies all of them together, updates and signals
first. Commands then come in another order than they are recorded in, every further task fails with
`NonDeterministicError`, and the workflow is stuck for good (temporalio 1.35.0: seen after a worker was killed, in
about one of thirty kills under load).

What was applied for a query cannot always be told from a workflow task: the history that comes with a query may end
with a task that had just been started, and was lost (seen after the server was killed, in one of some thousand
commands). So whenever a query is the first thing after a replay, the replay is taken to have been for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from temporalio import workflow
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.converter import SerializationContext, StorageDriverStoreContext
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.worker._command_aware_visitor import CommandInfo

_NO_EVENTS = frozenset({"query_workflow", "remove_from_cache"})
_QUERY_BY_ITSELF = "legacy_query"
"""The id of a query that came without a workflow task."""


class ReplayableRunner(WorkflowRunner):
    """Lets `inner` run the workflows; one that a query has brought ahead of its task is run from its beginning again.

    That costs one failed workflow task, which the server repeats at once with all that it carried; also for one that
    was replayed for a task and then queried before the next.
    """

    def __init__(self, inner: WorkflowRunner) -> None:
        self._inner = inner

    def prepare_workflow(self, defn: workflow._Definition) -> None:
        self._inner.prepare_workflow(defn)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return _Replayable(self._inner.create_instance(det))

    def set_worker_level_failure_exception_types(self, types: Sequence[type[BaseException]]) -> None:
        self._inner.set_worker_level_failure_exception_types(types)


class _Replayable(WorkflowInstance):
    """One workflow in the worker's cache."""

    def __init__(self, inner: WorkflowInstance) -> None:
        self._inner = inner
        self._was_replaying = False
        self._task_started_at: tuple[int, int] | None = None
        self._just_replayed = False
        self._ahead = False

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        if any(job.WhichOneof("variant") not in _NO_EVENTS for job in act.jobs):
            if self._ahead:
                return _to_be_replayed(act)
            # A workflow task brings the time at which it was started. What follows a replay without one is for a query.
            started_at = (act.timestamp.seconds, act.timestamp.nanos)
            self._just_replayed = self._was_replaying and not act.is_replaying
            self._ahead = self._just_replayed and started_at == self._task_started_at
            self._was_replaying = act.is_replaying
            self._task_started_at = started_at
        elif self._just_replayed and any(job.query_workflow.query_id == _QUERY_BY_ITSELF for job in act.jobs):
            self._ahead = True
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
