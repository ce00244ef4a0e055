"""Commands as a client sees them: their output byte for byte, at any time, whatever has become of the sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sandhold.client import Sandhold, Session, TemporalRefused
from sandhold.client.commands import INPUT_BYTES, Command, Stream
from sandhold.client.reading import ReadingTold
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import Activity, sandbox_workflow_id
from sandhold.contracts.sandboxes import CommandState
from sandhold.contracts.tools import OutputFiles
from tests.local_daytona_server import API_KEY
from tests.stack import Stack
from tests.workflows.waiting import eventually

pytestmark = pytest.mark.storage("folder", "s3")

ANY_BYTES = r"printf 'a\000b\377\033[31mred\r\n'; printf '\200err\000' >&2"
ANY_OUT, ANY_ERR = b"a\0b\xff\x1b[31mred\r\n", b"\x80err\0"
FOR_EVER = "echo begun; sleep 4321"


@pytest.fixture(scope="module")
async def session(module_stack: Stack) -> AsyncIterator[Session]:
    """A session with one started sandbox, `box`."""
    session = await module_stack.open()
    await session.create_sandbox(sandbox_id="box")
    yield session
    await session.end()


async def output_of(command: Command, **options: Any) -> dict[Stream, bytes]:
    """Both streams as they came; each chunk begins where the one before has ended."""
    came: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
    begin: dict[Stream, int] = {
        "stdout": options.get("stdout_offset", 0),
        "stderr": options.get("stderr_offset", 0),
    }
    async for chunk in command.output(**options):
        assert chunk.offset == begin[chunk.stream]
        begin[chunk.stream] = chunk.end
        came[chunk.stream] += chunk.data
    return came


async def begun(command: Command) -> None:
    """The first line of FOR_EVER can be read."""
    await eventually(
        lambda: output_of(command, follow=False), lambda came: came["stdout"] == b"begun\n", "the first line"
    )


async def refused(waiting: Any) -> ToolFailure:
    with pytest.raises(ToolFailure) as failure:
        await waiting
    return failure.value


async def test_output_comes_while_the_command_runs_and_from_any_offset_later(session: Session) -> None:
    command = await session.start(
        "box", "echo one; echo err >&2; until [ -e go ]; do sleep 0.1; done; echo two; exit 5"
    )
    output = command.output()
    first = {(await anext(output)).data, (await anext(output)).data}
    assert first == {b"one\n", b"err\n"}
    assert (await command.state()).status == "running"
    await session.write_file("box", "go", "")
    assert [chunk.data async for chunk in output] == [b"two\n"]
    assert (await command.wait()).exit_code == 5
    assert await output_of(command, stdout_offset=4, stderr_offset=4) == {"stdout": b"two\n", "stderr": b""}


async def test_bytes_of_any_value_come_unchanged_from_short_and_from_long_commands(session: Session) -> None:
    await session.exec("box", ANY_BYTES, call_id="any-short")
    long = await session.start("box", f"{ANY_BYTES}; sleep 1; {ANY_BYTES}")
    short = await output_of(session.command("box", "any-short"))
    assert short == {"stdout": ANY_OUT, "stderr": ANY_ERR}
    assert await output_of(long) == {"stdout": ANY_OUT * 2, "stderr": ANY_ERR * 2}
    late = await output_of(session.command("box", "any-short"), stdout_offset=3)
    assert late == {"stdout": ANY_OUT[3:], "stderr": ANY_ERR}


async def test_secrets_come_from_no_offset_of_short_and_of_long_commands(session: Session) -> None:
    shown = b"a [redacted:SANDHOLD_DAYTONA_API_KEY] b\n"
    script = f"printf 'a {API_KEY[:5]}'; sleep $0; printf '{API_KEY[5:]} b\\n'"
    short = await session.exec("box", script.replace("$0", "0"))
    long = await session.start("box", script.replace("$0", "1.5"))
    for command in (session.command("box", short.call_id), long):
        assert await output_of(command) == {"stdout": shown, "stderr": b""}
        end = len(API_KEY) + 2
        for offset in range(end + 2):
            chunks = [chunk async for chunk in command.output(offset)]
            inside = 2 < offset < end
            begin = end if inside else offset
            assert [(chunk.offset, chunk.end) for chunk in chunks] == [(begin, len(API_KEY) + 5)]
            assert chunks[0].data == (b" b\n"[begin - end :] if begin >= end else shown[begin:])
    assert (await long.wait()).redactions == short.redactions == 1


@pytest.mark.storage("folder")
async def test_a_command_is_known_from_the_moment_its_call_is(session: Session) -> None:
    running = asyncio.create_task(session.exec("box", "sleep 2; echo end", call_id="in-front"))
    await eventually(lambda: session.result("in-front", "box"), lambda known: known is not None, "the call")
    command = session.command("box", "in-front")
    assert await output_of(command) == {"stdout": b"end\n", "stderr": b""}
    assert (await command.wait()) == await running


async def test_an_unknown_command_is_refused_and_so_is_a_call_that_is_none(session: Session) -> None:
    await session.write_file("box", "x", "x", call_id="no-command")
    for call_id in ("never-was", "no-command"):
        command = session.command("box", call_id)
        for asked in (command.state(), output_of(command), command.wait(), command.cancel()):
            failure = await refused(asked)
            assert failure.error.code is ErrorCode.INVALID_ARGUMENTS
            assert call_id in failure.error.message


async def test_no_sandbox_and_no_session_are_told_as_such(session: Session, stack: Stack) -> None:
    nobody = await refused(output_of(session.command("nobody", "c")))
    assert nobody.error.code is ErrorCode.SANDBOX_NOT_FOUND
    nowhere = await refused(stack.sandhold.session("never-was").command("box", "c").wait())
    assert nowhere.error.code is ErrorCode.SESSION_NOT_FOUND


async def test_input_is_written_once_per_call_id_and_signals_arrive(session: Session) -> None:
    # A read that a signal interrupts fails (dash).
    script = "trap 'echo caught' USR1; until [ \"$line\" = end ]; do read -r line && echo $line; done; cat"
    command = await session.start("box", script, stdin=True)
    for _ in range(2):
        await command.write(b"hi\n", call_id=f"{command.call_id}.in-1")
    await eventually(lambda: output_of(command, follow=False), lambda came: came["stdout"] == b"hi\n", "the line")
    await command.signal("USR1")
    await command.write(b"end\n")
    await command.write(b"", close=True)
    assert (await command.wait()).status == "completed"
    assert await output_of(command) == {"stdout": b"hi\ncaught\nend\n", "stderr": b""}
    late = await refused(command.write(b"late"))
    assert late.error.code is ErrorCode.CONFLICT
    much = await refused(command.write(b"x" * (INPUT_BYTES + 1)))
    assert much.error.code is ErrorCode.INVALID_ARGUMENTS


async def test_as_much_input_as_one_write_takes_arrives_whole(session: Session) -> None:
    data = bytes(range(256)) * (INPUT_BYTES // 256)
    command = await session.start("box", "cat", stdin=True)
    await command.write(data, close=True)
    assert (await output_of(command))["stdout"] == data


async def test_a_cancelled_command_keeps_its_output(session: Session) -> None:
    command = await session.start("box", FOR_EVER)
    await begun(command)
    assert (await command.cancel()).status == "cancelled"
    assert (await command.cancel()).status == "cancelled"
    assert (await command.wait()).status == "cancelled"
    assert (await output_of(command))["stdout"] == b"begun\n"


async def test_output_stays_readable_when_the_sandbox_stops_and_when_the_session_ends(stack: Stack) -> None:
    session = await stack.open()
    await session.create_sandbox(sandbox_id="box")
    await session.exec("box", "echo short", call_id="short")
    command = await session.start("box", FOR_EVER)
    await begun(command)
    following = asyncio.create_task(output_of(command))
    await session.manage_sandbox("box", "stop")
    assert (await following)["stdout"] == b"begun\n"
    assert (await command.wait()).status in {"cancelled", "interrupted"}
    await session.end()
    for ended, text in ((command, b"begun\n"), (session.command("box", "short"), b"short\n")):
        assert (await output_of(ended))["stdout"] == text
        assert (await ended.wait()).status != "running"


async def test_a_command_whose_workflow_was_terminated_is_interrupted_and_keeps_its_output(stack: Stack) -> None:
    session = await stack.open()
    await session.create_sandbox(sandbox_id="box")
    command = await session.start("box", FOR_EVER)
    await begun(command)
    following, waiting = asyncio.create_task(output_of(command)), asyncio.create_task(refused(command.wait()))
    handle = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, "box"))
    await handle.terminate("an operator")
    assert (await following)["stdout"] == b"begun\n"
    assert (await waiting).error.code in {
        ErrorCode.INTERRUPTED,
        ErrorCode.SANDBOX_LOST,
        ErrorCode.SANDBOX_NOT_FOUND,
        ErrorCode.INVALID_ARGUMENTS,
    }
    await session.end()
    assert (await output_of(command))["stdout"] == b"begun\n"


async def test_output_in_another_storage_is_not_taken_for_none(session: Session, stack: Stack, tmp_path: Path) -> None:
    command = await session.start("box", "sleep 1; echo there")
    await command.wait()
    elsewhere = stack.settings.model_copy(update={"storage_url": (tmp_path / "storage").as_uri()})
    split = Sandhold(stack.temporal, elsewhere).session(session.session_id).command("box", command.call_id)
    failure = await refused(output_of(split))
    assert "different storages" in failure.error.message


@pytest.mark.storage("folder")
async def test_following_the_output_of_a_command_counts_as_use_of_its_sandbox_until_it_is_left(stack: Stack) -> None:
    session = await stack.open(idle_stop_s=1.0, background_use_s=5.0)
    await session.create_sandbox(sandbox_id="box")
    command = await session.start("box", FOR_EVER)
    following = asyncio.create_task(output_of(command))
    await asyncio.sleep(10)
    assert (await stack.status(session, "box")).state == "started"
    told = await reads_of(stack, session)
    assert 2 <= told <= 7, "at most one in a third of the time that a read counts"
    following.cancel()
    await eventually(lambda: stack.status(session, "box"), lambda seen: seen.state == "stopped", "the idle stop")
    assert await reads_of(stack, session) <= told + 1


@pytest.mark.storage("folder")
async def test_reading_now_and_then_is_told_no_oftener_than_following(stack: Stack) -> None:
    session = await stack.open(background_use_s=6.0)
    await session.create_sandbox(sandbox_id="box")
    command = await session.start("box", FOR_EVER)
    bounded = await session.start("box", FOR_EVER, timeout_ms=60_000)
    until = asyncio.get_running_loop().time() + 5
    while asyncio.get_running_loop().time() < until:
        await output_of(command, follow=False)
        await output_of(bounded, follow=False)
        await asyncio.sleep(0.2)
    assert 1 <= await reads_of(stack, session) <= 3


async def test_a_sandbox_that_cannot_be_told_of_a_reading_ends_no_reading(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = 0

    async def refused_call(*_: object, **__: object) -> None:
        nonlocal refusals
        refusals += 1
        raise TemporalRefused("no permission")

    monkeypatch.setattr(Session, "call", refused_call)
    state = CommandState(
        call_id="c",
        status="running",
        background=True,
        started_at=datetime.now(UTC),
        output_files=OutputFiles(stdout="out", stderr="err"),
        use_ends_at=datetime.now(UTC),
        use_s=0.3,
    )
    reading = ReadingTold(session, "box", "c")
    for _ in range(3):
        await reading.tell(state)
    assert refusals == 1
    await asyncio.sleep(0.15)
    await reading.tell(state)
    assert refusals == 2


async def reads_of(stack: Stack, session: Session) -> int:
    """How often the sandbox's workflow had output read."""
    workflow = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, "box"))
    return len(
        [
            event
            async for event in workflow.fetch_history_events()
            if event.activity_task_scheduled_event_attributes.activity_type.name == Activity.READ_OUTPUT
        ]
    )
