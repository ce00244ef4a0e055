"""A worker killed at the worst moments: what it had begun is gone on with by the next one, once, and nothing is left.

One worker is killed at all these moments at once, each in a session of its own, and a new one is started. Everyone
prepares, waits for the others at a barrier, and then enters the moment, which lasts for some seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from temporalio.testing import WorkflowEnvironment

from sandhold.client import Session
from sandhold.contracts.calls import CallEnvelope
from sandhold.contracts.names import SESSION_LABEL, Activity, sandbox_workflow_id
from sandhold.contracts.sessions import SessionOutcome
from tests.cli.process import finished, started
from tests.local_daytona_server import CHECKOUT, LocalDaytona
from tests.stack import Stack, environment_of, running_stack
from tests.workflows.calls import call_ok, creates, exec_ok
from tests.workflows.waiting import eventually

SHORT = "echo x >> count; sleep 3; cat count"
LONG = "echo x >> count; sleep 14; cat count"


@contextlib.asynccontextmanager
async def worker_process(stack: Stack, data_dir: Path, more: Mapping[str, str] | None = None) -> AsyncIterator[Process]:
    """A worker as `sandhold worker` runs it, once it polls; killed at the end if it still runs.

    `more` are variables for it beside those of the stack.
    """
    data_dir.mkdir(exist_ok=True)
    with (data_dir / "worker.log").open("ab") as log:
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            CHECKOUT / "worker.py",
            env={**environment_of(stack, data_dir), **(more or {})},
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=log,
        )
    try:
        assert worker.stdout is not None
        line = await asyncio.wait_for(worker.stdout.readline(), 60)
        assert line.startswith(b"ready "), (data_dir / "worker.log").read_text()
        yield worker
    finally:
        await kill(worker)


async def kill(worker: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.kill()
    await worker.wait()


@dataclass
class Aftermath:
    """What was under way when the worker was killed, by the moment; each task ends with what its caller gets."""

    stack: Stack
    worker: Process
    """The one in its place."""
    sessions: dict[str, Session]
    tasks: dict[str, asyncio.Task[Any]]


# The moments: each returns when it has been entered, with what somebody waits for meanwhile.


async def in_a_create(stack: Stack, session: Session, together: asyncio.Barrier) -> asyncio.Task[Any]:
    """The provider has been asked, and has not answered."""
    await fault(stack, session, method="POST", route="/api/sandbox", effect="delay", seconds=4.0, when="after")
    await together.wait()
    creating = asyncio.create_task(session.call("daytona_create_sandbox", {"sandbox_id": "box"}))

    async def held() -> list[Any]:
        return await stack.provider_sandboxes(session)

    await eventually(held, bool, "a sandbox whose creation is not answered yet")
    assert not creating.done()
    return creating


async def in_a_short_command(stack: Stack, session: Session, together: asyncio.Barrier) -> asyncio.Task[Any]:
    """The command would have ended within its first request."""
    await creates(session, sandbox_id="box")
    await together.wait()
    running = asyncio.create_task(session.call("daytona_exec", {"sandbox_id": "box", "command": SHORT}))
    await until_counted(stack, session)
    return running


async def in_a_long_command(stack: Stack, session: Session, together: asyncio.Barrier) -> asyncio.Task[Any]:
    """The command is followed."""
    await creates(session, sandbox_id="box")
    running = asyncio.create_task(session.call("daytona_exec", {"sandbox_id": "box", "command": LONG}))
    await eventually(
        lambda: scheduled(stack, session, Activity.FOLLOW_COMMANDS), lambda count: count > 0, "the follower"
    )
    await together.wait()
    return running


async def in_a_stop(stack: Stack, session: Session, together: asyncio.Barrier) -> asyncio.Task[Any]:
    """The provider has stopped the sandbox, and nobody has heard of it."""
    box = await creates(session, sandbox_id="box")
    await exec_ok(session, box, "echo kept > file")
    await fault(
        stack, session, method="POST", route="/api/sandbox/{id}/stop", effect="delay", seconds=4.0, when="after"
    )
    await together.wait()
    stopping = asyncio.create_task(call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"}))
    await until_provider_says(stack, session, "stopped")
    return stopping


async def in_a_start(stack: Stack, session: Session, together: asyncio.Barrier) -> asyncio.Task[Any]:
    """A call waits for the sandbox to start."""
    box = await creates(session, sandbox_id="box")
    await exec_ok(session, box, "echo kept > file")
    await call_ok(session, "daytona_manage_sandbox", {"sandbox_id": box, "action": "stop"})
    await fault(stack, session, method="POST", route="/api/sandbox/{id}/start", effect="start_delay", seconds=3.0)
    await together.wait()
    calling = asyncio.create_task(exec_ok(session, box, "cat file", output="normal"))
    await until_provider_says(stack, session, "starting")
    return calling


async def in_a_delete(stack: Stack, session: Session, together: asyncio.Barrier) -> asyncio.Task[Any]:
    """The session ends, and the provider takes its time to delete."""
    await creates(session, sandbox_id="box")
    await fault(stack, session, method="DELETE", route="/api/sandbox/{id}", effect="delete_hangs", seconds=6.0)
    await together.wait()
    ending = asyncio.create_task(session.end())
    await until_provider_says(stack, session, "destroying")
    return ending


async def in_a_refused_delete(stack: Stack, session: Session, together: asyncio.Barrier) -> asyncio.Task[Any]:
    """The session ends, and every request to delete has been refused so far."""
    await creates(session, sandbox_id="box")
    rule = await fault(stack, session, method="DELETE", route="/api/sandbox/{id}", effect="status", status=503, times=3)
    await together.wait()
    ending = asyncio.create_task(session.end())
    await eventually(lambda: stack.faults.hits(rule), lambda hits: hits > 0, "a delete that is refused")
    return ending


MOMENTS = {
    "create": in_a_create,
    "short": in_a_short_command,
    "long": in_a_long_command,
    "stop": in_a_stop,
    "start": in_a_start,
    "delete": in_a_delete,
    "refused delete": in_a_refused_delete,
}


@pytest.fixture(scope="module")
async def aftermath(
    temporal: WorkflowEnvironment, stack_daytona: LocalDaytona, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Aftermath]:
    data_dir = tmp_path_factory.mktemp("killed")
    await stack_daytona.faults.clear()
    async with running_stack(
        temporal.client, stack_daytona, data_dir, task_queue="sandhold-killed", workers=False
    ) as stack:
        async with worker_process(stack, data_dir) as first:
            together = asyncio.Barrier(len(MOMENTS))
            # The second worker takes its time where many tests run at once.
            sessions = {moment: await stack.open(lifecycle_timeout_s=120.0) for moment in MOMENTS}
            reached = await asyncio.gather(
                *(reach(stack, sessions[moment], together) for moment, reach in MOMENTS.items())
            )
            passed = [moment for moment, task in zip(MOMENTS, reached, strict=True) if task.done()]
            await kill(first)
            assert not passed, "these moments had passed when the worker was killed"
        async with worker_process(stack, data_dir) as second:
            yield Aftermath(stack, second, sessions, dict(zip(MOMENTS, reached, strict=True)))
        for task in reached:
            task.cancel()
    await stack_daytona.faults.clear()


async def fault(stack: Stack, session: Session, **rule: Any) -> int:
    """One fault for this session alone."""
    return await stack.faults.add(**{"times": 1, **rule}, labels={SESSION_LABEL: session.session_id})


async def until_provider_says(stack: Stack, session: Session, state: str) -> None:
    async def states() -> list[str]:
        return [sandbox.state.value for sandbox in await stack.provider_sandboxes(session)]

    await eventually(states, lambda seen: seen == [state], f"the provider's state {state}")


async def until_counted(stack: Stack, session: Session) -> None:
    """Until the command has begun, seen behind everybody's back."""
    [held] = await stack.provider_sandboxes(session)
    sandbox = await stack.provider.get(held.id)

    async def count() -> str:
        return str((await sandbox.process.exec("cat count 2>/dev/null")).result)

    await eventually(count, lambda seen: seen == "x\n", "the command's beginning")


