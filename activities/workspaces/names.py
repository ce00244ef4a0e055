"""Which names have come, in little memory however many there are."""

from __future__ import annotations

from array import array

from sandhold.contracts.errors import ErrorCode, ToolFailure

NAMES_LIMIT = 2_000_000
"""Of one download; they take 32 MiB."""
_GROWTH = 4
"""Times, when half of the slots are taken: what moves then costs a third of what twice as many would."""


class SeenNames:
    """A set of names of which only 64 bits of each are kept, hashed with a key of this process.

    Two of a million names are taken for the same once in thirty million times; then one of them is refused.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def __contains__(self, name: bytes) -> bool:
        return self._slots[_place(self._slots, _mark(name))] != 0

    def add(self, name: bytes) -> bool:
        """Whether the name is new. Raises ToolFailure `too_large` when there are too many."""
        mark = _mark(name)
        place = _place(self._slots, mark)
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

    def _grow(self) -> None:
        before = self._slots
        self._slots = slots = array("Q", bytes(_GROWTH * 8 * len(before)))
        for mark in before:
            if mark:
                slots[_place(slots, mark)] = mark


def _place(slots: array[int], mark: int) -> int:
    """Where the mark is among the slots, or belongs."""
    last = len(slots) - 1  # one less than a power of two
    place = mark & last
    while (there := slots[place]) and there != mark:
        place = (place + 1) & last
    return place


def _mark(name: bytes) -> int:
    return hash(name) & 0xFFFF_FFFF_FFFF_FFFF or 1
