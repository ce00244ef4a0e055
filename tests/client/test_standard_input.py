"""A whole input passed on to a command: once, whatever breaks in between and however it comes in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from sandhold.client import Sandhold, Session
from sandhold.client.commands import Command
from sandhold.client.standard_input import Read
from sandhold.contracts.errors import ErrorCode, ToolFailure
from tests.stack import Stack
from tests.workflows.waiting import eventually

WHOLE = bytes(range(256)) * 700
"""More than three writes take."""


@pytest.fixture(scope="module")
async def session(shared_stack: Stack) -> AsyncIterator[Session]:
    """A session with one started sandbox, `box`."""
    session = await shared_stack.open()
    await session.create_sandbox(sandbox_id="box")
    yield session
    await session.end()


def in_pieces(data: bytes, sizes: Random, most: int, pause_s: float = 0.0) -> Read:
    """A source that gives the data in pieces of chance, as pipes do."""
    left = bytearray(data)

    async def read(limit: int) -> bytes:
        await asyncio.sleep(sizes.uniform(0, pause_s))
        size = min(limit, sizes.randint(1, most))
        piece = bytes(left[:size])
        del left[:size]
        return piece

    return read


async def came(command: Command, *, follow: bool = True) -> bytes:
    return b"".join([chunk.data async for chunk in command.output(follow=follow) if chunk.stream == "stdout"])


async def calls_of(stack: Stack, session: Session, command: Command) -> int:
    """The calls that have written to the command."""
    folder = stack.settings.data_dir / "storage" / "sessions" / session.session_id / "calls" / command.call_id
    return len(list((folder / "stdin").iterdir()))


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_an_input_that_is_passed_on_again_in_other_pieces_is_written_once_and_whole(
    session: Session, seed: int
) -> None:
    command = await session.start("box", "cat", stdin=True)
    chance = Random(seed)
    for most, pause_s in ((9000, 0.2), (50, 0.0), (30_000, 0.3)):
        feeding = asyncio.create_task(command.feed(in_pieces(WHOLE, chance, most, pause_s)))
        await asyncio.wait([feeding], timeout=chance.uniform(0.3, 1.2))
        feeding.cancel()  # As if it were killed: a write may be on its way.
        await asyncio.wait([feeding])
    await command.feed(in_pieces(WHOLE, chance, 1000))
    assert await came(command) == WHOLE


async def test_two_who_pass_the_same_input_on_at_once_write_it_once(session: Session) -> None:
    command = await session.start("box", "cat", stdin=True)
    chance = Random(4)
    await asyncio.gather(*(command.feed(in_pieces(WHOLE, chance, most, 0.08)) for most in (30_000, 17_000)))
    assert await came(command) == WHOLE


async def test_a_line_is_written_when_its_writer_pauses_and_much_goes_in_few_writes(
    session: Session, stack: Stack
) -> None:
    command = await session.start("box", "cat", stdin=True)
    lines: asyncio.Queue[bytes] = asyncio.Queue()

    async def typed(limit: int) -> bytes:
        return await lines.get()

    feeding = asyncio.create_task(command.feed(typed))
    for number in range(3):
        lines.put_nowait(f"{number}\n".encode())
        wanted = "".join(f"{each}\n" for each in range(number + 1)).encode()
        await eventually(lambda: came(command, follow=False), lambda seen, wanted=wanted: seen == wanted, "the line")
    assert await calls_of(stack, session, command) == 3
    for number in range(3, 3000):
        lines.put_nowait(f"{number}\n".encode())
    lines.put_nowait(b"")
    await feeding
    assert await came(command) == "".join(f"{number}\n" for number in range(3000)).encode()
    assert await calls_of(stack, session, command) == 4


async def test_another_input_than_before_is_told_and_not_mixed_in(session: Session) -> None:
    command = await session.start("box", "cat", stdin=True)
    chance = Random(5)
    await command.feed(in_pieces(b"first\n", chance, 10))
    for other in (b"other\n", b"fir", b"first\nand more"):
        with pytest.raises(ToolFailure) as failure:
            await command.feed(in_pieces(other, chance, 10))
        assert failure.value.error.code in {ErrorCode.CALL_ID_CONFLICT, ErrorCode.CONFLICT}
    assert await came(command) == b"first\n"


async def test_without_session_storage_input_is_not_passed_on(session: Session, stack: Stack, tmp_path: Path) -> None:
    command = await session.start("box", "cat", stdin=True, timeout_ms=60_000)
    nowhere = tmp_path / "storage"
    elsewhere = Sandhold(stack.temporal, stack.settings.model_copy(update={"storage_url": nowhere.as_uri()}))
    other = elsewhere.session(session.session_id).command("box", command.call_id)
    (nowhere / "sessions").mkdir(parents=True)
    (nowhere / "sessions" / session.session_id).write_text("no folder")
    with pytest.raises(ToolFailure) as failure:
        await other.feed(in_pieces(b"lost?\n", Random(6), 10))
    assert (failure.value.error.code, failure.value.error.retryable) == (ErrorCode.INTERNAL, True)
    await command.feed(in_pieces(b"not lost\n", Random(6), 10))
    assert await came(command) == b"not lost\n"
