"""What is concluded from the provider's reads, which may be old: nothing for good before it is certain."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from pydantic import JsonValue
from temporalio.exceptions import ApplicationError

from sandhold.contracts.errors import ErrorCode, SandboxSignal
from sandhold.contracts.steps import SandboxRef
from tests.activities.commands_under_test import EXECUTE, Commands, result_of
from tests.activities.provider_under_test import ProviderUnderTest
from tests.local_daytona_faults import FaultPlan

LOOK = {"method": "GET", "route": "/api/sandbox/{id}"}
BAD_GATEWAY = {"effect": "status", "status": 502, "body": ""}


@pytest.fixture
async def patient(local_provider: ProviderUnderTest) -> AsyncIterator[ProviderUnderTest]:
    """A worker that confirms for as long as it takes to wait for something else meanwhile."""
    settings = local_provider.settings.model_copy(update={"absence_confirm_s": 1.0})
    other = dataclasses.replace(local_provider, settings=settings)
    yield other
    await other.pool.close()


@pytest.fixture
async def ref(local_provider: ProviderUnderTest, faults: FaultPlan) -> AsyncIterator[SandboxRef]:
    created = await local_provider.created()
    yield created
    await faults.clear()
    await local_provider.delete(created)


async def shown_as(provider: ProviderUnderTest, ref: SandboxRef, state: str) -> dict[str, Any]:
    """A fault by which reads show the sandbox in another state than it is in."""
    assert provider.local is not None
    headers = {"Authorization": f"Bearer {provider.local.api_key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.get(f"{provider.local.url}/sandbox/{ref.provider_id}") as answer,
    ):
        body: dict[str, JsonValue] = await answer.json()
    return {**LOOK, "effect": "status", "status": 200, "body": {**body, "state": state, "desiredState": state}}


async def test_a_stale_read_does_not_interrupt_a_command_that_answers(
    patient: ProviderUnderTest, ref: SandboxRef, faults: FaultPlan
) -> None:
    commands = Commands(patient, ref)
    place = await commands.leave("echo begun; sleep 1.5; echo done")
    for state in ("stopped", "stopping", "error", "destroying"):
        await faults.clear()
        patient.access.forget(ref)
        stale = await faults.add(**await shown_as(patient, ref, state), times=1)
        read = await commands.read(place.call_id)
        assert (read.status, read.stdout) == ("running", "begun\n"), state
        assert await faults.hits(stale) == 1
    patient.access.forget(ref)
    await faults.add(**await shown_as(patient, ref, "stopped"))
    (progress,) = await commands.follow([place])
    assert result_of(progress).stdout == "begun\ndone\n"


@pytest.mark.parametrize("state", ["stopped", "resizing"])
async def test_a_stale_read_beside_a_bad_moment_of_the_proxy_interrupts_nothing(
    patient: ProviderUnderTest, ref: SandboxRef, faults: FaultPlan, state: str
) -> None:
    commands = Commands(patient, ref)
    place = await commands.leave("echo begun; sleep 3; echo done")
    patient.access.forget(ref)
    stale = await faults.add(**await shown_as(patient, ref, state), times=2)
    bad = await faults.add(**EXECUTE, **BAD_GATEWAY, times=2)
    (progress,) = await commands.follow([place])
    assert result_of(progress).stdout == "begun\ndone\n"
    assert await faults.hits(stale) == await faults.hits(bad) == 2


async def test_a_short_step_that_ends_commands_is_not_told_that_none_runs_by_one_stale_read(
    patient: ProviderUnderTest, ref: SandboxRef, faults: FaultPlan
) -> None:
    commands = Commands(patient, ref)
    place = await commands.leave("sleep 60", background=True)
    patient.access.forget(ref)
    await faults.add(**await shown_as(patient, ref, "stopped"), times=2)
    await faults.add(**EXECUTE, **BAD_GATEWAY, times=1)
    step = commands.stop_step(place.call_id, grace_s=0.0)
    with pytest.raises(ApplicationError) as unclear:
        await patient.run(commands.activities.stop_commands, step, limit_s=5.0)
    assert (unclear.value.type, unclear.value.non_retryable) == (ErrorCode.PROVIDER_UNAVAILABLE, False)
    await patient.run(commands.activities.stop_commands, step)
    (progress,) = await commands.follow([place])
    assert progress.status == "cancelled"


async def test_a_follower_learns_of_a_stop_whatever_the_proxy_says(
    patient: ProviderUnderTest, ref: SandboxRef, faults: FaultPlan
) -> None:
    commands = Commands(patient, ref)
    place = await commands.leave("sleep 60", background=True)
    await patient.stop(ref)
    for fault, at_once in (({}, True), (BAD_GATEWAY, False), ({"effect": "reset_before"}, False)):
        if fault:
            await faults.add(**EXECUTE, **fault)
        began = time.monotonic()
        async with asyncio.timeout(20):
            with pytest.raises(ApplicationError) as stopped:
                await commands.follow([place])
        assert stopped.value.type == SandboxSignal.NOT_STARTED
        waited = time.monotonic() - began >= patient.settings.absence_confirm_s
        assert waited is not at_once
        await faults.clear()


async def test_a_stop_that_no_event_told_of_is_noticed_by_the_proxys_words(
    patient: ProviderUnderTest, ref: SandboxRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Commands(patient, ref)
    await commands.run("true")
    await patient.stop(ref)
    held = await patient.look(ref)
    assert held is not None
    monkeypatch.setattr(held, "state", "started")
    patient.access.remember(held)
    with pytest.raises(ApplicationError) as stopped:
        await commands.run("true")
    assert (stopped.value.type, stopped.value.non_retryable) == (SandboxSignal.NOT_STARTED, True)


async def test_a_call_to_a_sandbox_that_changes_its_state_has_it_started(
    patient: ProviderUnderTest, ref: SandboxRef, faults: FaultPlan
) -> None:
    commands = Commands(patient, ref)
    await patient.stop(ref)
    await faults.add(**await shown_as(patient, ref, "stopping"), times=2)
    with pytest.raises(ApplicationError) as stopped:
        await patient.run(commands.activities.run_command, commands.step("true"), limit_s=9.0)
    assert stopped.value.type == SandboxSignal.NOT_STARTED
