"""The sandbox's life at a provider that behaves.

These tests are the conformance subset: they need no faults, so they also run against a real account:

    DAYTONA_API_KEY=... python -m pytest tests/activities/test_lifecycle.py tests/activities/test_files.py

They leave nothing behind there; each takes the provider's own time (a deletion up to 12 s, for the
confirmation).
"""

from __future__ import annotations

import asyncio

import pytest
from temporalio.exceptions import ApplicationError

from sandhold.contracts.errors import ErrorCode, SandboxSignal
from sandhold.contracts.names import provider_labels, provider_name
from tests.activities.provider_under_test import ProviderUnderTest


async def test_a_created_sandbox_is_started_and_bears_our_name_labels_and_backstops(
    provider: ProviderUnderTest,
) -> None:
    ref = await provider.created(auto_stop_minutes=17, ttl_minutes=200, env={"GREETING": "good morning"})
    held = await provider.look(ref)
    assert held is not None
    assert held.id == ref.provider_id
    assert held.state == "started"
    assert held.name == provider_name(provider.deployment, ref.session_id, ref.sandbox_id, 1)
    expected = provider_labels(provider.deployment, ref.owner, ref.session_id, ref.sandbox_id)
    assert expected.items() <= held.labels.items()
    assert (held.auto_stop_interval, held.auto_delete_interval) == (17, -1)
    assert held.auto_destroy_at is not None, "the time to live is the provider's last backstop against a leak"
    assert await provider.sh(ref, 'printf %s "$GREETING"') == "good morning"
    await provider.delete(ref)


@pytest.mark.parametrize(("size", "expected"), [("small", (1, 1, 3)), ("medium", (2, 4, 8))])
async def test_a_size_gives_cpus_memory_and_disk(
    provider: ProviderUnderTest, size: str, expected: tuple[int, int, int]
) -> None:
    ref = await provider.created(size=size)
    held = await provider.look(ref)
    assert held is not None
    assert (held.cpu, held.memory, held.disk) == expected
    await provider.delete(ref)


async def test_creating_again_takes_up_the_same_sandbox(provider: ProviderUnderTest) -> None:
    ref = provider.new_ref()
    first, _ = await provider.create(ref)
    again, _ = await provider.create(ref)
    assert again.provider_id == first.provider_id
    await provider.delete(first)


async def test_two_creates_at_once_give_one_sandbox(provider: ProviderUnderTest) -> None:
    ref = provider.new_ref()
    (first, _), (second, _) = await asyncio.gather(provider.create(ref), provider.create(ref))
    assert first.provider_id == second.provider_id
    await provider.delete(first)


async def test_a_stopped_sandbox_keeps_its_files_and_starts_again(provider: ProviderUnderTest) -> None:
    ref = await provider.created()
    await provider.sh(ref, "echo kept > kept.txt")
    assert await provider.stop(ref) == "stopped"
    assert await provider.stop(ref) == "stopped", "stopping again is fine, though the provider refuses it"
    assert await provider.start(ref) == "started"
    assert await provider.start(ref) == "started"
    assert await provider.sh(ref, "cat kept.txt") == "kept\n"
    await provider.delete(ref)


async def test_archiving_stops_first_and_a_start_brings_the_files_back(provider: ProviderUnderTest) -> None:
    ref = await provider.created()
    await provider.sh(ref, "echo kept > kept.txt")
    for _ in range(2):
        assert await provider.archive(ref) in {"archived", "archiving", "stopped"}
    assert await provider.start(ref) == "started"
    assert await provider.sh(ref, "cat kept.txt") == "kept\n"
    await provider.delete(ref)


async def test_a_stopped_sandbox_is_deleted_and_deleting_again_is_fine(provider: ProviderUnderTest) -> None:
    ref = await provider.created()
    await provider.stop(ref)
    await provider.delete(ref)
    assert await provider.look(ref) is None
    await provider.delete(ref)


async def test_deleting_what_never_was_is_fine(provider: ProviderUnderTest) -> None:
    await provider.delete(provider.new_ref())


async def test_a_deleted_name_is_free_for_the_next_generation_and_for_the_same(provider: ProviderUnderTest) -> None:
    ref = await provider.created()
    await provider.delete(ref)
    again, _ = await provider.create(ref.model_copy(update={"provider_id": None}))
    assert again.provider_id != ref.provider_id
    await provider.delete(again)


async def test_an_unknown_snapshot_is_refused_and_not_retried(provider: ProviderUnderTest) -> None:
    with pytest.raises(ApplicationError, match="no-such-snapshot") as failure:
        await provider.created(snapshot="no-such-snapshot")
    assert failure.value.type == ErrorCode.PROVIDER_REJECTED
    assert failure.value.non_retryable


async def test_a_call_to_a_stopped_sandbox_asks_for_its_start(provider: ProviderUnderTest) -> None:
    ref = await provider.created()
    behind_our_back = await provider.look(ref)
    assert behind_our_back is not None
    await behind_our_back.stop()
    with pytest.raises(ApplicationError) as failure:
        await provider.run(lambda of: provider.access.toolbox(of, lambda it: it.process.exec("true"), 30), ref)
    assert failure.value.type == SandboxSignal.NOT_STARTED
    assert failure.value.non_retryable
    await provider.start(ref)
    answer = await provider.run(
        lambda of: provider.access.toolbox(of, lambda it: it.process.exec("echo back"), 30), ref
    )
    assert answer.result == "back\n"
    await provider.delete(ref)


async def test_a_sandbox_that_somebody_deleted_is_lost_and_not_replaced(provider: ProviderUnderTest) -> None:
    ref = await provider.created()
    behind_our_back = await provider.look(ref)
    assert behind_our_back is not None
    await behind_our_back.delete(wait=True)
    for step in (provider.start, provider.stop, provider.archive):
        with pytest.raises(ApplicationError) as failure:
            await step(ref)
        assert failure.value.type == SandboxSignal.LOST
    assert await provider.look(ref) is None
    await provider.delete(ref)
