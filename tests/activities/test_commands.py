"""`daytona_exec` in a real sandbox, with everything that goes wrong on the way to it.

The tests with the fixture `provider` alone also run against a real account (see test_lifecycle.py); they prove
there what the design rests on: that a command detached by `process/execute` outlives its request.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import commands as commands_module
from activities.following import BEYOND_CAP_BYTES
from activities.launcher import LauncherRequest, stop_request
from activities.launcher.access import ANSWER_MARGIN_S
from sandhold.contracts.calls import INLINE_LIMIT_BYTES
from sandhold.contracts.errors import ErrorCode, SandboxSignal
from sandhold.contracts.names import call_folder
from sandhold.contracts.steps import CommandPlace, FollowCommandsStep, SandboxRef
from tests.activities.commands_under_test import EXECUTE, Commands, new_call_id, result_of
from tests.activities.provider_under_test import ProviderUnderTest
from tests.local_daytona_faults import FaultPlan


@pytest.fixture
def commands(provider: ProviderUnderTest, shared_sandbox: SandboxRef) -> Commands:
    return Commands(provider, shared_sandbox)


async def test_a_command_gives_its_output_and_exit_code(commands: Commands) -> None:
    began = time.monotonic()
    result = await commands.run("echo out; echo err >&2; pwd; exit 3")
    waited_ms = (time.monotonic() - began) * 1000
    assert (result.status, result.exit_code, result.stderr) == ("completed", 3, "err\n")
    assert result.stdout == "out\n/home/daytona\n"
    assert result.duration_ms is not None
    assert result.duration_ms <= waited_ms


async def test_a_short_command_costs_one_provider_request(commands: Commands, faults: FaultPlan) -> None:
    await commands.run("true")
    await faults.forget_requests()
    await commands.run("echo hi")
    seen = await faults.requests()
    assert [request.route for request in seen] == [EXECUTE["route"]]


async def test_a_long_command_is_followed_to_its_end(commands: Commands) -> None:
    place = await commands.leave("echo begin; sleep 2; echo end; exit 4")
    (progress,) = await commands.follow([place])
    result = result_of(progress)
    assert (result.status, result.exit_code, result.stdout) == ("completed", 4, "begin\nend\n")
    assert result.duration_ms is not None
    assert result.duration_ms >= 2000


async def test_fault_5_a_retry_attaches_to_the_running_command_and_gives_the_same_result(commands: Commands) -> None:
    """Not run 3 to 6 times."""
    call_id = new_call_id()
    step = commands.step(f"echo run >>ran-{call_id}; sleep 1; echo done", call_id)
    attempts = (
        commands.provider.run(commands.activities.run_command, step, attempt=attempt, limit_s=20)
        for attempt in (1, 2, 3)
    )
    results = [result_of(progress) for progress in await asyncio.gather(*attempts)]
    assert results[0] == results[1] == results[2]
    assert results[0].stdout == "done\n"
    assert await commands.sh(f"cat ran-{call_id}") == "run\n"


async def test_fault_5_two_activities_that_race_for_a_call_id_start_it_once(commands: Commands) -> None:
    call_id = new_call_id()
    command = f"echo run >>ran-{call_id}; sleep 0.3; echo done"
    results = await asyncio.gather(*(commands.run(command, call_id=call_id) for _ in range(2)))
    assert results[0] == results[1]
    assert await commands.sh(f"cat ran-{call_id}") == "run\n"


@pytest.mark.parametrize(
    "fault",
    [
        {"effect": "answer_lost"},
        {"effect": "reset_before"},
        {"effect": "reset_during"},
        {"effect": "status", "status": 502},
        {"effect": "status", "status": 429, "headers": {"Retry-After": "0"}},
        {"effect": "status", "status": 408},
    ],
    ids=lambda fault: f"{fault['effect']}{fault.get('status', '')}",
)
async def test_fault_5_whatever_happens_to_its_request_a_command_runs_once(
    commands: Commands, faults: FaultPlan, fault: dict[str, Any]
) -> None:
    call_id = new_call_id()
    await commands.run("true")
    await faults.add(**EXECUTE, **fault, times=2)
    step = commands.step(f"echo run >>ran-{call_id}; sleep 0.2; echo done; exit 9", call_id)
    progress, failures = await commands.provider.persist(commands.activities.run_command, step)
    result = result_of(progress)
    assert len(failures) == 2
    assert not any(failure.non_retryable for failure in failures)
    assert (result.exit_code, result.stdout) == (9, "done\n")
    assert await commands.sh(f"cat ran-{call_id}") == "run\n"


async def test_fault_9_faults_while_a_command_is_followed_do_not_end_it(commands: Commands, faults: FaultPlan) -> None:
    """One 502 does not kill the command."""
    call_id = new_call_id()
    place = await commands.leave(f"echo run >>ran-{call_id}; sleep 2; echo done", call_id=call_id)
    for fault in ({"effect": "status", "status": 502}, {"effect": "reset_before"}, {"effect": "answer_lost"}):
        await faults.add(**EXECUTE, **fault, times=1)
    (progress,) = await commands.follow([place])
    assert result_of(progress).stdout == "done\n"
    assert await commands.sh(f"cat ran-{call_id}") == "run\n"


async def test_what_ends_the_trying_says_whether_the_command_may_run(commands: Commands, faults: FaultPlan) -> None:
    """A refusal of a first request says that nothing was started; one of a repetition does not."""
    await commands.run("true")
    refused = {"effect": "status", "status": 401, "body": {"statusCode": 401, "message": "Unauthorized"}}
    step = commands.step("true")
    for attempt, ambiguous in ((1, False), (2, True)):
        await faults.add(**EXECUTE, **refused, times=1)
        with pytest.raises(ApplicationError) as raised:
            await commands.provider.run(commands.activities.run_command, step, attempt=attempt)
        assert (raised.value.type, raised.value.non_retryable) == (ErrorCode.CONNECTION_REQUIRED, True)
        assert raised.value.details[0].ambiguous is ambiguous


async def test_a_refusal_behind_an_answer_that_told_nothing_is_ambiguous_at_once(
    commands: Commands, faults: FaultPlan
) -> None:
    await commands.run("true")
    await faults.add(**EXECUTE, effect="status", status=502, times=1)
    look = {"method": "GET", "route": "/api/sandbox/{id}"}
    await faults.add(**look, effect="status", status=401, body={"statusCode": 401, "message": "Unauthorized"}, times=1)
    with pytest.raises(ApplicationError) as raised:
        await commands.begin("true")
    assert raised.value.type == ErrorCode.CONNECTION_REQUIRED
    assert raised.value.details[0].ambiguous


async def test_a_sandbox_that_is_found_stopped_by_a_repetition_is_still_told_as_that(
    local_provider: ProviderUnderTest,
) -> None:
    commands = Commands(local_provider, await local_provider.created())
    await local_provider.stop(commands.ref)
    with pytest.raises(ApplicationError) as raised:
        await local_provider.run(commands.activities.run_command, commands.step("true"), attempt=2)
    assert raised.value.type == SandboxSignal.NOT_STARTED
    await local_provider.delete(commands.ref)


async def test_cancelling_an_activity_ends_no_command(commands: Commands) -> None:
    place = await commands.leave("sleep 2; echo lived")
    environment = ActivityEnvironment()
    step = FollowCommandsStep(ref=commands.ref, commands=[place])
    following = asyncio.create_task(
        commands.provider.run(commands.following.follow_commands, step, environment=environment)
    )
    await asyncio.sleep(0.5)
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    (progress,) = await commands.follow([place])
    assert result_of(progress).stdout == "lived\n"


async def test_fault_4_a_follower_heartbeats_while_nothing_happens(commands: Commands) -> None:
    """A quiet build is not taken for dead."""
    place = await commands.leave("sleep 3")
    environment = ActivityEnvironment()
    beats: list[float] = []
    environment.on_heartbeat = lambda *_: beats.append(time.monotonic())
    step = FollowCommandsStep(ref=commands.ref, commands=[place])
    await commands.provider.run(commands.following.follow_commands, step, environment=environment)
    assert len(beats) >= 3


async def test_fault_6_a_timeout_ends_the_command_and_tells_what_it_wrote(commands: Commands) -> None:
    """It does not leave the process running."""
    call_id = new_call_id()
    result = await commands.run("echo partial; setsid sleep 61 & sleep 61", call_id=call_id, timeout=500)
    assert (result.status, result.stdout) == ("timed_out", "partial\n")
    assert result.duration_ms is not None
    assert result.duration_ms >= 500
    assert "timeout" in (result.hint or "")
    assert (await commands.sh("grep -l 'slee[p].61' /proc/[0-9]*/cmdline 2>/dev/null || echo none")) == "none\n"


async def test_a_command_without_a_timeout_gets_the_default_of_its_session(commands: Commands) -> None:
    step = commands.step("sleep 60").model_copy(update={"default_timeout_ms": 300})
    result = result_of(await commands.provider.run(commands.activities.run_command, step))
    assert result.status == "timed_out"


async def test_stopped_commands_are_cancelled_and_the_others_go_on(commands: Commands) -> None:
    places = [await commands.leave(f"echo {n}; sleep {n}") for n in (60, 61, 2)]
    await commands.stop(*(place.call_id for place in places[:2]))
    await commands.stop(*(place.call_id for place in places[:2]))  # may be repeated
    ended = {progress.call_id: result_of(progress) for progress in await commands.follow(places)}
    for place, output in zip(places[:2], ("60\n", "61\n"), strict=True):
        assert (ended[place.call_id].status, ended[place.call_id].stdout) == ("cancelled", output)
    (progress,) = await commands.follow(places[2:])
    assert (result_of(progress).status, result_of(progress).stdout) == ("completed", "2\n")


async def test_a_command_that_was_stopped_before_it_began_never_runs(commands: Commands) -> None:
    call_id = new_call_id()
    await commands.stop(call_id)
    result = await commands.run(f"touch ran-{call_id}", call_id=call_id)
    assert result.status == "cancelled"
    assert await commands.sh(f"ls ran-{call_id} 2>/dev/null || echo none") == "none\n"


async def test_a_stop_that_fails_for_one_command_still_ends_the_others(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [await commands.leave("sleep 60") for _ in range(3)]
    unheard = places[0].call_id

    def spoilt(call_id: str, **options: Any) -> LauncherRequest:
        order = stop_request(call_id, **options)
        return dataclasses.replace(order, command="true") if call_id == unheard else order

    monkeypatch.setattr(commands_module, "stop_request", spoilt)
    monkeypatch.setattr(commands_module, "STOPS_AT_ONCE", 1)
    with pytest.raises(ApplicationError) as failed:
        await commands.stop(*(place.call_id for place in places), grace_s=0)
    assert not failed.value.non_retryable
    assert [(await commands.read(place.call_id)).status for place in places] == ["running", "cancelled", "cancelled"]
    monkeypatch.undo()
    await commands.stop(unheard, grace_s=0)


async def test_a_stop_that_cannot_keep_a_command_from_starting_says_so(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_a_home(call_id: str, **options: Any) -> LauncherRequest:
        order = stop_request(call_id, **options)
        return dataclasses.replace(order, env={**order.env, "HOME": "/proc"})

    monkeypatch.setattr(commands_module, "stop_request", without_a_home)
    with pytest.raises(ApplicationError, match="no room") as failed:
        await commands.stop(new_call_id())
    assert not failed.value.non_retryable


async def test_fault_1_a_directory_that_is_missing_is_an_error_before_anything_runs(commands: Commands) -> None:
    """`a; b` runs neither, and the error costs no second request."""
    progress = await commands.begin("touch a; touch b", cwd="no/such/place")
    assert progress.outcome is not None
    assert progress.outcome.error is not None
    assert progress.outcome.error.code is ErrorCode.PATH_NOT_FOUND
    assert "/home/daytona/no/such/place" in progress.outcome.error.message
    assert await commands.sh("ls a b 2>/dev/null || echo none") == "none\n"


async def test_another_command_under_the_same_call_id_is_a_conflict(commands: Commands) -> None:
    call_id = new_call_id()
    await commands.run("echo first", call_id=call_id)
    progress = await commands.begin(f"touch ran-{call_id}", call_id=call_id)
    assert progress.outcome is not None
    assert progress.outcome.error is not None
    assert progress.outcome.error.code is ErrorCode.CALL_ID_CONFLICT
    assert (await commands.run("echo first", call_id=call_id)).stdout == "first\n"


@pytest.mark.parametrize(
    "arguments",
    [{}, {"command": ""}, {"command": 7}, {"command": "a\0b"}, {"command": "\ud800"}, {"command": "true", "cwd": ""}],
    ids=str,
)
async def test_arguments_that_do_not_fit_are_an_outcome(commands: Commands, arguments: dict[str, Any]) -> None:
    step = commands.step("true").model_copy(update={"arguments": {"sandbox_id": "x", **arguments}})
    progress = await commands.provider.run(commands.activities.run_command, step)
    assert progress.outcome is not None
    assert progress.outcome.error is not None
    assert progress.outcome.error.code is ErrorCode.INVALID_ARGUMENTS


@pytest.mark.storage("folder", "s3")
async def test_a_script_of_a_megabyte_comes_by_reference_and_runs(commands: Commands) -> None:
    script = "n=0\n" + "n=$((n + 1)) # padding\n" * 40_000 + "echo $n"
    call_id = new_call_id()
    arguments = {"sandbox_id": commands.ref.sandbox_id, "command": script}
    ref = await commands.provider.storage.put_json(
        commands.ref.session_id, f"calls/{call_folder(call_id)}/arguments.json", arguments
    )
    step = commands.step("", call_id).model_copy(update={"arguments": None, "arguments_ref": ref})
    for attempt in (1, 2):
        result = result_of(await commands.provider.run(commands.activities.run_command, step, attempt=attempt))
        assert (result.exit_code, result.stdout) == (0, "40000\n")
    assert await commands.sh("ls /tmp/sandhold-upload-* 2>/dev/null || echo none") == "none\n"


async def test_fault_8_bytes_that_are_no_text_are_counted_and_do_not_break_the_answer(commands: Commands) -> None:
    """NUL and invalid UTF-8."""
    result = await commands.run(r"printf 'a\000b\377c\n'; printf '\200\201' >&2")
    assert (result.stdout, result.stdout_bytes) == ("a\0b\ufffdc\n", 6)
    assert (result.stderr, result.stderr_bytes) == ("\ufffd\ufffd", 2)


@pytest.mark.storage("folder", "s3")
async def test_fault_7_much_output_is_cut_counted_and_kept_out_of_the_message(commands: Commands) -> None:
    """50 MB are not returned whole with `truncated=false`, and none of it is thrown away."""
    place = await commands.leave("seq 6000000; echo oops >&2; exit 1", output="full", limit_s=30.0)
    step = FollowCommandsStep(ref=commands.ref, commands=[place])
    (progress,) = (await commands.provider.run(commands.following.follow_commands, step)).ended
    assert (progress.status, progress.exit_code) == ("completed", 1)
    assert progress.outcome is not None
    assert progress.outcome.result is None
    result = await commands.result(progress)
    assert result.stdout_bytes == sum(9 * 10**n * (n + 2) for n in range(6)) + 5_000_001 * 8
    assert INLINE_LIMIT_BYTES < len(result.stdout) <= 64 * 1024
    assert result.truncated
    assert result.stdout.startswith("1\n2\n")
    assert result.stdout.endswith("\n6000000\n")
    assert result.stderr == "oops\n"
    assert result.output_files is not None
    assert await commands.stored(place.call_id) == b"".join(b"%d\n" % n for n in range(1, 6_000_001))
    assert await commands.stored(place.call_id, "stderr") == b"oops\n"


@pytest.mark.storage("folder", "s3")
async def test_output_that_was_seen_whole_is_stored_without_a_follower(commands: Commands) -> None:
    result = await commands.run("seq 5000; seq 300 >&2")
    assert result.truncated
    assert result.output_files is not None
    assert await commands.stored(result.call_id) == b"".join(b"%d\n" % n for n in range(1, 5001))
    assert await commands.stored(result.call_id, "stderr") == b"".join(b"%d\n" % n for n in range(1, 301))


@pytest.mark.storage("folder", "s3")
async def test_output_that_is_all_in_the_answer_costs_no_storage(commands: Commands) -> None:
    result = await commands.run("echo hi")
    assert (result.truncated, result.output_files) == (False, None)
    assert await commands.stored(result.call_id) == b""


async def test_a_command_in_the_background_is_left_to_a_follower_at_once(commands: Commands) -> None:
    progress = await commands.begin("sleep 1; echo done", background=True)
    assert progress.running is not None
    assert (progress.running.background, progress.running.bounded) == (True, False)
    result = await commands.follow_to_the_end(progress.running)
    assert (result.status, result.stdout) == ("completed", "done\n")
    assert result.output_files is not None
    assert await commands.stored(progress.call_id) == b"done\n"


async def test_a_background_command_with_a_timeout_is_ended_by_it(commands: Commands) -> None:
    place = await commands.leave("echo some; sleep 60", background=True, timeout=700)
    assert place.bounded
    assert (await commands.follow_to_the_end(place)).status == "timed_out"


async def test_a_command_that_writes_too_much_is_ended_and_told_the_cap(commands: Commands) -> None:
    place = await commands.leave("while :; do head -c 200000 /dev/zero; sleep 0.02; done", output_cap_bytes=5_000_000)
    result = await commands.follow_to_the_end(place)
    assert result.status == "cancelled"
    assert "5000000 bytes" in (result.hint or "")
    assert result.stdout_bytes > 5_000_000
    assert len(await commands.stored(place.call_id)) == min(result.stdout_bytes, 5_000_000 + BEYOND_CAP_BYTES)


async def test_a_call_that_was_cleaned_away_is_a_conflict_and_runs_no_more(provider: ProviderUnderTest) -> None:
    commands = Commands(provider, await provider.created())
    result = await commands.run("echo run >>ran")
    folder = f".sandhold/calls/{result.call_id}"
    await commands.sh(f"touch -d '2 days ago' {folder}/*")
    await commands.clean(result.call_id)
    assert (await commands.run("echo run >>ran", call_id=result.call_id)).status == "completed"
    await commands.clean()
    await commands.clean()
    progress = await commands.begin("echo run >>ran", call_id=result.call_id)
    assert progress.outcome is not None
    assert progress.outcome.error is not None
    assert progress.outcome.error.code is ErrorCode.CONFLICT
    assert await commands.sh(f"cat ran; ls {folder} 2>/dev/null || true") == "run\n"
    await provider.delete(commands.ref)
    await commands.clean()  # nothing to clean where nothing runs


async def test_fault_19_fifty_commands_at_once_end_with_their_own_results(commands: Commands) -> None:
    """None shares a shell with another."""
    results = await asyncio.gather(*(commands.run(f"sleep 1; echo {n}; exit {n}") for n in range(50)))
    assert [(result.exit_code, result.stdout) for result in results] == [(n, f"{n}\n") for n in range(50)]


async def test_one_follower_follows_many_commands_with_one_request_at_a_time(
    commands: Commands, faults: FaultPlan
) -> None:
    places = [await commands.leave(f"sleep 3.{n}; echo {n}", call_id=f"{new_call_id()}-{n}") for n in range(8)]
    await faults.forget_requests()
    rounds = 0
    left = {place.call_id: place for place in places}
    while left:
        rounds += 1
        for progress in await commands.follow(left.values()):
            assert result_of(progress).stdout == f"{progress.call_id[-1]}\n"
            del left[progress.call_id]
    assert len(await faults.requests(route=EXECUTE["route"])) <= rounds + 1


async def test_a_command_in_a_sandbox_that_was_restarted_is_interrupted_and_not_run_again(
    provider: ProviderUnderTest,
) -> None:
    commands = Commands(provider, await provider.created())
    call_id = new_call_id()
    command = "echo run >>ran; echo begun; sleep 60"
    place = await commands.leave(command, call_id=call_id)
    await provider.stop(commands.ref)
    with pytest.raises(ApplicationError) as stopped:
        await commands.follow([place])
    assert stopped.value.type == SandboxSignal.NOT_STARTED
    await commands.stop(call_id)  # nothing runs in a stopped sandbox
    await provider.start(commands.ref)

    (progress,) = await commands.follow([place])
    result = result_of(progress)
    assert (result.status, result.exit_code, result.stdout) == ("interrupted", None, "begun\n")
    assert (await commands.run(command, call_id=call_id)).status == "interrupted"
    assert await commands.sh("cat ran") == "run\n"
    await provider.delete(commands.ref)


async def test_a_sandbox_that_is_stopped_or_gone_is_told_as_such(provider: ProviderUnderTest) -> None:
    commands = Commands(provider, await provider.created())
    await commands.run("true")
    await provider.stop(commands.ref)
    with pytest.raises(ApplicationError) as stopped:
        await commands.run("true")
    assert (stopped.value.type, stopped.value.non_retryable) == (SandboxSignal.NOT_STARTED, True)
    await provider.delete(commands.ref)
    with pytest.raises(ApplicationError) as lost:
        await commands.follow([CommandPlace.model_validate({**PLACE, "call_id": new_call_id()})])
    assert lost.value.type == SandboxSignal.LOST


async def test_fault_2_every_process_killed_at_once_is_interrupted_at_once(commands: Commands) -> None:
    """As the kernel does when memory runs out: nobody waits for a timeout."""
    call_id = new_call_id()
    place = await commands.leave("sleep 60", call_id=call_id)
    following = asyncio.create_task(commands.follow([place]))
    await asyncio.sleep(0.5)
    await commands.sh("(sleep 0.2; kill -9 -1) >/dev/null 2>&1 & true")
    (progress,) = await following
    assert result_of(progress).status == "interrupted"


async def test_a_command_that_kills_everything_but_itself_is_interrupted_and_ended(commands: Commands) -> None:
    """Its owner and its watcher go too, so that nobody inside keeps its timeout."""
    call_id = new_call_id()
    place = await commands.leave(
        f"echo run >>ran-{call_id}; echo begun; sleep 2; kill -9 -1; sleep 63", call_id=call_id
    )
    (progress,) = await commands.follow([place])
    result = result_of(progress)
    assert (result.status, result.exit_code, result.stdout) == ("interrupted", None, "begun\n")
    assert result.duration_ms is None, "nobody knows when it ended"
    assert await commands.sh("grep -l 'slee[p].63' /proc/[0-9]*/cmdline 2>/dev/null || echo none") == "none\n"
    assert await commands.sh(f"cat ran-{call_id}") == "run\n"


async def test_an_answer_that_is_torn_is_asked_for_again(commands: Commands, faults: FaultPlan) -> None:
    """Such as that of a launcher that was killed: its request succeeds, with half an answer."""
    call_id = new_call_id()
    body = {"exitCode": 137, "result": "<half an answer"}
    await commands.run("true")
    await faults.add(**EXECUTE, effect="status", status=200, body=body, times=1)
    step = commands.step("echo done", call_id)
    progress, failures = await commands.provider.persist(commands.activities.run_command, step)
    assert result_of(progress).stdout == "done\n"
    (failure,) = failures
    assert (failure.type, failure.non_retryable) == (ErrorCode.PROVIDER_UNAVAILABLE, False)


async def test_a_first_attempt_leaves_time_for_its_answer(commands: Commands) -> None:
    """It says `running` before its own deadline instead of being timed out at it."""
    assert commands_module.FIRST_WAIT_S + ANSWER_MARGIN_S < 9.0
    progress = await commands.begin("sleep 60", limit_s=1.5)
    assert progress.running is not None
    await commands.stop(progress.call_id, grace_s=0)


PLACE = {"output": "auto", "started_at": "2026-01-01T00:00:00Z"}
