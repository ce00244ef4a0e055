"""Which workflows are run from their beginning again: those that a query may have brought ahead of their task."""

from __future__ import annotations

import time
from types import SimpleNamespace
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


class Inner:
    """Runs workflows that are willing."""

    def create_instance(self, det: object) -> WorkflowInstance:
        return Willing()


class Run:
    """One run of a workflow, as one worker after the other sees it."""

    def __init__(self) -> None:
        self.worker = ReplayableRunner(Inner())  # type: ignore[arg-type]

    def instance(self) -> WorkflowInstance:
        return self.worker.create_instance(SimpleNamespace(info=SimpleNamespace(run_id="run")))  # type: ignore[arg-type]

    def taken(self, *activations: tuple[int, bool, WorkflowActivationJob], pause_s: float = 0.0) -> list[bool]:
        """Whether each activation of a new instance is taken: the time of its task, whether it replays, its job."""
        instance = self.instance()
        answers = []
        for events, (started_at, is_replaying, job) in enumerate(activations):
            answers.append(taken(instance, started_at, is_replaying, events, job))
            time.sleep(pause_s)
        return answers


def taken(
    instance: WorkflowInstance, started_at: int, is_replaying: bool, events: int, job: WorkflowActivationJob
) -> bool:
    act = WorkflowActivation(run_id="run", is_replaying=is_replaying, jobs=[job], history_length=events)
    act.timestamp.seconds = started_at
    return not instance.activate(act).HasField("failed")


def test_a_workflow_that_runs_on_is_never_replayed_whatever_is_asked() -> None:
    on = ((1, False, BEGIN), (1, True, QUERY), (2, False, DONE), (2, True, QUERY), (3, False, UPDATE))
    assert Run().taken(*on) == [True] * 5


def test_a_workflow_that_was_replayed_for_its_task_runs_on() -> None:
    own = ((1, True, BEGIN), (2, False, DONE), (2, True, QUERY_OF_TASK), (3, False, UPDATE))
    assert Run().taken(*own) == [True] * 4
    later = ((1, True, BEGIN), (2, False, DONE), (3, False, UPDATE), (3, True, QUERY), (4, False, DONE))
    assert Run().taken(*later) == [True] * 5


def test_a_query_is_refused_that_would_bring_a_workflow_ahead_with_what_happened_since_the_last_task() -> None:
    """That has no time of its own; the workflow may have been replayed for the query, or be known to the worker."""
    replayed = ((1, True, BEGIN), (1, False, FIRED))
    assert Run().taken(*replayed) == [True, False]
    known = ((1, False, BEGIN), (2, False, UPDATE), (2, False, DONE))
    assert Run().taken(*known) == [True, True, False]


def test_what_follows_within_a_task_is_part_of_it() -> None:
    """As the end of an activity that the task has cancelled: the history has not grown."""
    run = Run()
    instance = run.instance()
    for started_at, events, job in ((1, 3, BEGIN), (2, 9, UPDATE), (2, 9, DONE)):
        assert taken(instance, started_at, False, events, job)


def test_what_a_lost_task_had_been_started_with_was_applied_for_a_query() -> None:
    """It has the time of the lost task. Found by chaos: the history of that workflow never replayed again."""
    ahead = ((1, True, BEGIN), (2, False, DONE), (2, True, QUERY), (3, False, UPDATE))
    assert Run().taken(*ahead) == [True] * 3 + [False]


def test_a_query_some_time_after_the_task_of_a_replay_is_no_sign() -> None:
    asked_later = ((1, True, BEGIN), (2, False, DONE), (2, True, QUERY), (3, False, UPDATE))
    assert Run().taken(*asked_later, pause_s=0.3) == [True] * 4


def test_a_workflow_that_is_asked_all_the_time_is_replayed_once() -> None:
    run = Run()
    asked = ((1, True, BEGIN), (2, False, DONE), (2, True, QUERY), (3, False, UPDATE))
    assert run.taken(*asked) == [True] * 3 + [False]
    assert run.taken(*asked) == [True] * 4
    assert run.taken(*asked) == [True] * 3 + [False], "that was another reason to replay it"


def test_queries_alone_are_answered_by_what_is_ahead() -> None:
    asked = ((1, True, BEGIN), (2, False, DONE), (2, True, QUERY), (2, True, QUERY))
    assert Run().taken(*asked) == [True] * 4
