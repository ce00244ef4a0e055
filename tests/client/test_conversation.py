"""The rare turns of the conversation about one call: refusals, closing workflows, full slots, nobody there."""

from __future__ import annotations

import asyncio

import pytest

from sandhold.client import EndNotConfirmed, Sandhold, SessionEnded, TemporalUnreachable, WaitTimeout
from sandhold.client.requests import UPDATES_IN_FLIGHT
from sandhold.contracts.calls import CallEnvelope
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure
from sandhold.contracts.names import DRAINING, session_workflow_id
from tests.cable import Cable
from tests.client.conftest import Speakers
from tests.client.speakers import REFUSAL, SpeakingSandbox, SpeakingSandboxStart, on_the_books

MANAGE = "daytona_manage_sandbox"
START = {"sandbox_id": "box", "action": "start"}


def error_in(envelope: CallEnvelope) -> ToolError:
    assert envelope.error is not None, envelope
    assert (envelope.status, envelope.ok) == ("done", False)
    return envelope.error


@pytest.mark.parametrize("refuses_as", [DRAINING, "UnprocessedUpdate"])
async def test_a_refusal_that_passes_is_sent_again_under_the_same_id(speakers: Speakers, refuses_as: str) -> None:
    """The workflow drains, or no worker has looked at the update: the server tells both alike."""
    session = await speakers.session()
    box = await speakers.sandbox(session, SpeakingSandboxStart(draining=True, refuses_as=refuses_as))
    call = asyncio.create_task(session.call(MANAGE, START, "again"))
    await asyncio.sleep(0.5)
    assert not call.done()
    await box.signal(SpeakingSandbox.open)
    assert (await call).ok
    assert (await box.query(SpeakingSandbox.seen))["started"] == ["again"]


async def test_a_running_answer_becomes_one_blocking_call(speakers: Speakers) -> None:
    session = await speakers.session()
    box = await speakers.sandbox(session, SpeakingSandboxStart(takes_s=60, answer_within_s=0.1))
    call = asyncio.create_task(session.call(MANAGE, START, "slow"))
    await asyncio.sleep(0.6)
    assert not call.done()
    await box.signal(SpeakingSandbox.end_call, "slow")
    envelope = await call
    assert envelope.result == {"sandbox_id": "box", "action": "start", "state": "started"}
    assert (envelope.result_ref, envelope.fingerprint) == (None, None)


async def test_a_timeout_returns_the_running_envelope_and_leaves_the_call_alone(speakers: Speakers) -> None:
    session = await speakers.session()
    box = await speakers.sandbox(session, SpeakingSandboxStart(takes_s=60))
    for wait in (True, False):
        envelope = await session.call(MANAGE, START, "long", wait=wait, timeout=0.5)
        assert (envelope.status, envelope.ok, envelope.error) == ("running", None, None)
    assert (await box.query(SpeakingSandbox.seen))["started"] == ["long"]
    with pytest.raises(ToolFailure) as failure:
        await session.manage_sandbox("box", "start", call_id="long", timeout=0.3)
    assert (failure.value.error.code, failure.value.error.ambiguous) == (ErrorCode.TIMEOUT, True)


async def test_an_update_lost_with_its_workflow_is_answered_from_what_was_recorded(speakers: Speakers) -> None:
    session = await speakers.session(on_the_books("box", ended="deleted"))
    box = await speakers.sandbox(session, SpeakingSandboxStart(takes_s=60))
    call = asyncio.create_task(session.call(MANAGE, START, "late"))
    await asyncio.sleep(0.4)
    await box.signal(SpeakingSandbox.end_call, "late")
    await box.signal(SpeakingSandbox.close)
    assert (await call).ok


async def test_a_workflow_that_ends_before_its_call_is_an_interruption(speakers: Speakers) -> None:
    session = await speakers.session()
    box = await speakers.sandbox(session, SpeakingSandboxStart(takes_s=60, answer_within_s=0.1))
    call = asyncio.create_task(session.call(MANAGE, START))
    await asyncio.sleep(0.5)
    await box.terminate()
    error = error_in(await call)
    assert (error.code, error.ambiguous) == (ErrorCode.INTERRUPTED, True)


