"""Session storage that is away for longer than a call may take to be answered."""

from __future__ import annotations

import asyncio

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
