"""The main scenarios, run on the real stack to be recorded and replayed for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sandhold.client import Session
from sandhold.contracts.names import sandbox_workflow_id, session_workflow_id
from tests.stack import Stack
from tests.workflows.calls import call_ok, creates, error_of_call, exec_ok
from tests.workflows.commands import begins, command, rows
from tests.workflows.waiting import eventually

Scenario = Callable[[Stack], Awaitable[Session]]


async def working_day(stack: Stack) -> Session:
    """Files, commands, an idle stop, the start that the next call makes, archive, delete, a second generation."""
    session = await stack.open(idle_stop_s=1.0, archive_after_s=1.0)
    box = await creates(session, title="build")
    await call_ok(session, "daytona_write_file", {"sandbox_id": box, "path": "a", "content": "one\n"})
    await call_ok(session, "daytona_read_file", {"sandbox_id": box, "path": "a"})
    await exec_ok(session, box, "cat a")
    await eventually(lambda: stack.status(session, box), lambda seen: seen.state == "archived", "stop and archive")
    await exec_ok(session, box, "cat a")
    await call_ok(session, "daytona_list_sandboxes", {})
    await error_of_call(session, "daytona_exec", {"sandbox_id": box, "command": ""})
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "delete"})

    async def created_again() -> bool:
        return bool((await session.call("daytona_create_sandbox", {"sandbox_id": box})).ok)

    await eventually(created_again, bool, "a second generation")
    await session.end()
    return session


async def long_command(stack: Stack) -> Session:
    """Two commands that outlast their first request, followed to the end; one more cancelled by the end."""
    session = await stack.open(end_grace_s=0.2)
    box = await creates(session)
    await asyncio.gather(*(exec_ok(session, box, f"sleep {seconds}; echo done") for seconds in (9, 10)))
    running = asyncio.create_task(session.call("daytona_exec", {"sandbox_id": box, "command": "sleep 60"}))
    await asyncio.sleep(9.5)
    await session.end()
    await running
    return session


async def downloads(stack: Stack) -> Session:
    """A workspace saved from a stopped sandbox, one that cannot be saved, and one that the sandbox's stop ends."""
    session = await stack.open()
    box = await creates(session, sandbox_id="box")
    await exec_ok(session, box, "echo one >a")
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"})
    await call_ok(session, "daytona_download_workspace", {"sandbox_id": box})
    await error_of_call(session, "daytona_download_workspace", {"sandbox_id": box, "sandbox_path": "nowhere"})
    await stack.faults.add(method="POST", route="/toolbox/{id}/files/bulk-download", effect="delay", seconds=60.0)
    endless = asyncio.create_task(session.call("daytona_download_workspace", {"sandbox_id": box, "format": "archive"}))
    await asyncio.sleep(10.0)
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"})
    await endless
    await session.end()
    return session


async def many_calls(stack: Stack) -> Session:
    """Enough calls for a continue-as-new."""
    session = await stack.open()
    box = await creates(session)
    for _ in range(60):
        await asyncio.gather(*(exec_ok(session, box, "true") for _ in range(6)))
        if (await stack.status(session, box)).runs >= 2:
            break
    assert (await stack.status(session, box)).runs >= 2
    await session.end()
    return session


async def faulty_provider(stack: Stack) -> Session:
    """A lost create answer, a create that fails, a sandbox that is lost, a command without an answer."""
    session = await stack.open()
    await stack.faults.add(method="POST", route="/api/sandbox", effect="answer_lost", times=1)
    box = await creates(session, sandbox_id="box")
    await stack.faults.add(method="POST", route="/toolbox/{id}/process/execute", effect="answer_lost", times=1)
    await exec_ok(session, box, "true")
    await stack.faults.add(method="POST", route="/api/sandbox", effect="start_error", times=1)
    await error_of_call(session, "daytona_create_sandbox", {"sandbox_id": "broken"})
    [held] = [held for held in await stack.provider_sandboxes(session) if str(held.state.value) == "started"]
    await held.delete()
    await error_of_call(session, "daytona_exec", {"sandbox_id": "box", "command": "true"})
    await session.end()
    return session


async def cancelled(stack: Stack) -> Session:
    """A session that an operator cancelled, with a sandbox whose workflow was terminated before."""
    session = await stack.open()
    for box in ("one", "two"):
        await creates(session, sandbox_id=box)
    await stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, "one")).terminate("by hand")
    handle = stack.temporal.get_workflow_handle(session_workflow_id(session.session_id))
    await asyncio.sleep(0.5)
    await handle.cancel()
    await handle.result()
    return session


