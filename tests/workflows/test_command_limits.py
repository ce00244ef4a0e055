"""How many commands a sandbox runs at once, and that so many fit into every message on the way."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from activities.following import MOST_ANSWER_BYTES
from activities.launcher import Position, clean_request, follow_request
from sandhold.contracts.base import Message
from sandhold.contracts.calls import LEDGER_RESULT_LIMIT_BYTES, MESSAGE_LIMIT_BYTES, CallOutcome, CallRequest
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.names import SUBMIT_SIGNAL, sandbox_workflow_id
from sandhold.contracts.policy import Policy
from sandhold.contracts.sandboxes import CommandRecord, LedgerEntry, SandboxCarried, SandboxStart, SandboxState
from sandhold.contracts.steps import (
    CommandPlace,
    CommandProgress,
    FollowCommandsResult,
    FollowCommandsStep,
    SandboxRef,
    StoredOutput,
    TellInterruptedResult,
    TellInterruptedStep,
)
from sandhold.contracts.tools import CreateSandboxArguments
from sandhold.temporal import PLAIN_CONVERTER
from tests.stack import Stack
from tests.workflows.calls import call_ok, creates
from tests.workflows.commands import command, rows
from tests.workflows.waiting import eventually
from workflows.commands import RECORDS_LIMIT
from workflows.exec_calls import COMMANDS_LIMIT
from workflows.interruptions import TOLD_AT_ONCE
from workflows.ledger import (
    CARRIED_LIMIT_BYTES,
    LEDGER_LIMIT,
    RUNNING_LIMIT,
    RUNNING_LIMIT_BYTES,
    without_surplus,
)

ARGUMENT_LIMIT_BYTES = 128 * 1024
"""Of one string of argv: MAX_ARG_STRLEN of Linux."""
SERVER_LIMIT_BYTES = 2 * 1024 * 1024
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
REF = SandboxRef(session_id="s" * 63, sandbox_id="b" * 63, owner="o" * 128, generation=99, provider_id="p" * 36)
LARGEST = CallOutcome(result="x" * (LEDGER_RESULT_LIMIT_BYTES - 2))


def longest_id(number: int, of: str = "c") -> str:
    """A call id of 128 characters; one that begins with a dot has a folder that is longer by two."""
    return f".{of}{number:0126d}"


def place(number: int) -> CommandPlace:
    return CommandPlace(
        call_id=longest_id(number),
        output="verbose",
        started_at=NOW,
        background=True,
        cancelled="cancelled",
        stored=StoredOutput(stdout_bytes=2**40, stderr_bytes=2**40),
        unsure=True,
        cap_bytes=2**40,
    )


PLACES = [place(number) for number in range(COMMANDS_LIMIT)]


def size_of(message: Message) -> int:
    """As it travels."""
    [payload] = PLAIN_CONVERTER.payload_converter.to_payloads([message])
    return len(payload.data)


def test_a_follower_can_be_told_of_all_commands_and_tell_of_them() -> None:
    assert size_of(FollowCommandsStep(ref=REF, commands=PLACES)) < MESSAGE_LIMIT_BYTES
    told = FollowCommandsResult(stored={place.call_id: place.stored for place in PLACES})
    assert size_of(told) < MESSAGE_LIMIT_BYTES


def test_a_request_about_all_commands_fits_into_one_argument() -> None:
    known = [Position(place.call_id, 2**40, 2**40) for place in PLACES]
    followed = follow_request(known, wait_s=8.0, budget_bytes=MOST_ANSWER_BYTES)
    cleaned = clean_request([place.call_id for place in PLACES])
    for order in (followed, cleaned):
        assert len(order.command.encode()) < ARGUMENT_LIMIT_BYTES / 2


def test_the_outcomes_of_interrupted_commands_fit_into_one_message() -> None:
    assert size_of(TellInterruptedStep(ref=REF, commands=PLACES[:TOLD_AT_ONCE])) < MESSAGE_LIMIT_BYTES
    ended = [
        CommandProgress(call_id=place.call_id, outcome=LARGEST, status="interrupted") for place in PLACES[:TOLD_AT_ONCE]
    ]
    assert size_of(TellInterruptedResult(ended=ended)) < MESSAGE_LIMIT_BYTES


def next_run(carried: SandboxCarried) -> SandboxStart:
    return SandboxStart(
        session_id=REF.session_id,
        sandbox_id=REF.sandbox_id,
        owner=REF.owner,
        generation=REF.generation,
        policy=Policy(),
        created_at=NOW,
        arguments=CreateSandboxArguments(),
        idle_stop_s=300.0,
        carried=carried,
    )


def carried(ledger: list[LedgerEntry], *, ended_commands: int) -> SandboxCarried:
    ended = [
        CommandRecord(
            place=place(COMMANDS_LIMIT + number),
            read_at=NOW,
            fingerprint="f" * 64,
            ended_at=NOW,
            outcome=LARGEST,
            status="completed",
            exit_code=0,
        )
        for number in range(ended_commands)
    ]
    running = [CommandRecord(place=place, read_at=NOW, fingerprint="f" * 64) for place in PLACES]
    return SandboxCarried(state=SandboxState.STARTED, last_used_at=NOW, ledger=ledger, commands=[*ended, *running])


def running_call(call_id: str, **request: Any) -> LedgerEntry:
    asked = CallRequest(call_id=call_id, tool="daytona_exec", sandbox_id=REF.sandbox_id, **request)
    return LedgerEntry(call_id=call_id, tool="daytona_exec", fingerprint="f" * 64, asked_at=NOW, request=asked)


def ended_call(number: int) -> LedgerEntry:
    return LedgerEntry(
        call_id=longest_id(number, "e"), tool="daytona_exec", fingerprint="f" * 64, asked_at=NOW, outcome=LARGEST
    )


def test_all_commands_and_their_calls_go_along_to_the_next_run() -> None:
    followed = [running_call(place.call_id) for place in PLACES]
    start = next_run(carried(followed, ended_commands=RECORDS_LIMIT))
    assert size_of(start) < 1024 * 1024


def test_what_goes_along_to_the_next_run_is_bounded_by_leaving_out_the_oldest_calls_that_have_ended() -> None:
    """The worst that there can be: as many running calls as may be, with as many arguments, and large results."""
    share = RUNNING_LIMIT_BYTES // RUNNING_LIMIT - 16
    running = [running_call(longest_id(number), arguments={"command": "x" * share}) for number in range(RUNNING_LIMIT)]
    ended = [ended_call(number) for number in range(LEDGER_LIMIT - RUNNING_LIMIT)]
    worst = carried([*ended, *running], ended_commands=RECORDS_LIMIT)
    assert size_of(worst) > CARRIED_LIMIT_BYTES, "else this shows nothing"
    bounded = without_surplus(worst)
    assert size_of(bounded) <= CARRIED_LIMIT_BYTES
    assert size_of(next_run(bounded)) < SERVER_LIMIT_BYTES
    assert bounded.commands == worst.commands
    left = bounded.ledger[:-RUNNING_LIMIT]
    assert bounded.ledger[-RUNNING_LIMIT:] == running
    assert 0 < len(left) < len(ended)
    assert left == ended[-len(left) :]
    few = carried([ended_call(1), running_call("c")], ended_commands=1)
    assert without_surplus(few) == few


async def test_a_command_that_took_long_stays_on_record_behind_those_that_ended_before_it(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    build = await session.start(box, "until [ -e go ]; do sleep 0.1; done; echo built; exit 7", call_id="build")

    async def short_commands(first: int, count: int) -> None:
        for number in range(first, first + count, 10):
            ids = [f"short-{each}" for each in range(number, min(number + 10, first + count))]
            await asyncio.gather(*(session.exec(box, "true", call_id=call_id) for call_id in ids))

    async def on_record() -> list[str]:
        return [row.call_id for row in await rows(session, box)]

    await short_commands(0, RECORDS_LIMIT + 2)
    await session.write_file(box, "go", "")
    assert (await build.wait()).exit_code == 7
    await short_commands(RECORDS_LIMIT + 2, RECORDS_LIMIT - 1)
    assert (await build.wait()).exit_code == 7
    waited = await command(session, box, "wait", "build")
    assert (waited["status"], waited["exit_code"], waited["stdout"]) == ("completed", 7, "built\n")
    listed = await on_record()
    assert len(listed) == RECORDS_LIMIT
    assert listed[-1] == "build", "they are still listed by their starts"
    await short_commands(2 * RECORDS_LIMIT + 1, 1)
    assert "build" not in await on_record()
    await session.end()


async def test_a_command_beyond_the_limit_is_refused_and_the_others_go_on(stack: Stack) -> None:
    session = await stack.open(lifecycle_timeout_s=120.0)
    box = await creates(session)
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"})
    # They count from their admission on, and while the sandbox cannot be started they cost nothing.
    await stack.faults.add(method="POST", route="/api/sandbox/{id}/start", effect="status", status=503)
    handle = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, box))

    async def submit(number: int) -> None:
        asked = CallRequest(
            call_id=f"c-{number}", tool="daytona_exec", arguments={"sandbox_id": box, "command": "touch ran"}
        )
        await handle.signal(SUBMIT_SIGNAL, asked)

    await asyncio.gather(*(submit(number) for number in range(COMMANDS_LIMIT)))

    async def running() -> int:
        return (await stack.status(session, box)).running_calls

    await eventually(running, lambda count: count == COMMANDS_LIMIT, "the commands")
    touch = {"sandbox_id": box, "command": "touch ran"}
    for call_id, wait in (("updated", True), ("submitted", False)):
        refused = await session.call("daytona_exec", touch, call_id=call_id, wait=wait)
        error = refused.error
        assert error is not None
        assert (error.code, error.retryable, error.ambiguous) == (ErrorCode.QUOTA_EXCEEDED, True, False)
        assert "daytona_command" in (error.hint or "")
    await submit(7)  # A call that is known is not another command.
    listed = await rows(session, box)
    assert {row.call_id for row in listed} == {f"c-{number}" for number in range(COMMANDS_LIMIT)}
    for number in range(3):
        cancel = {"sandbox_id": box, "action": "cancel", "call_id": f"c-{number}"}
        await call_ok(session, "daytona_command", cancel)
    updated = asyncio.create_task(session.call("daytona_exec", touch, call_id="updated"))
    for call_id in ("submitted", "late"):
        again = await session.call("daytona_exec", touch, call_id=call_id, wait=False)
        assert again.status == "running", f"there is room again for {call_id}"
    await stack.faults.clear()
    assert (await updated).ok
    await session.end()
