"""Where the values of known secrets are in some bytes, in any of their forms."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

from sandhold.security.secret_forms import forms_of

_MOST_NESTED = 16
"""How many forms may end with each other, one inside of the next; beyond that only the shorter ones are searched."""
_HEAD = 4
_TABLE_BYTES = 32 * 1024
"""Of all forms together, for which a search by a table of states is worth its memory."""


class KnownValues:
    """The forms of all secrets, numbered."""

    def __init__(self, secrets: Mapping[str, str | bytes], *, most_for_table: int = _TABLE_BYTES) -> None:
        """Where two secrets have the same form it is of the name that sorts first, or of the one whose value it is.

        Forms of more than `most_for_table` bytes together are never searched for by a table of states: it is faster,
        and takes up to 2 KiB for each of these bytes.
        """
        values = {name: forms_of(secrets[name]) for name in sorted(secrets)}
        names: dict[bytes, str] = {}
        for name, forms in values.items():
            if forms:
                names.setdefault(forms[0], name)
        for name, forms in values.items():
            for form in forms:
                names.setdefault(form, name)
        self._forms = sorted(_not_too_nested(names))
        self.names = [names[form] for form in self._forms]
        """The secret's name by the number of the form."""
        self.longest = max(map(len, self._forms), default=0)
        """Bytes of the longest form."""
        self.size = sum(map(len, self._forms))
        """Bytes of all forms together."""
        # By itself the library chooses the table for few patterns: a KiB for each byte of a long one.
        small = self.size <= most_for_table
        how = None if small else Implementation.ContiguousNFA
        self._leftmost = BytesAhoCorasick(self._forms, matchkind=MatchKind.LeftmostLongest, implementation=how)
        self._every = BytesAhoCorasick(self._forms, implementation=how)
        heads = sorted({form[:_HEAD] for form in self._forms})
        self._heads = BytesAhoCorasick(heads)
        self._short_heads = frozenset(head[:size] for head in heads for size in range(1, _HEAD))

    def are_in(self, data: bytes) -> bool:
        """Whether any form is in the bytes."""
        return bool(self._leftmost.find_matches_as_indexes(data))

    def occurrences(self, data: bytes) -> list[tuple[int, int, int]]:
        """Number, start and end of every occurrence, also of those that overlap."""
        windows: list[tuple[int, int]] = []
        for _, start, end in self._leftmost.find_matches_as_indexes(data):
            # Whatever overlaps with one of these begins inside of it.
            reach = end + self.longest - 1
            if windows and start < windows[-1][1]:
                windows[-1] = (windows[-1][0], reach)
            else:
                windows.append((start, reach))
        return [
            (number, begin + start, begin + end)
            for begin, reach in windows
            for number, start, end in self._every.find_matches_as_indexes(
                memoryview(data)[begin:reach], overlapping=True
            )
        ]

    def begun(self, data: bytes, fewest: int) -> tuple[int, int] | None:
        """Number and start of the first form that `data` ends in the midst of, after at least `fewest` bytes of it."""
        if not self._forms:
            return None
        base = max(0, len(data) - self.longest + 1)
        for _, at, _ in self._heads.find_matches_as_indexes(memoryview(data)[base:], overlapping=True):
            if len(data) - base - at >= fewest and (number := self._going_on(data[base + at :])) is not None:
                return number, base + at
        for size in range(min(_HEAD - 1, len(data)), fewest - 1, -1):
            begun = data[-size:]
            if begun in self._short_heads and (number := self._going_on(begun)) is not None:
                return number, len(data) - size
        return None

    def _going_on(self, begun: bytes) -> int | None:
        """A form that begins like this and is longer."""
        number = bisect_right(self._forms, begun)
        return number if number < len(self._forms) and self._forms[number].startswith(begun) else None

    def cut_off(self, data: bytes, fewest: int) -> tuple[int, int] | None:
        """Number and end of the longest rest of a form, of at least `fewest` bytes, that `data` begins with."""
        best: tuple[int, int] | None = None
        head = data[:fewest]
        if len(head) < fewest:
            return None
        for number, form in enumerate(self._forms):
            at = form.find(head, 1)
            while at > 0 and (best is None or len(form) - at > best[1]):
                if data.startswith(form[at : at + len(data)]):
                    best = number, min(len(form) - at, len(data))
                    break
                at = form.find(head, at + 1)
        return best


class JoinedValues:
    """Several sets of values, searched for as one: a set more costs no new making of the others."""

    def __init__(self, sets: Sequence[KnownValues]) -> None:
        self._sets = sets
        self._first = [0, *accumulate(len(each.names) for each in sets)]
        """The number of each set's first form."""
        self.names = [name for each in sets for name in each.names]
        self.longest = max((each.longest for each in sets), default=0)
        self.size = sum(each.size for each in sets)

    def are_in(self, data: bytes) -> bool:
        """As `KnownValues.are_in`."""
        return any(each.are_in(data) for each in self._sets)

    def occurrences(self, data: bytes) -> list[tuple[int, int, int]]:
        """As `KnownValues.occurrences`."""
        return [
            (first + number, start, end)
            for first, each in zip(self._first, self._sets, strict=False)
            for number, start, end in each.occurrences(data)
        ]

    def begun(self, data: bytes, fewest: int) -> tuple[int, int] | None:
        """As `KnownValues.begun`."""
        return min(self._numbered(each.begun(data, fewest) for each in self._sets), key=_at, default=None)

    def cut_off(self, data: bytes, fewest: int) -> tuple[int, int] | None:
        """As `KnownValues.cut_off`."""
        return max(self._numbered(each.cut_off(data, fewest) for each in self._sets), key=_at, default=None)

    def _numbered(self, found: Iterable[tuple[int, int] | None]) -> Iterator[tuple[int, int]]:
        for first, each in zip(self._first, found, strict=False):
            if each is not None:
                yield first + each[0], each[1]


def _at(found: tuple[int, int]) -> int:
    return found[1]


def _not_too_nested(forms: Iterable[bytes]) -> Iterator[bytes]:
    ends: list[bytes] = []
    for backwards in sorted(form[::-1] for form in forms):
        while ends and not backwards.startswith(ends[-1]):
            ends.pop()
        if len(ends) < _MOST_NESTED:
            ends.append(backwards)
            yield backwards[::-1]
