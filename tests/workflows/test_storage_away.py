"""Session storage that is away for longer than a call may take to be answered."""

from __future__ import annotations

import asyncio
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError

from sandhold.contracts.calls import ANSWER_WITHIN_S
from tests.session_folder import SessionFolder
from tests.stack import Stack


async def test_a_command_whose_result_cannot_be_stored_for_a_while_is_run_once_and_told_afterwards(
    stack: Stack,
) -> None:
    session = await stack.open()
    folder = SessionFolder(stack, session.session_id)
    await session.create_sandbox(sandbox_id="box")
    folder.take()
    called = asyncio.create_task(
        session.exec("box", "echo start >> starts; seq 1 2000", output="full", call_id="unstored")
    )
    await asyncio.sleep(ANSWER_WITHIN_S + 3)
    assert not called.done()
    folder.give_back()
    result = await called
    assert (result.status, result.stdout) == ("completed", "".join(f"{n}\n" for n in range(1, 2001)))
    assert (await session.exec("box", "cat starts", output="normal")).stdout == "start\n"


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