async def scheduled(stack: Stack, session: Session, activity: Activity) -> int:
    """How often the sandbox's workflow has asked for this activity."""
    workflow = stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, "box"))
    types = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        async for event in workflow.fetch_history_events()
    ]
    return types.count(activity)


async def ends_with_nothing_left(stack: Stack, session: Session) -> None:
    outcome = await session.end()
    assert [(row.sandbox_id, row.outcome) for row in outcome.sandboxes] == [("box", "deleted")]
    assert await stack.provider_sandboxes(session) == []


# What comes of them.


async def test_a_create_that_was_cut_short_is_gone_on_with_and_makes_one_sandbox(aftermath: Aftermath) -> None:
    stack, session = aftermath.stack, aftermath.sessions["create"]
    envelope: CallEnvelope = await aftermath.tasks["create"]
    assert (envelope.ok, envelope.error) == (True, None)
    assert len(await stack.provider_sandboxes(session)) == 1
    assert (await stack.status(session, "box")).state == "started"
    await exec_ok(session, "box", "true")
    await ends_with_nothing_left(stack, session)


@pytest.mark.parametrize("moment", ["short", "long"])
async def test_a_command_that_lost_its_worker_has_its_whole_result_and_ran_once(
    aftermath: Aftermath, moment: str
) -> None:
    stack, session = aftermath.stack, aftermath.sessions[moment]
    envelope: CallEnvelope = await aftermath.tasks[moment]
    assert envelope.error is None
    assert isinstance(envelope.result, dict)
    assert {name: envelope.result[name] for name in ("status", "exit_code", "stdout")} == {
        "status": "completed",
        "exit_code": 0,
        "stdout": "x\n",
    }
    assert (await exec_ok(session, "box", "cat count", output="normal"))["stdout"] == "x\n"
    await ends_with_nothing_left(stack, session)