async def submitted(stack: Stack) -> Session:
    """A runtime that only signals."""
    session = await stack.open()

    async def submit(call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        await session.submit(tool, arguments, call_id=call_id)

        async def answered() -> bool:
            envelope = await session.result(call_id)
            return envelope is not None and envelope.status == "done"

        await eventually(answered, bool, f"the answer to {call_id}")

    await submit("one", "daytona_create_sandbox", {"sandbox_id": "box"})
    await submit("two", "daytona_exec", {"sandbox_id": "box", "command": "true"})
    await submit("three", "daytona_exec", {"sandbox_id": "nobody", "command": "true"})
    await session.end()
    return session


async def unsure_commands(stack: Stack) -> Session:
    """Two commands whose requests are given up: one that began and is followed, one that did not and never will."""
    session = await stack.open()
    box = await creates(session)
    refused = {"effect": "status", "status": 401, "body": {"statusCode": 401, "message": "Unauthorized"}}
    execute = {"method": "POST", "route": "/toolbox/{id}/process/execute"}
    for effect, skipped in (("answer_lost", 1), ("reset_before", 0)):
        await stack.faults.add(**execute, effect=effect, times=1)
        await stack.faults.add(**execute, **refused, skip=skipped, times=1)
        asked = {"sandbox_id": box, "command": "sleep 1", "background": True}
        await session.call("daytona_exec", asked, call_id=effect)
        await command(session, box, "wait", effect)
    await session.end()
    return session


async def early_and_interrupted_commands(stack: Stack) -> Session:
    """Commands that are asked about and cancelled before they are on record; one that ends with its sandbox."""
    session = await stack.open()
    box = await creates(session)
    running = begins(session, box, "early", "sleep 60")
    await eventually(lambda: rows(session, box), bool, "the command in the list")
    waiting = asyncio.create_task(command(session, box, "wait", "early", wait_ms=2000))
    await asyncio.sleep(0.5)
    await command(session, box, "cancel", "early")
    await asyncio.gather(running, waiting)
    await begins(session, box, "interrupted", "echo x; sleep 60", background=True)
    await command(session, box, "read", "interrupted", wait_ms=5000)
    [held] = await stack.provider_sandboxes(session)
    await held.stop()
    await eventually(lambda: stack.status(session, box), lambda seen: seen.state == "stopped", "that it was noticed")
    start = {"method": "POST", "route": "/api/sandbox/{id}/start"}
    await stack.faults.add(**start, effect="start_delay", seconds=2.0, times=1)
    called_off = begins(session, box, "called-off", "true")
    await eventually(lambda: stack.status(session, box), lambda seen: seen.state == "starting", "the start")
    await command(session, box, "cancel", "called-off")
    await called_off
    await session.end()
    return session


async def kept_work(stack: Stack) -> Session:
    """Sandboxes that are filled, pushed into, and saved before their deletion, a stopped and a lost one among them."""
    session = await stack.open(on_end="download")
    await session.files.write("data/in", b"1\n")
    upload = [{"session_path": "data", "sandbox_path": "data"}, {"session_path": "none", "sandbox_path": "none"}]
    box = await creates(session, sandbox_id="box", upload_files=upload)
    await exec_ok(session, box, "cat data/in >work")
    await session.push_files(box, [("data/in", "more")])
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "delete"})
    restore: dict[str, Any] = {"session_path": "/workspaces/box-g1.tar.zst"}
    await creates(session, sandbox_id="again", restore_from=restore)
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": "again", "action": "stop"})
    await creates(session, sandbox_id="lost")
    [held] = [held for held in await stack.provider_sandboxes(session) if held.labels["sandhold-sandbox"] == "lost"]
    await held.delete()
    await error_of_call(session, "daytona_exec", {"sandbox_id": "lost", "command": "true"})
    await stack.faults.add(path=r"/toolbox/[^/]+/files/.*upload.*", effect="delay", seconds=3.0)
    filled = session.call("daytona_create_sandbox", {"sandbox_id": "late", "upload_files": upload[:1]})
    creating = asyncio.create_task(filled)
    await asyncio.sleep(2.0)
    await session.end()
    await creating
    return session


async def clones(stack: Stack) -> Session:
    """A clone that does not reach its server, one that is refused, one that is followed and cancelled."""
    session = await stack.open()
    box = await creates(session)
    await error_of_call(session, "daytona_git_clone", {"sandbox_id": box, "repo_url": "https://nowhere.invalid/a/b"})
    await error_of_call(session, "daytona_git_clone", {"sandbox_id": box, "repo_url": "file:///a/b"})
    # A git that never ends stands in for a server that never does.
    program = {"path": "bin/git", "content": "#!/bin/sh\n[ $1 = version ] || exec sleep 4321\n", "mode": "755"}
    await call_ok(session, "daytona_write_file", {"sandbox_id": box, **program})
    hanging = await creates(session, env={"PATH": "/home/daytona/bin:/usr/bin:/bin"})
    await call_ok(session, "daytona_write_file", {"sandbox_id": hanging, **program})
    asked = {"sandbox_id": hanging, "repo_url": "https://nowhere.invalid/a/b"}
    cloning = asyncio.create_task(session.call("daytona_git_clone", asked, "hanging"))
    await eventually(lambda: rows(session, hanging), bool, "the clone")
    await call_ok(session, "daytona_command", {"sandbox_id": hanging, "action": "cancel", "call_id": "hanging"})
    assert (await cloning).error is not None
    await session.end()
    return session


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        working_day,
        long_command,
        many_calls,
        faulty_provider,
        cancelled,
        submitted,
        downloads,
        unsure_commands,
        early_and_interrupted_commands,
        kept_work,
        clones,
    )
}
