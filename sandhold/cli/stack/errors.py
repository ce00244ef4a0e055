"""Why a stack does not start or does not go on."""

from __future__ import annotations

from pathlib import Path


class StackFailed(RuntimeError):
    """The stack cannot start or go on. The message is for the person at the terminal."""


class AlreadyRunning(StackFailed):
    """Another stack uses the data folder."""


class PortTaken(StackFailed):
    """A port that was asked for is in use."""


class PartFailed(StackFailed):
    """A part did not become ready, or keeps dying. `log_tail` holds the last lines it wrote."""

    def __init__(self, part: str, reason: str, log: Path, log_tail: str) -> None:
        super().__init__(f"{part} {reason}; its log is {log}")
        self.part = part
        self.log = log
        self.log_tail = log_tail
