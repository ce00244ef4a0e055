"""How far a transfer has come, on stderr: for people, and only when it takes a while."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn, TaskID

    from sandhold.storage import Progress

SHOWN_AFTER_S = 1.0


class CountProgress:
    """Counts what is dealt with, and shows how much once SHOWN_AFTER_S have passed, when stderr is a terminal."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._shown: tuple[Bar, TaskID] | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown is not None:
            self._shown[0].stop()

    def advance(self, more: int = 1) -> None:
        self._done += more
        if self._shown is None and sys.stderr.isatty() and time.monotonic() - self._began >= SHOWN_AFTER_S:
            self._shown = self._bar()
        if self._shown is not None:
            bar, task = self._shown
            bar.update(task, completed=self._done)

    def _bar(self) -> tuple[Bar, TaskID]:
        from rich.progress import MofNCompleteColumn, TimeRemainingColumn

        return _started(self._what, self._total, MofNCompleteColumn(), TimeRemainingColumn())


class TransferProgress(CountProgress):
    """Adds up the bytes of a transfer, and shows them the same way."""

    def one_file(self) -> Progress:
        """To be told how much of one file has passed."""
        before = 0

        def told(passed: int) -> None:
            nonlocal before
            self.advance(passed - before)
            before = passed

        return told

    def _bar(self) -> tuple[Bar, TaskID]:
        from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
        return _started(self._what, self._total, *columns)


@asynccontextmanager
async def time_shown(what: str) -> AsyncIterator[None]:
    """Show for how long something has gone on that tells nothing of itself, as TransferProgress shows bytes."""
    showing = asyncio.create_task(_show_time(what))
    try:
        yield
    finally:
        showing.cancel()
        await asyncio.wait([showing])


async def _show_time(what: str) -> None:
    if not sys.stderr.isatty():
        return
    await asyncio.sleep(SHOWN_AFTER_S)
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(escape(what), total=None)
        await asyncio.Event().wait()


def _started(what: str, total: int | None, *measures: ProgressColumn) -> tuple[Bar, TaskID]:
    """A bar that is shown, with its measures behind it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), *measures)
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    bar.start()
    return bar, bar.add_task(escape(what), total=total)
