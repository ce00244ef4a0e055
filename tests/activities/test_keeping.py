"""Saving the workspace of a sandbox that is about to be deleted: what of the time counts, and what does not."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import keeping as keeping_module
from activities.keeping import KeepingActivities
from activities.stream_requests import StreamBroken
from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolFailure
from sandhold.contracts.steps import SandboxRef, SaveStep
from sandhold.contracts.transfers import SavedWorkspace
from sandhold.storage.errors import StorageRefused
from tests.activities.provider_under_test import ProviderUnderTest
from tests.local_daytona_faults import FaultPlan

DOWNLOAD = {"method": "POST", "route": "/toolbox/{sandbox_id}/files/bulk-download"}
EXECUTE = "/toolbox/{sandbox_id}/process/execute"


async def test_the_time_of_a_save_begins_with_its_place(
    local_provider: ProviderUnderTest, faults: FaultPlan, shared_sandbox: SandboxRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping_module, "SAVES_AT_ONCE", 1)
    keeping = KeepingActivities(local_provider.access, local_provider.storage)
    slow = await faults.add(**DOWNLOAD, effect="delay", seconds=5.0, times=1)
    first = asyncio.create_task(local_provider.run(keeping.save_workspace, SaveStep(ref=shared_sandbox)))
    while not await faults.hits(slow):
        await asyncio.sleep(0.05)
    began = time.monotonic()
    second: SavedWorkspace = await local_provider.run(
        keeping.save_workspace, SaveStep(ref=shared_sandbox, timeout_s=4.0)
    )
    assert time.monotonic() - began > 4.0
    assert (second.error, (await first).error) == (None, None)


async def test_a_sandbox_that_waits_for_its_place_is_in_use_and_says_when_it_stops(
    local_provider: ProviderUnderTest, faults: FaultPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping_module, "SAVES_AT_ONCE", 0)
    monkeypatch.setattr(keeping_module, "IN_USE_EVERY_S", 0.1)
    ref = await local_provider.created()
    keeping = KeepingActivities(local_provider.access, local_provider.storage)
    await faults.forget_requests()
    waiting = asyncio.create_task(local_provider.run(keeping.save_workspace, SaveStep(ref=ref)))
    async with asyncio.timeout(20):
        while len(await faults.requests(method="POST", route=EXECUTE)) < 3:
            await asyncio.sleep(0.05)
        await local_provider.stop(ref)
        with pytest.raises(ApplicationError) as failure:
            await waiting
    assert failure.value.type == SandboxSignal.NOT_STARTED
    await local_provider.delete(ref)


async def saved_by(provider: ProviderUnderTest, ref: SandboxRef, failure: Exception) -> SavedWorkspace | None:
    """What comes of six attempts that fail so, each after 0.3 s of 1 s; None when they go on."""

    async def fails(_: object) -> SavedWorkspace:
        await asyncio.sleep(0.3)
        raise failure

    told: list[tuple[Any, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("activities.keeping._Saving.run", fails)
        keeping = KeepingActivities(provider.access, provider.storage)
        for _ in range(6):
            environment = ActivityEnvironment()
            environment.info = dataclasses.replace(environment.info, heartbeat_details=told[-1] if told else ())
            environment.on_heartbeat = lambda *details: told.append(details)
            try:
                step = SaveStep(ref=ref, timeout_s=1.0)
                saved: SavedWorkspace = await provider.run(keeping.save_workspace, step, environment=environment)
            except ApplicationError:
                continue
            return saved
    return None


async def test_attempts_that_fail_share_the_time_but_those_for_lack_of_storage_do_not_count(
    provider: ProviderUnderTest, shared_sandbox: SandboxRef
) -> None:
    saved = await saved_by(provider, shared_sandbox, StreamBroken("the tar of this sandbox"))
    assert saved is not None
    assert saved.error is not None
    assert (saved.error.code, saved.error.message) == (
        ErrorCode.TIMEOUT,
        "the workspace was not saved within 1 s: a stream of the sandbox broke: the tar of this sandbox",
    )
    for code in (ErrorCode.INTERNAL, ErrorCode.STORAGE_FULL):
        assert await saved_by(provider, shared_sandbox, ToolFailure(code, "of session storage", retryable=True)) is None
    fault = StorageRefused("of session storage")
    told = fault.failure("a file")
    told.__cause__ = fault
    assert await saved_by(provider, shared_sandbox, told) is None
    refused = await saved_by(provider, shared_sandbox, ToolFailure(ErrorCode.QUOTA_EXCEEDED, "full"))
    assert refused is not None
    assert refused.error is not None
    assert refused.error.code is ErrorCode.QUOTA_EXCEEDED
