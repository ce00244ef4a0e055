"""What the demo shows: each step as it happens, and a table of what was proved at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table


@dataclass
class Step:
    """One step of the demo: `proved` is its line in the summary."""

    title: str
    report: Report
    proved: str = ""
    seconds: float = 0.0
    ok: bool = False

    def tell(self, text: str) -> None:
        """Show something that happened, below the step's title."""
        for line in text.splitlines() or [""]:
            self.report.console.print(f"    {line}", markup=False, highlight=False)

    def call(self, what: str) -> None:
        """Show a call that the agent makes."""
        self.report.console.print(f"  [cyan]agent[/] {escape(what)}", highlight=False)

    def event(self, what: str) -> None:
        """Show something that happened around the agent."""
        self.report.console.print(f"  [yellow]{escape(what)}[/]", highlight=False)


class Report:
    """Shows steps one after the other: with a spinner on a terminal, as plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps: list[Step] = []
        self._started = time.monotonic()

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """A step that fails when its block raises."""
        step = Step(title, self)
        self.steps.append(step)
        self.console.print(f"\n[bold]{len(self.steps)}. {escape(title)}[/]", highlight=False)
        started = time.monotonic()
        try:
            with self._spinner(title):
                yield step
            step.ok = True
        finally:
            step.seconds = time.monotonic() - started
        self.console.print(f"  [green]ok[/] {escape(step.proved)} [dim]({step.seconds:.1f} s)[/]", highlight=False)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def summary(self) -> None:
        """Print what each step proved and how long it took."""
        self.console.print()
        if self.console.is_terminal:
            table = Table(title="What was shown", title_justify="left", border_style="dim")
            table.add_column("Step")
            table.add_column("Proved")
            table.add_column("Seconds", justify="right")
            for step in self.steps:
                mark = "[green]ok[/]" if step.ok else "[red]failed[/]"
                table.add_row(f"{mark} {escape(step.title)}", escape(step.proved), f"{step.seconds:.1f}")
            self.console.print(table)
        else:
            self.console.print("What was shown:")
            for step in self.steps:
                mark = "ok" if step.ok else "FAILED"
                line = f"{mark:6} {step.seconds:5.1f} s  {step.title}: {step.proved}"
                self.console.print(line, markup=False, highlight=False)
        self.console.print(f"{self.seconds:.1f} s in all", highlight=False)

    def _spinner(self, title: str) -> Status | contextlib.nullcontext[None]:
        return self.console.status(escape(title)) if self.console.is_terminal else contextlib.nullcontext()
