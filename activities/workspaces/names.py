"""Which names have come, in little memory however many there are."""

from __future__ import annotations

from array import array

from sandhold.contracts.errors import ErrorCode, ToolFailure

NAMES_LIMIT = 2_000_000
"""Of one download; they take 32 MiB."""


class SeenNames:
    """A set of names of which only 64 bits of each are kept, hashed with a key of this process.

    Two of a million names are taken for the same once in thirty million times; then one of them is refused.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def __contains__(self, name: bytes) -> bool:
        return self._slots[self._place(_mark(name))] != 0

    def add(self, name: bytes) -> bool:
        """Whether the name is new. Raises ToolFailure `too_large` when there are too many."""
        mark = _mark(name)
        place = self._place(mark)
        if self._slots[place]:
            return False
        if self._count >= NAMES_LIMIT:
            raise ToolFailure(
                ErrorCode.TOO_LARGE,
                f"there are more than {NAMES_LIMIT} files and directories",
                hint="Leave out what is not needed with exclude, or take it in several downloads.",
            )
        self._slots[place] = mark
        self._count += 1
        if 2 * self._count > len(self._slots):
            self._grow()
        return True

    def _place(self, mark: int) -> int:
        slots = self._slots
        last = len(slots) - 1  # one less than a power of two
        place = mark & last
        there = slots[place]
        while there and there != mark:
            place = (place + 1) & last
            there = slots[place]
        return place

    def _grow(self) -> None:
        before = self._slots
        self._slots = array("Q", bytes(16 * len(before)))
        for mark in before:
            if mark:
                self._slots[self._place(mark)] = mark


def _mark(name: bytes) -> int:
    return hash(name) & 0xFFFF_FFFF_FFFF_FFFF or 1
