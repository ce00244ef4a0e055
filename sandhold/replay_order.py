"""Running workflows so that another worker can replay them, whatever was asked in between.

A query may reach a worker together with events that came after the last completed workflow task: it waited behind
others while they came in, or the worker did not know the workflow yet. The worker would apply these events to answer
from the latest state, and keep the workflow in that state. When the task itself comes, with an update, a signal or
further events, these would be applied after them; but a worker that replays the history later applies all together,
updates and signals first, and at the time of the task. Commands would then come in another order than they are
recorded in, every further task would fail with `NonDeterministicError`, and the workflow would be stuck for good
(temporalio 1.35.0, sdk-python#1591; seen in one of four runs of fifty commands at once on a busy machine, and in about
one of thirty kills of a worker). So such a query is refused, and asked again by our clients.
"""

from __future__ import annotations

from collections.abc import Sequence

from temporalio import workflow
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.converter import SerializationContext, StorageDriverStoreContext
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.worker._command_aware_visitor import CommandInfo

from sandhold.contracts.names import QUERY_TOO_EARLY

_NO_EVENTS = frozenset({"query_workflow", "remove_from_cache"})


class ReplayableRunner(WorkflowRunner):
    """Lets `inner` run the workflows, and refuses queries that would bring one ahead of its task.

    Such a query fails with QUERY_TOO_EARLY, and the worker runs the workflow from its beginning for the next request.
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
        self._task_started_at: tuple[int, int] | None = None
        self._events = 0

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        if any(job.WhichOneof("variant") not in _NO_EVENTS for job in act.jobs):
            # A workflow task brings the time at which it was started: further events without one are for a query.
            started_at = (act.timestamp.seconds, act.timestamp.nanos)
            if not act.is_replaying and started_at == self._task_started_at and act.history_length > self._events:
                return _too_early(act)
            self._task_started_at = started_at
            self._events = act.history_length
        return self._inner.activate(act)

    def get_serialization_context(self, command_info: CommandInfo | None) -> SerializationContext | None:
        return self._inner.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: CommandInfo | None) -> StorageDriverStoreContext:
        return self._inner.get_external_store_context(command_info)

    def get_info(self) -> workflow.Info:
        return self._inner.get_info()

    def get_thread_id(self) -> int | None:
        return self._inner.get_thread_id()


def _too_early(act: WorkflowActivation) -> WorkflowActivationCompletion:
    """The answer that fails the query and makes the worker forget the workflow, which is ahead in the SDK's core."""
    completion = WorkflowActivationCompletion(run_id=act.run_id)
    completion.failed.failure.message = QUERY_TOO_EARLY
    return completion
