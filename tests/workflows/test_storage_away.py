"""Session storage that is away for longer than a call may take to be answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError
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


async def test_a_command_whose_result_finds_a_full_disk_for_a_while_is_run_once_and_told_afterwards(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await stack.open()
    await session.create_sandbox(sandbox_id="box")
    put = obstore.put_async
    is_full = True
    refused = asyncio.Event()

    async def put_where_room_is(store: Any, path: str, *args: Any, **options: Any) -> Any:
        if is_full and session.session_id in path:
            refused.set()
            raise GenericError("Generic LocalFileSystem error: Unable to write: No space left (os error 28)")
        return await put(store, path, *args, **options)

    monkeypatch.setattr(obstore, "put_async", put_where_room_is)
    called = asyncio.create_task(
        session.exec("box", "echo start >> starts; seq 1 2000", output="full", call_id="no-room")
    )
    await asyncio.sleep(ANSWER_WITHIN_S + 3)
    assert refused.is_set()
    assert not called.done()
    is_full = False
    result = await called
    assert (result.status, result.stdout) == ("completed", "".join(f"{n}\n" for n in range(1, 2001)))
    assert (await session.exec("box", "cat starts", output="normal")).stdout == "start\n"


async def test_a_push_and_a_save_wait_for_session_storage_at_no_cost_of_their_time(stack: Stack) -> None:
    session = await stack.open(on_end="download", save_timeout_s=3.0)
    folder = SessionFolder(stack, session.session_id)
    await session.files.write("data", b"kept")
    await session.create_sandbox(sandbox_id="box")
    folder.take()
    pushing = asyncio.create_task(session.push_files("box", [("data", "data")]))
    await asyncio.sleep(2.0)
    assert not pushing.done()
    folder.give_back()
    assert (await pushing).files_uploaded == 1
    folder.take()
    ending = asyncio.create_task(session.end())
    await asyncio.sleep(6.0)
    assert not ending.done()
    folder.give_back()
    [row] = (await ending).sandboxes
    assert row.saved is not None
    assert (row.saved.error, row.saved.session_path) == (None, "/workspaces/box-g1.tar.zst")