async def test_a_call_whose_end_was_forgotten_before_the_client_looked_is_sent_again(speakers: Speakers) -> None:
    """Not as an update: of that the server itself knows the answer, `running`."""
    session = await speakers.session()
    box = await speakers.sandbox(session, SpeakingSandboxStart(takes_s=1.5, answer_within_s=0.1, generation=7))
    call = asyncio.create_task(session.call("daytona_exec", {"sandbox_id": "box", "command": "true"}, "forgotten"))
    await asyncio.sleep(0.5)
    await box.signal(SpeakingSandbox.forget_call, "forgotten")
    envelope = await asyncio.wait_for(call, 30)
    assert (envelope.status, envelope.ok, envelope.generation) == ("done", True, None)
    seen = await box.query(SpeakingSandbox.seen)
    assert (set(seen["by_signal"]), set(seen["for_generations"])) == ({"forgotten"}, {7})


async def test_a_call_that_would_take_effect_twice_is_not_sent_again(speakers: Speakers) -> None:
    """A sandbox that was stopped for it may have been started for others since."""
    session = await speakers.session()
    box = await speakers.sandbox(session, SpeakingSandboxStart(takes_s=60, answer_within_s=0.1))
    call = asyncio.create_task(session.call(MANAGE, {**START, "action": "stop"}, "stop"))
    await asyncio.sleep(0.5)
    await box.signal(SpeakingSandbox.forget_call, "stop")
    error = error_in(await asyncio.wait_for(call, 30))
    assert (error.code, error.ambiguous, error.retryable) == (ErrorCode.INTERRUPTED, True, False)
    assert (await box.query(SpeakingSandbox.seen))["started"] == ["stop"]


async def test_more_calls_than_update_slots_all_run_at_once_and_once(speakers: Speakers) -> None:
    session = await speakers.session()
    box = await speakers.sandbox(session, SpeakingSandboxStart(takes_s=1.5))
    ids = [f"call-{number}" for number in range(30)]
    envelopes = await asyncio.gather(*(session.call(MANAGE, START, call_id) for call_id in ids))
    assert all(envelope.ok for envelope in envelopes)
    seen = await box.query(SpeakingSandbox.seen)
    assert sorted(seen["started"]) == sorted(ids)
    assert seen["most_in_flight"] == UPDATES_IN_FLIGHT
    assert len(seen["by_signal"]) == len(ids) - UPDATES_IN_FLIGHT


async def test_a_taken_call_id_is_a_conflict_on_every_way(speakers: Speakers) -> None:
    session = await speakers.session()
    await speakers.sandbox(session)
    assert (await session.call(MANAGE, START, "taken")).ok
    other = {**START, "action": "stop"}
    for wait in (True, False):
        error = error_in(await session.call(MANAGE, other, "taken", wait=wait))
        assert error.code is ErrorCode.CALL_ID_CONFLICT


async def test_a_sandbox_that_is_on_the_books_without_a_workflow_is_waited_for_and_then_lost(
    speakers: Speakers,
) -> None:
    session = await speakers.session()
    call = asyncio.create_task(session.call(MANAGE, START))
    await asyncio.sleep(0.3)
    await speakers.sandbox(session)
    assert (await call).ok
    never = await speakers.session()
    assert error_in(await never.call(MANAGE, START)).code is ErrorCode.SANDBOX_LOST


async def test_what_became_of_a_sandbox_is_told_from_the_books(speakers: Speakers) -> None:
    lost = ToolError(code=ErrorCode.SANDBOX_LOST, message="gone")
    failed = ToolError(code=ErrorCode.SANDBOX_FAILED, message="no capacity")
    session = await speakers.session(
        on_the_books("build"),
        on_the_books("old", ended="deleted"),
        on_the_books("gone", ended="lost", error=lost),
        on_the_books("broken", ended="failed", error=failed),
    )

    async def error_for(sandbox_id: str) -> ToolError:
        return error_in(await session.call(MANAGE, {"sandbox_id": sandbox_id, "action": "start"}))

    assert await error_for("gone") == lost
    assert await error_for("broken") == failed
    deleted = await error_for("old")
    assert (deleted.code, deleted.sandbox_ids) == (ErrorCode.SANDBOX_NOT_FOUND, ["build"])
    assert "was deleted" in deleted.message
    misspelt = await error_for("biuld")
    assert misspelt.code is ErrorCode.SANDBOX_NOT_FOUND
    assert "Did you mean 'build'?" in (misspelt.hint or "")


async def test_typed_refusals_pass_through_and_others_are_internal(speakers: Speakers) -> None:
    session = await speakers.session(refusal=REFUSAL)
    assert error_in(await session.call("daytona_create_sandbox")) == REFUSAL
    broken = await speakers.session()
    error = error_in(await broken.call("daytona_create_sandbox"))
    assert (error.code, "a bug in a handler" in error.message) == (ErrorCode.INTERNAL, True)


