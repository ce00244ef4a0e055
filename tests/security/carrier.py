"""A workflow that carries a secret in everything that Temporal lets a workflow carry."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError


@activity.defn
async def carry(secret: str) -> str:
    """Heartbeats, fails once with its last heartbeat on record, and returns; all with the secret."""
    activity.heartbeat(f"heartbeat {secret}")
    if activity.info().attempt == 1:
        # A heartbeat is sent at once, a second one only after a while: this failure brings it.
        await asyncio.sleep(0.2)
        raise ApplicationError(f"failed with {secret}", f"detail {secret}", type="FailedOnce")
    assert activity.info().heartbeat_details == [f"heartbeat {secret}"]
    return f"result {secret}"


@activity.defn
async def break_down(secret: str) -> None:
    try:
        raise ValueError(f"cause {secret}")
    except ValueError as error:
        raise RuntimeError(f"broken by {secret}") from error


def expect(cause: BaseException | None, kind: str, message: str, *details: str) -> None:
    """Fails the workflow when it was told something else."""
    assert isinstance(cause, ApplicationError)
    if (cause.type, cause.message, tuple(cause.details)) != (kind, message, details):
        raise ApplicationError(f"{cause!r} is not what was sent", type="Altered", non_retryable=True)


@workflow.defn
class CarrierChild:
    @workflow.run
    async def run(self, secret: str) -> str:
        await workflow.wait_condition(lambda: self._told is not None)
        raise ApplicationError(f"child failed with {secret} and {self._told}", f"detail {secret}", type="ChildFailed")

    def __init__(self) -> None:
        self._told: str | None = None

    @workflow.signal
    def tell(self, secret: str) -> None:
        self._told = secret


@workflow.defn
class Carrier:
    @workflow.init
    def __init__(self, secret: str, again: int) -> None:
        self._secret = secret
        self._told: list[str] = []

    @workflow.run
    async def run(self, secret: str, again: int) -> str:
        workflow.set_current_details(f"current details {secret}")
        workflow.upsert_memo({"upserted": f"memo {secret}"})
        await workflow.execute_activity(
            carry, secret, start_to_close_timeout=timedelta(seconds=30), summary=f"activity summary {secret}"
        )
        await workflow.execute_local_activity(carry_locally, secret, start_to_close_timeout=timedelta(seconds=5))
        await workflow.sleep(0.01, summary=f"timer summary {secret}")
        try:
            await workflow.execute_activity(
                break_down,
                secret,
                start_to_close_timeout=timedelta(seconds=5),
                retry_policy=RetryPolicy(maximum_attempts=1),
            )
        except ActivityError as failure:
            expect(failure.cause, "RuntimeError", f"broken by {secret}")
        child = await workflow.start_child_workflow(
            CarrierChild.run,
            secret,
            id=f"sandbox/carrier/child-{again}",
            memo={"childs": f"memo {secret}"},
            static_summary=f"child summary {secret}",
            static_details=f"child details {secret}",
        )
        await child.signal(CarrierChild.tell, f"signal {secret}")
        try:
            await child
        except ChildWorkflowError as failure:
            expect(failure.cause, "ChildFailed", f"child failed with {secret} and signal {secret}", f"detail {secret}")
        await workflow.wait_condition(lambda: bool(self._told))
        await workflow.wait_condition(workflow.all_handlers_finished)
        if again:
            workflow.continue_as_new(args=[secret, again - 1], memo={"continued": f"memo {secret}"})
        raise ApplicationError(f"ended with {secret}", f"detail {secret}", type="Ended")

    @workflow.signal
    def tell(self, secret: str) -> None:
        self._told.append(secret)

    @workflow.update
    async def change(self, secret: str) -> str:
        return f"changed {secret}"

    @change.validator
    def _may_change(self, secret: str) -> None:
        if secret.startswith("refused"):
            raise ApplicationError(f"refused {secret}", f"detail {secret}", type="Refused")

    @workflow.update
    async def fail(self, secret: str) -> str:
        raise ApplicationError(f"update failed with {secret}", f"detail {secret}", type="UpdateFailed")

    @workflow.query
    def ask(self, secret: str) -> str:
        if secret.startswith("refused"):
            raise ApplicationError(f"query failed with {secret}", type="QueryFailed")
        return f"answer {secret}"


@activity.defn
async def carry_locally(secret: str) -> str:
    return f"local {secret}"


@workflow.defn
class Scheduled:
    @workflow.run
    async def run(self, secret: str) -> str:
        last = workflow.get_last_completion_result(str)
        return f"scheduled {secret}" if last is None else f"{last} again"
