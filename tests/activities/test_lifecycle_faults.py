"""The sandbox's life at a provider that loses answers, refuses, fails, lies for a moment, or hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from daytona import CreateSandboxFromSnapshotParams
from pydantic import SecretStr
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import deletion
from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolError
from sandhold.contracts.steps import DeleteSandboxStep, SandboxRef
from tests.activities.provider_under_test import ProviderUnderTest, create_step, lifecycle_step
from tests.local_daytona_faults import FaultPlan

CREATE = {"method": "POST", "route": "/api/sandbox"}
LOOK = {"method": "GET", "route": "/api/sandbox/{id}"}
START = {"method": "POST", "route": "/api/sandbox/{id}/start"}
STOP = {"method": "POST", "route": "/api/sandbox/{id}/stop"}
ARCHIVE = {"method": "POST", "route": "/api/sandbox/{id}/archive"}
DELETE = {"method": "DELETE", "route": "/api/sandbox/{id}"}
EXECUTE = {"method": "POST", "route": "/toolbox/{id}/process/execute"}

FAULTS = {
    "429": {"effect": "status", "status": 429, "headers": {"Retry-After-sandbox-create": "7"}},
    "500": {"effect": "status", "status": 500},
    "502": {"effect": "status", "status": 502, "body": "<html><body>Bad Gateway</body></html>"},
    "reset": {"effect": "reset_before"},
    "lost": {"effect": "answer_lost"},
    "cut": {"effect": "reset_during"},
}


async def held_as(provider: ProviderUnderTest, ref: SandboxRef) -> list[str]:
    """The ids of everything that the provider holds for this sandbox."""
    labels = provider.access.labels(ref).items()
    return [sandbox.id for sandbox in await provider.held() if labels <= sandbox.labels.items()]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("route", [CREATE, LOOK], ids=["create", "look"])
async def test_a_fault_of_create_costs_an_attempt_but_never_a_second_sandbox(
    local_provider: ProviderUnderTest, faults: FaultPlan, route: dict[str, str], fault: str
) -> None:
    ref = local_provider.new_ref()
    await faults.add(**route, **FAULTS[fault], times=2)
    created, failures = await local_provider.create(ref)
    assert all(isinstance(failure.details[0], ToolError) for failure in failures)
    await faults.clear()
    assert await held_as(local_provider, ref) == [created.provider_id]
    await local_provider.delete(created)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("change", "route"),
    [("start", START), ("start", LOOK), ("stop", STOP), ("stop", LOOK), ("archive", ARCHIVE), ("archive", STOP)],
    ids=["start", "start-look", "stop", "stop-look", "archive", "archive-stop"],
)
async def test_a_fault_of_a_change_of_state_is_retried_until_it_is_made(
    local_provider: ProviderUnderTest,
    faults: FaultPlan,
    changing_sandbox: SandboxRef,
    change: str,
    route: dict[str, str],
    fault: str,
) -> None:
    ref = changing_sandbox
    await (local_provider.stop(ref) if change == "start" else local_provider.start(ref))
    await faults.add(**route, **FAULTS[fault], times=1)
    found, _ = await local_provider.persist(getattr(local_provider.lifecycle, f"{change}_sandbox"), lifecycle_step(ref))
    assert found.state == {"start": "started", "stop": "stopped", "archive": "archived"}[change]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("route", [DELETE, LOOK], ids=["delete", "look"])
async def test_a_fault_of_delete_is_retried_until_the_sandbox_is_gone(
    local_provider: ProviderUnderTest, faults: FaultPlan, route: dict[str, str], fault: str
) -> None:
    ref = await local_provider.created()
    await faults.add(**route, **FAULTS[fault], times=2)
    await local_provider.persist(local_provider.lifecycle.delete_sandbox, DeleteSandboxStep(ref=ref))
    await faults.clear()
    assert await held_as(local_provider, ref) == []


@pytest.fixture(scope="module")
async def changing_sandbox(any_provider: ProviderUnderTest) -> SandboxRef:
    return await any_provider.created()


async def test_a_lost_create_answer_costs_no_attempt(local_provider: ProviderUnderTest, faults: FaultPlan) -> None:
    ref = local_provider.new_ref()
    await faults.add(**CREATE, effect="answer_lost", times=1)
    created, failures = await local_provider.create(ref)
    assert failures == []
    assert await held_as(local_provider, ref) == [created.provider_id]
    await local_provider.delete(created)


async def test_a_rate_limit_says_when_to_come_back(local_provider: ProviderUnderTest, faults: FaultPlan) -> None:
    await faults.add(**CREATE, **FAULTS["429"], times=1)
    with pytest.raises(ApplicationError) as failure:
        await local_provider.run(local_provider.lifecycle.create_sandbox, create_step(local_provider.new_ref()))
    assert failure.value.next_retry_delay == timedelta(seconds=7)
    assert not failure.value.non_retryable


async def test_a_name_that_belongs_to_somebody_else_is_a_conflict_and_theirs_is_left_alone(
    local_provider: ProviderUnderTest,
) -> None:
    ref = local_provider.new_ref()
    client = await local_provider.client()
    labels = {**local_provider.access.labels(ref), "sandhold-session": "another"}
    foreign = await client.create(CreateSandboxFromSnapshotParams(name=local_provider.access.name(ref), labels=labels))
    with pytest.raises(ApplicationError) as failure:
        await local_provider.run(local_provider.lifecycle.create_sandbox, create_step(ref))
    assert failure.value.type == ErrorCode.CONFLICT
    assert failure.value.non_retryable
    await local_provider.delete(ref, create_requested_at=datetime.now(UTC))
    await foreign.refresh_data()
    assert foreign.state == "started"
    await foreign.delete()


async def test_a_sandbox_that_does_not_start_has_failed_with_the_providers_reason(
    local_provider: ProviderUnderTest, faults: FaultPlan
) -> None:
    ref = local_provider.new_ref()
    await faults.add(**CREATE, effect="start_error", reason="no runner\nhad room", times=1)
    with pytest.raises(ApplicationError, match="no runner had room") as failure:
        await local_provider.run(local_provider.lifecycle.create_sandbox, create_step(ref))
    assert failure.value.type == SandboxSignal.FAILED
    assert failure.value.non_retryable
    await local_provider.delete(ref, create_requested_at=datetime.now(UTC) - timedelta(seconds=10))
    assert await held_as(local_provider, ref) == []


async def test_a_recoverable_error_is_recovered(local_provider: ProviderUnderTest, faults: FaultPlan) -> None:
    ref = local_provider.new_ref()
    await faults.add(**CREATE, effect="start_error", recoverable=True, times=1)
    created, failures = await local_provider.create(ref)
    assert failures == []
    await local_provider.stop(created)
    await faults.add(**START, effect="start_error", recoverable=True, times=1)
    assert await local_provider.start(created) == "started"
    await local_provider.stop(created)
    await faults.add(**START, effect="start_error", reason="the disk is damaged", times=1)
    with pytest.raises(ApplicationError, match="the disk is damaged") as failure:
        await local_provider.start(created)
    assert failure.value.type == SandboxSignal.FAILED
    await local_provider.delete(created)


async def test_a_create_takes_up_a_sandbox_that_is_still_being_created(
    local_provider: ProviderUnderTest, faults: FaultPlan
) -> None:
    ref = local_provider.new_ref()
    await faults.add(**CREATE, effect="start_delay", seconds=1.0, times=1)
    await faults.add(**CREATE, effect="answer_lost", times=1)
    created, failures = await local_provider.create(ref)
    assert failures == []
    assert await held_as(local_provider, ref) == [created.provider_id]
    await local_provider.delete(created)


@pytest.mark.parametrize("state", ["started", "stopped", "archived", "stopping", "starting"])
async def test_a_retried_create_takes_up_the_sandbox_in_whatever_state_it_is(
    local_provider: ProviderUnderTest, faults: FaultPlan, state: str
) -> None:
    ref = await local_provider.created()
    if state != "started":
        await local_provider.stop(ref)
    if state == "archived":
        await local_provider.archive(ref)
    held = await local_provider.look(ref)
    assert held is not None
    under_way: asyncio.Future[None] | None = None
    if state == "stopping":
        await held.start()
        under_way = asyncio.ensure_future(held.stop())
    if state == "starting":
        await faults.add(**START, effect="start_delay", seconds=0.5, times=1)
        under_way = asyncio.ensure_future(held.start())
        await asyncio.sleep(0.1)
    unknown = ref.model_copy(update={"provider_id": None})
    found = await local_provider.run(local_provider.lifecycle.create_sandbox, create_step(unknown), attempt=2)
    assert (found.provider_id, found.state) == (ref.provider_id, "started")
    if under_way is not None:
        await asyncio.wait([under_way])
        under_way.exception()
    await local_provider.delete(ref)


async def test_a_single_stale_not_found_is_no_loss(local_provider: ProviderUnderTest, faults: FaultPlan) -> None:
    ref = await local_provider.created()
    await faults.add(**LOOK, effect="status", status=404, times=1)
    assert await local_provider.start(ref) == "started"
    await local_provider.delete(ref)


async def test_an_error_between_two_not_founds_is_no_evidence(
    local_provider: ProviderUnderTest, faults: FaultPlan
) -> None:
    ref = await local_provider.created()
    await faults.add(**LOOK, effect="status", status=404, times=1)
    await faults.add(**LOOK, effect="status", status=503, times=1)
    with pytest.raises(ApplicationError) as failure:
        await local_provider.start(ref)
    assert failure.value.type == ErrorCode.PROVIDER_UNAVAILABLE
    assert not failure.value.non_retryable
    assert await local_provider.start(ref) == "started"
    await local_provider.delete(ref)


async def test_a_delete_that_hangs_says_so_and_goes_on_when_it_is_retried(
    local_provider: ProviderUnderTest, faults: FaultPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "STUCK_AFTER_S", 0.5)
    ref = await local_provider.created()
    await faults.add(**DELETE, effect="delete_hangs", times=1)
    for _ in range(2):
        with pytest.raises(ApplicationError, match="still says destroying") as failure:
            await local_provider.delete(ref)
        assert not failure.value.non_retryable
    await faults.clear()
    await local_provider.delete(ref)
    assert await held_as(local_provider, ref) == []


async def test_a_create_that_commits_late_is_deleted_too(local_provider: ProviderUnderTest, faults: FaultPlan) -> None:
    ref = local_provider.new_ref()
    await faults.add(**CREATE, effect="delay", seconds=0.8, times=1)
    requested = datetime.now(UTC)
    creating = asyncio.create_task(local_provider.create(ref))
    await asyncio.sleep(0.3)
    creating.cancel()
    assert await local_provider.look(ref) is None, "the request has not committed yet"
    await local_provider.delete(ref, create_requested_at=requested)
    assert datetime.now(UTC) - requested >= timedelta(seconds=1.5), "absence does not count before the settling time"
    deleted = await faults.requests(method="DELETE", sandbox=local_provider.access.name(ref))
    assert [request.status for request in deleted] == [200]
    assert await held_as(local_provider, ref) == []


async def test_a_cancelled_create_stops_at_once_and_undoes_nothing(
    local_provider: ProviderUnderTest, faults: FaultPlan
) -> None:
    ref = local_provider.new_ref()
    await faults.add(**CREATE, effect="start_delay", seconds=1.0, times=1)
    environment = ActivityEnvironment()
    creating = asyncio.create_task(
        local_provider.run(local_provider.lifecycle.create_sandbox, create_step(ref), environment=environment)
    )
    await asyncio.sleep(0.4)
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    found = await local_provider.run(local_provider.lifecycle.create_sandbox, create_step(ref), attempt=2)
    assert await held_as(local_provider, ref) == [found.provider_id]
    await local_provider.delete(ref.model_copy(update={"provider_id": found.provider_id}))


async def test_a_step_that_waits_is_heard_of_every_second_and_ends_in_time(
    local_provider: ProviderUnderTest, faults: FaultPlan
) -> None:
    ref = await local_provider.created()
    await local_provider.stop(ref)
    await faults.add(**START, effect="start_delay", seconds=4.0, times=1)
    beats: list[float] = []
    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *_: beats.append(time.monotonic())
    with pytest.raises(ApplicationError, match="took longer than 2 s") as failure:
        await local_provider.run(
            local_provider.lifecycle.start_sandbox, lifecycle_step(ref, timeout_s=2.4), environment=environment
        )
    assert failure.value.type == ErrorCode.TIMEOUT
    assert len(beats) >= 3
    await local_provider.delete(ref)


async def test_a_step_ends_with_its_own_error_before_temporal_ends_it(
    local_provider: ProviderUnderTest, faults: FaultPlan
) -> None:
    await faults.add(**CREATE, effect="start_delay", seconds=4.0, times=1)
    ref = local_provider.new_ref()
    with pytest.raises(ApplicationError) as failure:
        await local_provider.run(local_provider.lifecycle.create_sandbox, create_step(ref), limit_s=1.5)
    assert failure.value.type == ErrorCode.TIMEOUT
    await local_provider.delete(ref)


async def test_without_a_key_the_owner_is_asked_to_connect(local_provider: ProviderUnderTest) -> None:
    assert local_provider.local is not None
    settings = local_provider.settings.model_copy(update={"daytona_api_key": None})
    unconnected = ProviderUnderTest(settings, local_provider.storage, local_provider.local)
    with pytest.raises(ApplicationError) as failure:
        await unconnected.created()
    assert failure.value.type == SandboxSignal.NOTHING_CREATED, "there is nothing to delete"
    assert failure.value.details[0].code == ErrorCode.CONNECTION_REQUIRED
    assert failure.value.details[0].provider == "daytona"


async def test_a_wrong_key_ends_a_create_but_not_a_delete(local_provider: ProviderUnderTest) -> None:
    settings = local_provider.settings.model_copy(update={"daytona_api_key": SecretStr("wrong")})
    locked_out = ProviderUnderTest(settings, local_provider.storage, local_provider.local)
    try:
        for work, kind, is_final in (
            (locked_out.created, SandboxSignal.NOTHING_CREATED, True),
            (_deletion(locked_out), ErrorCode.CONNECTION_REQUIRED, False),
        ):
            with pytest.raises(ApplicationError) as failure:
                await work()
            assert failure.value.type == kind
            assert failure.value.details[0].code == ErrorCode.CONNECTION_REQUIRED
            assert failure.value.non_retryable is is_final
            assert "wrong" not in str(failure.value), "no key in an error"
    finally:
        await locked_out.pool.close()


def _deletion(provider: ProviderUnderTest) -> Callable[[], Awaitable[None]]:
    return lambda: provider.delete(provider.new_ref())


async def test_a_call_costs_one_request_and_a_fault_of_it_one_look(
    local_provider: ProviderUnderTest, faults: FaultPlan, shared_sandbox: SandboxRef
) -> None:
    async def call(ref: SandboxRef) -> str:
        return (await local_provider.access.toolbox(ref, lambda it: it.process.exec("echo hi"), 30)).result

    await local_provider.run(call, shared_sandbox)
    await faults.forget_requests()
    for _ in range(3):
        assert await local_provider.run(call, shared_sandbox) == "hi\n"
    assert [(each.method, each.route) for each in await faults.requests()] == [
        ("POST", "/toolbox/{sandbox_id}/process/execute")
    ] * 3
    await faults.forget_requests()
    await faults.add(**EXECUTE, effect="status", status=502, times=1)
    with pytest.raises(ApplicationError) as failure:
        await local_provider.run(call, shared_sandbox)
    assert failure.value.type == ErrorCode.PROVIDER_UNAVAILABLE
    assert not failure.value.non_retryable
    assert [each.method for each in await faults.requests()] == ["POST", "GET"]
    assert await local_provider.run(call, shared_sandbox) == "hi\n"


async def test_a_sandbox_that_is_gone_is_lost_to_a_call_that_has_time_to_be_sure(
    local_provider: ProviderUnderTest,
) -> None:
    ref = await local_provider.created()
    held = await local_provider.look(ref)
    assert held is not None
    await held.delete(wait=True)

    sure = False

    async def call(ref: SandboxRef) -> object:
        return await local_provider.access.toolbox(ref, lambda it: it.process.exec("true"), 30, sure=sure)

    with pytest.raises(ApplicationError) as failure:
        await local_provider.run(call, ref, limit_s=5)
    assert failure.value.type == SandboxSignal.NOT_STARTED, "too short to be sure: the start will be"
    sure = True
    with pytest.raises(ApplicationError) as failure:
        await local_provider.run(call, ref, limit_s=5)
    assert (failure.value.type, failure.value.non_retryable) == (ErrorCode.PROVIDER_UNAVAILABLE, False)
    with pytest.raises(ApplicationError) as failure:
        await local_provider.run(call, ref, limit_s=60)
    assert failure.value.type == SandboxSignal.LOST
