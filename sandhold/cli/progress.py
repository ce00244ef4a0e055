"""How far a transfer has come, on stderr: for people, and only when it takes a while."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from sandhold.storage import Progress

SHOWN_AFTER_S = 1.0


class TransferProgress:
    """Adds up the bytes of a transfer, and shows them once SHOWN_AFTER_S have passed, when stderr is a terminal."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what = what
        self._total = total
        self._passed = 0
        self._shown: tuple[Bar, TaskID] | None = None
        self._began = time.monotonic()

    def __enter__(self) -> TransferProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown is not None:
            self._shown[0].stop()

    def one_file(self) -> Progress:
        """To be told how much of one file has passed."""
        before = 0

        def told(passed: int) -> None:
            nonlocal before
            self._advance(passed - before)
            before = passed

        return told

    def _advance(self, more: int) -> None:
        self._passed += more
        if self._shown is None and sys.stderr.isatty() and time.monotonic() - self._began >= SHOWN_AFTER_S:
            self._shown = _bar(self._what, self._total)
        if self._shown is not None:
            bar, task = self._shown
            bar.update(task, completed=self._passed)


class CountProgress:
    """Counts things that are dealt with one after the other, and shows how many, as TransferProgress shows bytes."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._shown: tuple[Bar, TaskID] | None = None
        self._began = time.monotonic()

    def __enter__(self) -> CountProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown is not None:
            self._shown[0].stop()

    def advance(self, more: int = 1) -> None:
        self._done += more
        if self._shown is None and sys.stderr.isatty() and time.monotonic() - self._began >= SHOWN_AFTER_S:
            self._shown = _counting_bar(self._what, self._total)
        if self._shown is not None:
            bar, task = self._shown
            bar.update(task, completed=self._done)


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


def _bar(what: str, total: int | None) -> tuple[Bar, TaskID]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.start()
    return bar, bar.add_task(escape(what), total=total)


def _counting_bar(what: str, total: int | None) -> tuple[Bar, TaskID]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    bar.start()
    return bar, bar.add_task(escape(what), total=total)
