"""Session storage that is away for longer than a call may take to be answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from temporalio.testing import WorkflowEnvironment

from sandhold.client import Session
from sandhold.contracts.calls import ANSWER_WITHIN_S
from tests.cable import Cable
from tests.local_daytona_server import LocalDaytona
from tests.s3_server import S3Server
from tests.session_folder import SessionFolder
from tests.stack import Stack, running_stack


async def run_while_away(session: Session, give_back: Callable[[], Awaitable[None]]) -> None:
    """A command whose result cannot be stored for a while is run once and told afterwards."""
    called = asyncio.create_task(
        session.exec("box", "echo start >> starts; seq 1 2000", output="full", call_id="unstored")
    )
    await asyncio.sleep(ANSWER_WITHIN_S + 3)
    assert not called.done()
    await give_back()
    result = await called
    assert (result.status, result.stdout) == ("completed", "".join(f"{n}\n" for n in range(1, 2001)))
    assert (await session.exec("box", "cat starts", output="normal")).stdout == "start\n"


async def test_a_folder_that_is_away_for_a_while_costs_no_result(stack: Stack) -> None:
    session = await stack.open()
    folder = SessionFolder(stack, session.session_id)
    await session.create_sandbox(sandbox_id="box")
    folder.take()

    async def give_back() -> None:
        folder.give_back()

    await run_while_away(session, give_back)


async def test_a_bucket_that_is_out_of_reach_for_a_while_costs_no_result(
    temporal: WorkflowEnvironment,
    stack_daytona: LocalDaytona,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    cable = Cable(s3_server.endpoint.removeprefix("http://"))
    await cable.plug()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{cable.address}")
    async with running_stack(
        temporal.client, stack_daytona, tmp_path, task_queue="sandhold-cut-bucket", storage_url=s3_server.new_place()
    ) as stack:
        session = await stack.open()
        await session.create_sandbox(sandbox_id="box")
        await session.files.write("reached", b"1")
        await cable.cut()
        await run_while_away(session, cable.plug)
        await session.end()
    await cable.cut()
