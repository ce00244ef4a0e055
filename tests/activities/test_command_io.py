"""`daytona_command` in a real sandbox: reading, feeding, signalling, each once for its call id."""

from __future__ import annotations

import asyncio

import pytest

from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.commands import READ_WINDOW_BYTES, CommandResult
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.steps import SandboxRef
from tests.activities.commands_under_test import EXECUTE, Commands, new_call_id
from tests.activities.provider_under_test import ProviderUnderTest
from tests.local_daytona_faults import FaultPlan


@pytest.fixture
def commands(provider: ProviderUnderTest, shared_sandbox: SandboxRef) -> Commands:
    return Commands(provider, shared_sandbox)


def code_of(outcome: CallOutcome) -> ErrorCode:
    assert outcome.error is not None
    assert outcome.error.hint or outcome.error.message
    return outcome.error.code


@pytest.mark.storage("folder", "s3")
async def test_output_is_read_from_offset_to_offset_to_its_end(commands: Commands) -> None:
    place = await commands.leave("seq 20000; echo err >&2; sleep 0.5; echo end; exit 5", background=True)
    text, stderr, at, err_at = "", "", 0, 0
    while True:
        told = await commands.read(place.call_id, at, err_at, wait_s=10.0)
        assert len(told.stdout) <= READ_WINDOW_BYTES
        assert at <= told.stdout_offset <= told.stdout_bytes
        text, stderr = text + told.stdout, stderr + told.stderr
        at, err_at = told.stdout_offset, told.stderr_offset
        if told.status != "running" and at == told.stdout_bytes:
            break
    assert text == "".join(f"{n}\n" for n in range(1, 20_001)) + "end\n"
    assert (stderr, told.status, told.exit_code) == ("err\n", "completed", 5)


async def test_a_read_waits_for_output_but_not_longer_than_asked(commands: Commands) -> None:
    place = await commands.leave("sleep 1; echo late; sleep 60", background=True)
    early = await commands.read(place.call_id)
    assert (early.status, early.stdout, early.stdout_offset) == ("running", "", 0)
    assert (await commands.read(place.call_id, wait_s=20.0)).stdout == "late\n"
    nothing = await commands.read(place.call_id, 5, wait_s=0.3)
    assert (nothing.status, nothing.stdout, nothing.stdout_offset) == ("running", "", 5)
    await commands.stop(place.call_id, grace_s=0)
    ended = await commands.read(place.call_id, 5, wait_s=20.0, action="wait")
    assert (ended.action, ended.status) == ("wait", "cancelled")


async def test_no_window_cuts_a_character(commands: Commands) -> None:
    place = await commands.leave(r"printf 'a\342\202'; sleep 1; printf '\254b\342'", background=True)
    first = await commands.read(place.call_id, wait_s=10.0)
    assert (first.stdout, first.stdout_offset, first.stdout_bytes) == ("a", 1, 3)
    second = await commands.read(place.call_id, 1, wait_s=20.0)
    assert second.stdout.startswith("€b")
    last = await commands.read(place.call_id, 5, wait_s=20.0)
    assert (last.stdout, last.stdout_offset, last.status) == ("\ufffd", 6, "completed")


async def test_what_the_workflow_knows_of_the_end_is_told(commands: Commands) -> None:
    result = await commands.run("echo out; exit 3")
    told = await commands.read(result.call_id, status="completed", exit_code=3)
    assert (told.status, told.exit_code, told.stdout) == ("completed", 3, "out\n")


@pytest.mark.storage("folder", "s3")
async def test_output_is_read_from_storage_once_the_sandbox_has_none_of_it(provider: ProviderUnderTest) -> None:
    commands = Commands(provider, await provider.created())
    place = await commands.leave("seq 30000; sleep 0.3", background=True)
    await commands.follow_to_the_end(place)
    short = await commands.run("echo short")
    await commands.sh("rm -rf .sandhold/calls")

    async def read_all() -> str:
        text, at = "", 0
        while True:
            told = await commands.read(place.call_id, at, status="completed", exit_code=0)
            assert (told.status, told.exit_code, told.stdout_bytes) == ("completed", 0, 168_894)
            if not told.stdout:
                return text
            text, at = text + told.stdout, told.stdout_offset

    expected = "".join(f"{n}\n" for n in range(1, 30_001))
    assert await read_all() == expected
    await provider.stop(commands.ref)
    assert await read_all() == expected
    told = await commands.read(short.call_id, status="completed", exit_code=0)
    assert told.stdout == ""
    assert "daytona_exec" in (told.hint or "")
    await provider.delete(commands.ref)
    assert await read_all() == expected
    assert (await commands.read(place.call_id)).status == "interrupted"


async def test_input_arrives_once_and_in_order_whatever_happens_to_its_request(
    commands: Commands, faults: FaultPlan
) -> None:
    place = await commands.leave("cat; echo over", background=True, stdin=True)
    data = bytes(range(256)) * 900
    await faults.add(**EXECUTE, effect="answer_lost", times=1)
    for piece in (b"first\n", data):
        outcome = await commands.write(place.call_id, piece)
        assert CommandResult.model_validate(outcome.result).status == "running"
    await faults.add(**EXECUTE, effect="answer_lost", times=2)
    closer = new_call_id()
    assert (await commands.write(place.call_id, b"last", close=True, writer=closer)).ok
    result = await commands.follow_to_the_end(place)
    assert result.stdout_bytes == len(data) + 15
    assert await commands.stored(place.call_id) == b"first\n" + data + b"lastover\n"
    assert (await commands.write(place.call_id, b"last", close=True, writer=closer)).ok
    assert await commands.sh("ls /tmp/sandhold-upload-* 2>/dev/null || echo none") == "none\n"


async def test_input_that_cannot_arrive_is_an_error_that_says_why(commands: Commands) -> None:
    assert code_of(await commands.write("never-was", b"x")) is ErrorCode.INVALID_ARGUMENTS
    without = await commands.leave("sleep 60", background=True)
    assert code_of(await commands.write(without.call_id, b"x")) is ErrorCode.CONFLICT
    await commands.stop(without.call_id, grace_s=0)
    assert code_of(await commands.write(without.call_id, b"x")) is ErrorCode.CONFLICT
    place = await commands.leave("sleep 60", background=True, stdin=True)
    assert (await commands.write(place.call_id, b"", close=True)).ok
    closed = await commands.write(place.call_id, b"x")
    assert closed.error is not None
    assert "closed" in closed.error.message
    await commands.stop(place.call_id, grace_s=0)


async def test_a_signal_arrives_once_whatever_happens_to_its_request(commands: Commands, faults: FaultPlan) -> None:
    script = "n=0; trap 'n=$((n + 1)); echo $n' USR1; echo ready; while :; do sleep 0.05; done"
    place = await commands.leave(script, background=True)
    await commands.read(place.call_id, wait_s=20.0)
    await faults.add(**EXECUTE, effect="answer_lost", times=2)
    assert (await commands.signal(place.call_id, "USR1")).ok
    await asyncio.sleep(0.3)
    assert (await commands.signal(place.call_id, "INT")).ok
    result = await commands.follow_to_the_end(place)
    assert (result.status, result.exit_code, result.stdout) == ("completed", 130, "ready\n1\n")
    assert code_of(await commands.signal(place.call_id, "INT")) is ErrorCode.CONFLICT
    assert code_of(await commands.signal("never-was", "INT")) is ErrorCode.INVALID_ARGUMENTS