async def test_without_a_worker_a_call_ends_with_its_timeout_or_its_cancellation(speakers: Speakers) -> None:
    session = await speakers.session(task_queue="nobody-polls-this")
    await speakers.sandbox(session, task_queue="nobody-polls-this")
    error = error_in(await session.call(MANAGE, START, timeout=0.5))
    assert (error.code, error.retryable, error.ambiguous) == (ErrorCode.TIMEOUT, True, True)
    assert error_in(await session.call("daytona_list_sandboxes", timeout=0.3)).code is ErrorCode.TIMEOUT
    with pytest.raises(WaitTimeout):
        await session.status(timeout=0.3)
    call = asyncio.create_task(session.call(MANAGE, START))
    await asyncio.sleep(0.3)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_call_survives_the_loss_of_its_connection(speakers: Speakers, cable: Cable) -> None:
    session = await speakers.session()
    box = await speakers.sandbox(session, SpeakingSandboxStart(takes_s=60, answer_within_s=1.0))
    far = await Sandhold.connect(speakers.settings.model_copy(update={"temporal_address": cable.address}))
    call = asyncio.create_task(far.session(session.session_id).call(MANAGE, START, "through"))
    for _ in range(3):  # while the update waits, and while the result is polled
        await asyncio.sleep(0.4)
        await cable.cut()
        await asyncio.sleep(0.2)
        await cable.plug()
    await box.signal(SpeakingSandbox.end_call, "through")
    assert (await call).ok
    assert (await box.query(SpeakingSandbox.seen))["started"] == ["through"]


async def test_temporal_away_for_longer_than_the_client_waits_is_unreachable(speakers: Speakers, cable: Cable) -> None:
    session = await speakers.session()
    await speakers.sandbox(session, SpeakingSandboxStart(takes_s=60))
    settings = speakers.settings.model_copy(update={"temporal_address": cable.address, "reconnect_s": 0.5})
    far = (await Sandhold.connect(settings)).session(session.session_id)
    call = asyncio.create_task(far.call(MANAGE, START))
    await asyncio.sleep(0.3)
    await cable.cut()
    with pytest.raises(TemporalUnreachable):
        await call
    with pytest.raises(TemporalUnreachable):
        await far.status()
    with pytest.raises(TemporalUnreachable):
        await Sandhold.connect(settings)


async def test_a_caller_that_is_cancelled_frees_its_slot(speakers: Speakers) -> None:
    session = await speakers.session()
    box = await speakers.sandbox(session, SpeakingSandboxStart(takes_s=1.5))
    waiting = [asyncio.create_task(session.call(MANAGE, START)) for _ in range(UPDATES_IN_FLIGHT)]
    await asyncio.sleep(0.5)
    for call in waiting:
        call.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (await session.call(MANAGE, START, "after", timeout=20)).ok
    assert "after" not in (await box.query(SpeakingSandbox.seen))["by_signal"]


async def test_an_end_that_nothing_confirms_is_not_taken_for_one(speakers: Speakers) -> None:
    session = await speakers.session(on_the_books("box"), on_the_books("old", ended="deleted"))
    box = await speakers.sandbox(session)
    await box.terminate()
    await session.status()  # It has run: what never did has no books.
    await speakers.temporal.get_workflow_handle(session.workflow_id).terminate()
    with pytest.raises(EndNotConfirmed) as failure:
        await session.end()
    assert failure.value.sandbox_ids == ["box"]


async def test_a_session_that_was_closed_before_it_did_anything_has_ended_without_sandboxes(speakers: Speakers) -> None:
    session = await speakers.session(task_queue="nobody")
    await speakers.temporal.get_workflow_handle(session.workflow_id).terminate()
    outcome = await session.end()
    assert (outcome.reason, outcome.sandboxes) == ("terminated", [])
    with pytest.raises(SessionEnded):
        await session.status()
    assert await session.result("any") is None
    assert error_in(await session.call(MANAGE, START)).code is ErrorCode.SESSION_ENDED


async def test_a_session_that_never_was_is_not_found(speakers: Speakers) -> None:
    nobody = speakers.sandhold.session("never-was")
    for tool, arguments in (
        ("daytona_create_sandbox", {}),
        ("daytona_list_sandboxes", {}),
        (MANAGE, START),
    ):
        assert error_in(await nobody.call(tool, arguments)).code is ErrorCode.SESSION_NOT_FOUND
    assert await nobody.result("any") is None
    with pytest.raises(LookupError):
        await speakers.sandhold.find_session("never-was")
    assert nobody.workflow_id == session_workflow_id("never-was")
