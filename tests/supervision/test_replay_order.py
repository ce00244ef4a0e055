"""Queries that come with events of a workflow task that has not begun: the worker's order must be the history's."""

from __future__ import annotations

from dataclasses import dataclass, field

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import WorkflowInstance

from sandhold.contracts.names import QUERY_TOO_EARLY
from sandhold.replay_order import _Replayable


@dataclass
class Running:
    """A workflow that notes what is applied to it."""

    applied: list[list[str]] = field(default_factory=list)

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        self.applied.append([str(job.WhichOneof("variant")) for job in act.jobs])
        completion = WorkflowActivationCompletion(run_id=act.run_id)
        completion.successful.SetInParent()
        return completion


def workflow() -> tuple[Running, WorkflowInstance]:
    running = Running()
    return running, _Replayable(running)  # type: ignore[arg-type]


def activation(*jobs: str, task: int, events: int, replaying: bool = False) -> WorkflowActivation:
    act = WorkflowActivation(run_id="run", is_replaying=replaying, history_length=events)
    act.timestamp.seconds = task
    for job in jobs:
        getattr(act.jobs.add(), job).SetInParent()
    return act


def is_refused(completion: WorkflowActivationCompletion) -> bool:
    return completion.HasField("failed") and completion.failed.failure.message == QUERY_TOO_EARLY


def test_a_query_that_brings_events_ahead_of_their_task_is_refused_by_a_worker_that_knows_the_workflow() -> None:
    running, instance = workflow()
    assert not is_refused(instance.activate(activation("initialize_workflow", task=1, events=3)))
    assert not is_refused(instance.activate(activation("query_workflow", task=1, events=3, replaying=True)))
    assert not is_refused(instance.activate(activation("signal_workflow", task=8, events=79)))
    # As they were seen when fifty commands ended while many were asking for their results.
    assert is_refused(instance.activate(activation("resolve_activity", task=8, events=125)))
    assert running.applied[-1] == ["signal_workflow"], "nothing of it was applied"


def test_a_query_that_brings_events_ahead_of_their_task_is_refused_by_a_worker_that_replays_the_workflow() -> None:
    _, instance = workflow()
    assert not is_refused(instance.activate(activation("initialize_workflow", task=1, events=3, replaying=True)))
    assert not is_refused(instance.activate(activation("do_update", task=2, events=9, replaying=True)))
    assert is_refused(instance.activate(activation("fire_timer", task=2, events=12)))


def test_what_belongs_to_a_task_is_applied() -> None:
    running, instance = workflow()
    tasks = [
        activation("initialize_workflow", task=1, events=3),
        activation("do_update", task=2, events=9),
        activation("resolve_activity", task=2, events=9),  # A cancelled activity ends within the same task.
        activation("query_workflow", task=2, events=12, replaying=True),
        activation("signal_workflow", "fire_timer", task=3, events=15),
        activation("remove_from_cache", task=0, events=15),
    ]
    assert not any(is_refused(instance.activate(task)) for task in tasks)
    assert len(running.applied) == len(tasks)
