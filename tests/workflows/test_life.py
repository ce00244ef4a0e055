"""Every transition of a sandbox's life, driven through the client against the real server."""

from __future__ import annotations

import asyncio

from sandhold.contracts.errors import ErrorCode
from tests.stack import Stack
from tests.workflows.calls import call_ok, creates, error_of_call, exec_ok
from tests.workflows.waiting import eventually


async def test_a_created_sandbox_is_started_and_known_by_its_derived_id(stack: Stack) -> None:
    session = await stack.open()
    result = await call_ok(session, "daytona_create_sandbox", {"title": "My first Build!"})
    assert result["sandbox_id"] == "my-first-build"
    assert result["workspace_path"] == "/home/daytona"
    status = await stack.status(session, "my-first-build")
    assert (status.state, status.generation, status.running_calls) == ("started", 1, 0)
    [held] = await stack.provider_sandboxes(session)
    assert (held.id, held.name) == (status.provider_id, status.provider_name)
    await session.end()
    assert await stack.provider_sandboxes(session) == []


async def test_commands_and_files_work_inside(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    written = await call_ok(
        session, "daytona_write_file", {"sandbox_id": box, "path": "a/b.txt", "content": "one\ntwo\n"}
    )
    assert written["bytes"] == 8
    read = await call_ok(session, "daytona_read_file", {"sandbox_id": box, "path": "a/b.txt"})
    assert (read["content"], read["total_lines"]) == ("one\ntwo\n", 2)
    ran = await exec_ok(session, box, "wc -l < a/b.txt; echo oops >&2; exit 3", output="normal")
    assert (ran["status"], ran["exit_code"], ran["stdout"].strip(), ran["stderr"].strip()) == (
        "completed",
        3,
        "2",
        "oops",
    )
    await session.end()


async def test_stop_start_archive_and_delete_each_do_what_they_say_and_may_be_repeated(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await exec_ok(session, box, "echo kept > file")
    for action, state in [
        ("stop", "stopped"),
        ("stop", "stopped"),
        ("start", "started"),
        ("start", "started"),
        ("archive", "archived"),
        ("archive", "archived"),
        ("stop", "archived"),
        ("start", "started"),
        ("stop", "stopped"),
        ("archive", "archived"),
    ]:
        result = await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": action})
        assert result == {"sandbox_id": box, "action": action, "state": state}
    assert (await exec_ok(session, box, "cat file"))["stdout"].strip() == "kept"
    result = await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "delete"})
    assert result == {"sandbox_id": box, "action": "delete", "state": "deleted"}
    assert await stack.provider_sandboxes(session) == []
    again = await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "delete"})
    assert again == {"sandbox_id": box, "action": "delete", "state": "deleted"}
    await session.end()


async def test_a_call_on_a_stopped_sandbox_starts_it_and_finds_its_files(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await exec_ok(session, box, "echo kept > file")
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"})
    assert (await exec_ok(session, box, "cat file"))["stdout"].strip() == "kept"
    assert (await stack.status(session, box)).state == "started"
    await session.end()


async def test_twenty_calls_that_meet_a_stopped_sandbox_start_it_once(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"})
    await stack.faults.forget_requests()
    ran = await asyncio.gather(*(exec_ok(session, box, f"echo {number}", output="normal") for number in range(20)))
    assert [result["stdout"].strip() for result in ran] == [str(number) for number in range(20)]
    starts = await stack.faults.requests(method="POST", route="/api/sandbox/{id}/start")
    assert len(starts) == 1
    await session.end()


async def test_two_sandboxes_work_in_parallel_and_do_not_see_each_other(stack: Stack) -> None:
    session = await stack.open()
    one, two = await asyncio.gather(creates(session, sandbox_id="one"), creates(session, sandbox_id="two"))
    await asyncio.gather(exec_ok(session, one, "echo 1 > mine"), exec_ok(session, two, "echo 2 > mine"))
    told = await asyncio.gather(exec_ok(session, one, "cat mine"), exec_ok(session, two, "cat mine"))
    assert [result["stdout"].strip() for result in told] == ["1", "2"]
    outcome = await session.end()
    assert {row.sandbox_id: row.outcome for row in outcome.sandboxes} == {"one": "deleted", "two": "deleted"}


async def test_an_id_can_be_used_again_after_its_sandbox_was_deleted_and_the_new_one_is_empty(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session, sandbox_id="build")
    await exec_ok(session, box, "touch old")
    conflict = await error_of_call(session, "daytona_create_sandbox", {"sandbox_id": "build"})
    assert conflict.code is ErrorCode.CONFLICT
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "delete"})

    async def created_again() -> str | None:
        envelope = await session.call("daytona_create_sandbox", {"sandbox_id": "build"})
        return None if envelope.error else envelope.sandbox_id

    await eventually(created_again, lambda made: made == "build", "a second generation")
    status = await stack.status(session, "build")
    assert status.generation == 2
    assert status.provider_name is not None
    assert status.provider_name.endswith("-g2")
    assert (await exec_ok(session, box, "ls", output="normal"))["stdout"].strip() == ""
    await session.end()


async def test_the_quota_counts_open_sandboxes_only(stack: Stack) -> None:
    session = await stack.open(max_sandboxes=1)
    box = await creates(session)
    error = await error_of_call(session, "daytona_create_sandbox", {})
    assert error.code is ErrorCode.QUOTA_EXCEEDED
    assert box in (error.hint or "")
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "delete"})

    async def second() -> bool:
        return bool((await session.call("daytona_create_sandbox", {})).ok)

    await eventually(second, bool, "room for another sandbox")
    await session.end()


async def test_a_repeated_call_id_gets_the_first_answer_and_runs_nothing(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)
    arguments = {"sandbox_id": box, "command": "echo x >> count; wc -l < count", "output": "normal"}
    first = await session.call("daytona_exec", arguments, call_id="toolu_1")
    again = await session.call("daytona_exec", arguments, call_id="toolu_1")
    assert first.result == again.result
    assert (await exec_ok(session, box, "wc -l < count", output="normal"))["stdout"].strip() == "1"
    other = await session.call("daytona_exec", {**arguments, "command": "echo other"}, call_id="toolu_1")
    assert other.error is not None
    assert other.error.code is ErrorCode.CALL_ID_CONFLICT
    await session.end()


async def test_submitted_calls_are_carried_out_once_and_read_by_result(stack: Stack) -> None:
    session = await stack.open()
    await session.submit("daytona_create_sandbox", {"sandbox_id": "box"}, call_id="sub-1")

    async def result_of(call_id: str) -> bool | None:
        envelope = await session.result(call_id)
        return envelope.ok if envelope else None

    await eventually(lambda: result_of("sub-1"), bool, "the submitted create's result")
    for _ in range(2):
        await session.submit("daytona_exec", {"sandbox_id": "box", "command": "echo x >> count"}, call_id="sub-2")
    await eventually(lambda: result_of("sub-2"), bool, "the submitted command's result")
    assert (await exec_ok(session, "box", "wc -l < count", output="normal"))["stdout"].strip() == "1"
    await session.submit("daytona_exec", {"sandbox_id": "nobody", "command": "true"}, call_id="sub-3")
    await eventually(lambda: result_of("sub-3"), lambda ok: ok is False, "the refusal of a submitted call")
    refused = await session.result("sub-3")
    assert refused is not None
    assert refused.error is not None
    assert (refused.error.code, refused.error.sandbox_ids) == (ErrorCode.SANDBOX_NOT_FOUND, ["box"])
    await session.end()
