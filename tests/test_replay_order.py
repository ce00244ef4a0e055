"""Which workflows are run from their beginning again: those that a query may have brought ahead of their task."""

from __future__ import annotations

from typing import Any

from temporalio.bridge.proto.workflow_activation import (
    DoUpdate,
    FireTimer,
    InitializeWorkflow,
    QueryWorkflow,
    ResolveActivity,
    WorkflowActivation,
    WorkflowActivationJob,
)
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import WorkflowInstance

from sandhold.replay_order import ReplayableRunner

BEGIN = WorkflowActivationJob(initialize_workflow=InitializeWorkflow())
DONE = WorkflowActivationJob(resolve_activity=ResolveActivity())
FIRED = WorkflowActivationJob(fire_timer=FireTimer())
UPDATE = WorkflowActivationJob(do_update=DoUpdate())
QUERY = WorkflowActivationJob(query_workflow=QueryWorkflow(query_id="legacy_query"))
QUERY_OF_TASK = WorkflowActivationJob(query_workflow=QueryWorkflow(query_id="of-a-task"))


class Willing(WorkflowInstance):
    """Takes every activation."""

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        completion = WorkflowActivationCompletion(run_id=act.run_id)
        completion.successful.SetInParent()
        return completion

    def get_serialization_context(self, command_info: Any) -> Any:
        raise NotImplementedError

    def get_external_store_context(self, command_info: Any) -> Any:
        raise NotImplementedError

    def get_info(self) -> Any:
        raise NotImplementedError

    def get_thread_id(self) -> int | None:
        return None


class Runner:
    """Runs workflows that are willing."""

    def create_instance(self, det: object) -> WorkflowInstance:
        return Willing()


def taken(*activations: tuple[int, bool, WorkflowActivationJob]) -> list[bool]:
    """Whether each activation was taken: the time its task was started, whether it is a replay, what happened."""
    instance = ReplayableRunner(Runner()).create_instance(None)  # type: ignore[arg-type]
    answers = []
    for started_at, is_replaying, job in activations:
        act = WorkflowActivation(run_id="run", is_replaying=is_replaying, jobs=[job])
        act.timestamp.seconds = started_at
        answers.append(not instance.activate(act).HasField("failed"))
    return answers


def test_a_workflow_that_runs_on_is_never_replayed_whatever_is_asked() -> None:
    assert (
        taken((1, False, BEGIN), (1, True, QUERY), (2, False, DONE), (2, True, QUERY), (3, False, UPDATE)) == [True] * 5
    )


def test_a_workflow_that_was_replayed_for_its_task_runs_on() -> None:
    assert taken((1, True, BEGIN), (2, False, DONE), (2, True, QUERY_OF_TASK), (3, False, UPDATE)) == [True] * 4
    assert (
        taken((1, True, BEGIN), (2, False, DONE), (3, False, UPDATE), (3, True, QUERY), (4, False, DONE)) == [True] * 5
    )


def test_what_happened_since_the_last_task_was_applied_for_a_query() -> None:
    """It has no time of its own."""
    assert taken((1, True, BEGIN), (1, False, FIRED), (1, True, QUERY), (2, False, UPDATE)) == [True] * 3 + [False]


def test_what_a_lost_task_had_been_started_with_was_applied_for_a_query() -> None:
    """It has the time of the lost task. Found by chaos: the history of that workflow never replayed again."""
    assert taken((1, True, BEGIN), (2, False, DONE), (2, True, QUERY), (3, False, UPDATE)) == [True] * 3 + [False]


def test_queries_alone_are_answered_by_what_is_ahead() -> None:
    assert taken((1, True, BEGIN), (2, False, DONE), (2, True, QUERY), (2, True, QUERY)) == [True] * 4
