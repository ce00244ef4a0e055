"""Signals while a command is followed, where its cancellation fails: no command can be made to do that on demand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from sandhold.cli import interrupts
from sandhold.cli.interrupts import Left, followed
from tests.workflows.waiting import eventually


class Cancellations:
    """Fails as often as it is told to."""

    def __init__(self, failures: int) -> None:
        self.begun = self.made = 0
        self._failures = failures

    async def __call__(self) -> None:
        self.begun += 1
        if self.begun <= self._failures:
            raise ConnectionError("nobody there")
        self.made += 1


@pytest.fixture(autouse=True)
def no_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "MOMENT_S", 0.01)


async def interrupt(following: asyncio.Task[bool], cancel: Cancellations) -> None:
    """Press Ctrl-C; one more cancellation has been tried, and failed if it does, when this returns."""
    before = cancel.begun
    os.kill(os.getpid(), signal.SIGINT)

    async def is_over() -> bool:
        return cancel.begun > before or following.done()

    await eventually(is_over, bool, "a cancellation")
    assert not following.done(), "it was left"


@contextlib.asynccontextmanager
async def hearing(cancel: Cancellations) -> AsyncIterator[tuple[asyncio.Task[bool], asyncio.Event]]:
    """Something that is followed until the event, by somebody who hears signals."""
    ended = asyncio.Event()
    following = asyncio.create_task(followed(ended.wait(), cancel))

    async def hears() -> bool:
        return signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL

    await eventually(hears, bool, "the handlers of signals")
    try:
        yield following, ended
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_ctrl_c_tries_again_to_cancel_what_was_not_cancelled(capsys: pytest.CaptureFixture[str]) -> None:
    cancel = Cancellations(failures=2)
    async with hearing(cancel) as (following, ended):
        for _ in range(3):
            await interrupt(following, cancel)
        assert cancel.made == 1
        assert capsys.readouterr().err.count("was not cancelled: nobody there") == 2
        ended.set()
        assert await following


async def test_whoever_leaves_after_a_failed_cancellation_is_told_that_the_command_goes_on() -> None:
    cancel = Cancellations(failures=1)
    async with hearing(cancel) as (following, _):
        await interrupt(following, cancel)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Left) as left:
            await following
    assert (left.value.exit_code, left.value.cancelling) == (128 + signal.SIGTERM, False)


async def test_whoever_leaves_after_a_cancellation_is_told_so() -> None:
    cancel = Cancellations(failures=0)
    async with hearing(cancel) as (following, _):
        await interrupt(following, cancel)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Left) as left:
            await following
    assert (left.value.exit_code, left.value.cancelling) == (130, True)
