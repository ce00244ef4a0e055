"""Secrets become `[redacted:NAME]`: the values that are known, in every form they take, and tokens of known shapes.

What is shown depends on the bytes alone, never on how they arrived. A match covers every secret that overlaps with it,
so that no end of one is left beside another, up to `Redactor.longest` bytes. Nothing before a match decides about it:
reading that begins anywhere outside of matches finds the same ones. Memory and time per byte are bounded.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from ahocorasick_rs import BytesAhoCorasick, MatchKind

from sandhold.security.secret_forms import forms_of
from sandhold.security.token_shapes import CUT_OFF, CUT_OFF_KEY, LEAST_CUT, LONGEST_SHAPE, SHAPES, Shape

_BLOCK = 128 * 1024
"""Bytes that are looked at together."""
_MOST_NESTED = 16
"""How many forms may end with each other, one inside of the next; beyond that only the shorter ones are searched."""
_HEAD = 4
_NAME = re.compile(r"[^A-Za-z0-9_.:-]")
_LONGEST_NAME = 64
_CUT_OFF = "cut-off"
"""The name of what looks like the rest of a token whose beginning was not read."""


@dataclass(frozen=True)
class Piece:
    """What becomes of some bytes of a stream."""

    data: bytes
    """What to show: the bytes themselves, or `[redacted:NAME]`, with the words around it that tell of the secret."""
    size: int
    """How many bytes of the stream it stands for."""
    name: str | None
    """Of the secret; None for bytes as they are."""


class _Ending(Enum):
    """What comes behind the bytes at hand."""

    NOTHING = "nothing"
    MORE = "more, which is read next"
    UNREAD = "more, which is not read"


@dataclass(slots=True)
class _Match:
    """Bytes that are not shown, and around them those of the match that may be."""

    start: int
    end: int
    name: str
    known: bool
    """Whether it is a known value, which says more than a shape."""
    lead: int
    tail: int
    """Where the secret begins and ends."""

    def absorb(self, other: _Match) -> None:
        """Cover what another match covers, which begins in this one."""
        if other.start < self.lead or other.end > self.tail:
            self.end = max(self.end, other.end)
            self.lead, self.tail = self.start, self.end
        if other.known and not self.known:
            self.name, self.known = other.name, True


@dataclass(slots=True)
class _Trigger:
    """A place where a token of one of these shapes may begin."""

    start: int
    shapes: list[Shape]

    def is_undecided(self, data: bytes) -> bool:
        """Whether bytes behind `data` may make another match of it."""
        return any(shape.undecided.match(data, self.start) for shape in self.shapes)

    def match(self, data: bytes, *, cut: bool) -> _Match | None:
        """The longest token here; with `cut` also one that `data` ends in the midst of."""
        best: _Match | None = None
        for shape in self.shapes:
            told: _Match | None = None
            if cut and shape.recognised.match(data, self.start) and shape.undecided.match(data, self.start):
                told = _Match(self.start, len(data), shape.name, False, self.start, len(data))
            elif (whole := shape.match.match(data, self.start)) is not None:
                told = _Match(self.start, whole.end(), shape.name, False, *whole.span(1))
            if told is not None and (best is None or told.end > best.end):
                best = told
        return best


class Redactor:
    """The secrets known to a session, and the shapes, ready to be searched for. Immutable and cheap to share."""

    def __init__(self, secrets: Mapping[str, str | bytes]) -> None:
        """`secrets` by name. Values shorter than `SHORTEST_SECRET` bytes are not searched for.

        Where two have the same form, the name that sorts first is shown.
        """
        values = {name: forms_of(secrets[name]) for name in sorted(secrets)}
        names: dict[bytes, str] = {}
        for name, found in values.items():
            if found:
                names.setdefault(found[0], name)
        for name, found in values.items():
            for form in found:
                names.setdefault(form, name)
        self._forms = sorted(_not_too_nested(names))
        self._names = [names[form] for form in self._forms]
        self._longest_form = max(map(len, self._forms), default=0)
        self.longest = self._longest_form + LONGEST_SHAPE
        """Bytes: no match spans more, and as much context before a place is enough to tell if it is in a match."""
        self._leftmost = BytesAhoCorasick(self._forms, matchkind=MatchKind.LeftmostLongest)
        self._every = BytesAhoCorasick(self._forms)
        heads = sorted({form[:_HEAD] for form in self._forms})
        self._heads = BytesAhoCorasick(heads)
        self._short_heads = frozenset(head[:size] for head in heads for size in range(1, _HEAD))
        self._labels = {name: self._label(name) for name in set(names.values())}

    def _label(self, name: str) -> bytes:
        shown = _NAME.sub("_", name)[:_LONGEST_NAME]
        if self._leftmost.find_matches_as_indexes(shown.encode()) or self._leftmost.find_matches_as_indexes(
            name.encode()
        ):
            shown = "secret"
        return b"[redacted:%b]" % shown.encode()

    def stream(self) -> RedactionStream:
        """A stream from its beginning, or from any place outside of a match."""
        return RedactionStream(self)

    def redact(self, data: bytes) -> bytes:
        """The bytes as they may be shown."""
        return b"".join(piece.data for piece in self.pieces(data))

    def redact_text(self, text: str) -> str:
        """The text as it may be shown."""
        data = text.encode("utf-8", "surrogatepass")
        shown = self.redact(data)
        return text if shown == data else shown.decode("utf-8", "surrogatepass")

    def pieces(self, data: bytes, *, begins: bool = True, ends: bool = True) -> list[Piece]:
        """A window of a stream. Together the pieces stand for all of `data`.

        With `begins` or `ends` false the stream goes on before or behind the window, and what may be a part of a secret
        that was cut there, from 4 bytes on, is redacted as well: at the end also the beginning of any token, at the
        front also what looks like the rest of one.
        """
        stream = RedactionStream(self)
        if not begins:
            stream.begin_inside(data)
        found = stream.feed(data)
        return found + stream.end(_Ending.NOTHING if ends else _Ending.UNREAD)

    def _decide(self, data: bytes, ending: _Ending, front: _Match | None = None) -> tuple[list[_Match], int]:
        """The matches that no byte behind `data` can change, and where what is undecided begins."""
        undecided = len(data)
        cut: list[_Match] = [] if front is None else [front]
        if ending is _Ending.MORE:
            if (begun := self._begun_value(data, 1)) is not None:
                undecided = begun[0]
            if undecided == 0:
                return [], 0
            undecided = min(undecided, _begun_trigger(data))
        elif ending is _Ending.UNREAD and (begun := self._begun_value(data, LEAST_CUT)) is not None:
            start, number = begun
            cut.append(self._known(start, len(data), number))
        values = self._values(data)
        triggers = _triggers(data)
        if not (cut or values or triggers):
            return [], undecided
        return self._swept(data, _in_order([*cut, *values], triggers), ending, undecided)

    def _swept(
        self, data: bytes, found: Iterable[_Match | _Trigger], ending: _Ending, undecided: int
    ) -> tuple[list[_Match], int]:
        """Match after match, in order of their beginnings, each with all that overlaps with it."""
        decided: list[_Match] = []
        current: _Match | None = None
        shape: _Match | None = None
        for each in found:
            if each.start >= undecided:
                break
            if current is not None and each.start >= current.end:
                decided.append(current)
                current = shape = None
            if isinstance(each, _Match):
                match = each
            elif shape is not None and shape.lead <= each.start < shape.tail:
                continue
            elif ending is _Ending.MORE and each.is_undecided(data):
                undecided = each.start
                break
            elif (told := each.match(data, cut=ending is _Ending.UNREAD)) is not None:
                match = shape = told
            else:
                continue
            if current is None:
                current = replace(match)
            # What was cut at the end of a window is as long as it is.
            elif match.end - current.start <= self.longest or ending is _Ending.UNREAD:
                current.absorb(match)
        if current is not None:
            if current.end <= undecided:
                decided.append(current)
            else:
                undecided = current.start
        return decided, undecided

    def _known(self, start: int, end: int, number: int) -> _Match:
        return _Match(start, end, self._names[number], True, start, end)

    def _values(self, data: bytes) -> list[_Match]:
        """Every occurrence of a known form: of those that begin together, the longest."""
        windows: list[tuple[int, int]] = []
        for _, start, end in self._leftmost.find_matches_as_indexes(data):
            # One that overlaps with another begins inside of it.
            reach = end + self._longest_form - 1
            if windows and start < windows[-1][1]:
                windows[-1] = (windows[-1][0], reach)
            else:
                windows.append((start, reach))
        longest: dict[int, tuple[int, int]] = {}
        for begin, reach in windows:
            for number, start, end in self._every.find_matches_as_indexes(
                memoryview(data)[begin:reach], overlapping=True
            ):
                if longest.get(begin + start, (0, 0))[0] < end - start:
                    longest[begin + start] = (end - start, number)
        return [self._known(start, start + size, number) for start, (size, number) in longest.items()]

    def _begun_value(self, data: bytes, fewest: int) -> tuple[int, int] | None:
        """Where the first form begins that `data` ends in the midst of, with at least `fewest` bytes; and which."""
        if not self._forms:
            return None
        base = max(0, len(data) - self._longest_form + 1)
        for _, at, _ in self._heads.find_matches_as_indexes(memoryview(data)[base:], overlapping=True):
            if len(data) - base - at >= fewest and (number := self._form_that_begins(data[base + at :])) is not None:
                return base + at, number
        for size in range(min(_HEAD - 1, len(data)), fewest - 1, -1):
            begun = data[len(data) - size :]
            if begun in self._short_heads and (number := self._form_that_begins(begun)) is not None:
                return len(data) - size, number
        return None

    def _form_that_begins(self, begun: bytes) -> int | None:
        """A form that begins like this and goes on."""
        number = bisect_right(self._forms, begun)
        return number if number < len(self._forms) and self._forms[number].startswith(begun) else None

    def _cut_off(self, data: bytes) -> _Match | None:
        """What at the front of `data` may be the rest of a secret that began before it."""
        best = 0, _CUT_OFF, False
        head = data[:LEAST_CUT]
        if len(head) == LEAST_CUT:
            for number, form in enumerate(self._forms):
                at = form.find(head, 1)
                while at > 0:
                    rest = form[at:]
                    if data.startswith(rest) or rest.startswith(data):
                        size = min(len(rest), len(data))
                        if size > best[0]:
                            best = size, self._names[number], True
                        break
                    at = form.find(head, at + 1)
        if (key := CUT_OFF_KEY.match(data)) is not None and key.end() > best[0]:
            best = key.end(), "private-key", False
        if (token := CUT_OFF.match(data)) is not None and token.end() > best[0]:
            best = token.end(), _CUT_OFF, False
        size, name, known = best
        return _Match(0, size, name, known, 0, size) if size else None

    def _shown(self, data: bytes, match: _Match) -> Piece:
        label = self._labels.get(match.name) if match.known else b"[redacted:%b]" % match.name.encode()
        assert label is not None
        shown = data[match.start : match.lead] + label + data[match.tail : match.end]
        return Piece(shown, match.end - match.start, match.name)


class RedactionStream:
    """The bytes of one stream on their way. Holds back what may be the beginning of a secret."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = b""
        self._front: _Match | None = None
        self._counts: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Bytes held back: at most twice `Redactor.longest`."""
        return len(self._held)

    @property
    def counts(self) -> Mapping[str, int]:
        """How often each secret was redacted so far."""
        return self._counts

    def begin_inside(self, data: bytes) -> None:
        """The stream has begun before `data`, which comes next and all at once."""
        self._front = self._redactor._cut_off(data)

    def feed(self, data: bytes) -> list[Piece]:
        """What can be shown now that these bytes have come."""
        pieces: list[Piece] = []
        for at in range(0, len(data), _BLOCK):
            self._held += data[at : at + _BLOCK]
            pieces += self._take(_Ending.MORE)
        return pieces

    def end(self, ending: _Ending = _Ending.NOTHING) -> list[Piece]:
        """What was held back, now that no more bytes come."""
        return self._take(ending)

    def _take(self, ending: _Ending) -> list[Piece]:
        data, front = self._held, self._front
        if not data:
            return []
        matches, undecided = self._redactor._decide(data, ending, front)
        if undecided > 0:
            self._front = None
        self._held = data[undecided:]
        return list(self._pieces(data, matches, undecided))

    def _pieces(self, data: bytes, matches: list[_Match], end: int) -> Iterator[Piece]:
        at = 0
        for match in matches:
            if match.start > at:
                yield Piece(data[at : match.start], match.start - at, None)
            self._counts[match.name] += 1
            yield self._redactor._shown(data, match)
            at = match.end
        if end > at:
            yield Piece(data[at:end], end - at, None)


_SHAPES_BY_TRIGGER = {
    word: [shape for shape in SHAPES if word in shape.triggers] for word in {w for s in SHAPES for w in s.triggers}
}
_TRIGGER_SHAPES = list(_SHAPES_BY_TRIGGER.values())
_TRIGGER_WORDS = BytesAhoCorasick(list(_SHAPES_BY_TRIGGER))
_TRIGGERS_BEGUN = frozenset(word[:end] for word in _SHAPES_BY_TRIGGER for end in range(1, len(word)))
_LONGEST_TRIGGER = max(map(len, _SHAPES_BY_TRIGGER))


def _triggers(data: bytes) -> list[_Trigger]:
    found: dict[int, _Trigger] = {}
    for number, start, _ in _TRIGGER_WORDS.find_matches_as_indexes(data, overlapping=True):
        shapes = _TRIGGER_SHAPES[number]
        if start in found:
            shapes = found[start].shapes + shapes
        found[start] = _Trigger(start, shapes)
    return list(found.values())


def _begun_trigger(data: bytes) -> int:
    """Where the first trigger begins that `data` ends in the midst of; its length when there is none."""
    for size in range(min(_LONGEST_TRIGGER - 1, len(data)), 0, -1):
        if data[len(data) - size :] in _TRIGGERS_BEGUN:
            return len(data) - size
    return len(data)


def _in_order(matches: list[_Match], triggers: list[_Trigger]) -> list[_Match | _Trigger]:
    """By their beginnings; of those that begin together known values first, longer before shorter ones."""
    return sorted([*matches, *triggers], key=_order)


def _order(found: _Match | _Trigger) -> tuple[int, int]:
    return found.start, -found.end if isinstance(found, _Match) else 1


def _not_too_nested(forms: Iterable[bytes]) -> Iterator[bytes]:
    """The forms without those that end with more than `_MOST_NESTED` others, one inside of the next."""
    ends: list[bytes] = []
    for backwards in sorted(form[::-1] for form in forms):
        while ends and not backwards.startswith(ends[-1]):
            ends.pop()
        if len(ends) < _MOST_NESTED:
            ends.append(backwards)
            yield backwards[::-1]