async def test_a_stop_that_nobody_heard_of_is_found_done(aftermath: Aftermath) -> None:
    stack, session = aftermath.stack, aftermath.sessions["stop"]
    assert (await aftermath.tasks["stop"])["state"] == "stopped"
    assert (await exec_ok(session, "box", "cat file", output="normal"))["stdout"] == "kept\n"
    await ends_with_nothing_left(stack, session)


async def test_a_start_that_was_cut_short_is_gone_on_with_for_the_call_that_waits(aftermath: Aftermath) -> None:
    stack, session = aftermath.stack, aftermath.sessions["start"]
    assert (await aftermath.tasks["start"])["stdout"] == "kept\n"
    await ends_with_nothing_left(stack, session)


@pytest.mark.parametrize("moment", ["delete", "refused delete"])
async def test_a_session_that_lost_its_worker_while_it_ended_ends_with_nothing_left(
    aftermath: Aftermath, moment: str
) -> None:
    outcome: SessionOutcome = await aftermath.tasks[moment]
    assert [(row.sandbox_id, row.outcome) for row in outcome.sandboxes] == [("box", "deleted")]
    assert await aftermath.stack.provider_sandboxes(aftermath.sessions[moment]) == []


async def test_an_end_that_finds_no_worker_for_a_while_is_carried_out_by_the_next_one(
    aftermath: Aftermath, tmp_path: Path
) -> None:
    stack = aftermath.stack
    session = await stack.open()
    box = await creates(session, sandbox_id="box")
    await kill(aftermath.worker)
    ending = await started("session", "end", session.session_id, "--json", env=environment_of(stack, tmp_path))
    waiting = asyncio.create_task(finished(ending))
    await asyncio.sleep(2.0)  # Nobody is there.
    assert not waiting.done()
    assert len(await stack.provider_sandboxes(session)) == 1
    async with worker_process(stack, tmp_path):
        done = await waiting
    assert (done.code, done.document["sandboxes"]) == (0, [{"sandbox_id": box, "outcome": "deleted"}]), done.err
    assert await stack.provider_sandboxes(session) == []
