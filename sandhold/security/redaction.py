"""Secrets become `[redacted:NAME]`: the values that are known, in every form they take, and tokens of known shapes.

What is shown depends on the bytes alone, never on how they arrived. A match covers every secret that overlaps with it,
so that no end of one is left beside another. A chain of such secrets that becomes too long is several matches without a
gap between them: each next one begins where a secret does. Nothing before a match decides about it: reading that begins
anywhere outside of matches, or with one, finds the same ones. Memory and time per byte are bounded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from sandhold.contracts.excerpts import CUT
from sandhold.security.known_values import JoinedValues, KnownValues
from sandhold.security.token_shapes import (
    LEAST_CUT,
    LONGEST_SHAPE,
    LONGEST_WITH_LEAD,
    Shape,
    begun_trigger,
    cut_off_token,
    triggers,
)

_BLOCK = 128 * 1024
"""Bytes that are looked at together."""
_NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9_.:-]")
_LONGEST_LABEL = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """What becomes of some bytes of a stream."""

    data: bytes
    """What to show: the bytes themselves, or `[redacted:NAME]`, with the words around it that tell of the secret."""
    size: int
    """How many bytes of the stream it stands for."""
    name: str | None
    """Of the secret; None for bytes as they are."""


_Found = tuple[int, int, "int | Shape | _Match"]
"""Where something begins, the negative of where it ends if that is known, and what: a known value by its number."""


class _Ending(Enum):
    """What comes behind the bytes at hand."""

    NOTHING = "nothing"
    MORE = "more, which is read next"
    UNREAD = "more, which is not read"


@dataclass(slots=True)
class _Match:
    """A secret, or several that overlap, from `start` to `end`; what is not between `lead` and `tail` is shown."""

    start: int
    end: int
    name: str
    known: bool
    """Whether it is a known value, whose name says more than that of a shape."""
    lead: int
    tail: int

    def absorb(self, other: _Match) -> None:
        """Cover what another match covers, which begins in this one."""
        if other.lead < self.lead or other.tail > self.tail or other.end > self.end:
            self.end = max(self.end, other.end)
            self.lead, self.tail = self.start, self.end
        if other.known and not self.known:
            self.name, self.known = other.name, True

    def cut_at(self, end: int) -> _Match:
        """The match up to where another one begins that covers all the rest of it."""
        return replace(self, end=end, lead=min(self.lead, end), tail=min(self.tail, end))


class Redactor:
    """The secrets known to a session, and the shapes, ready to be searched for. Immutable and cheap to share."""

    def __init__(self, secrets: Mapping[str, str | bytes] | JoinedValues) -> None:
        """`secrets` by name. Values shorter than `secret_forms.SHORTEST_SECRET` bytes are not searched for."""
        self._values = secrets if isinstance(secrets, JoinedValues) else KnownValues(secrets)
        self._longest_chain = max(4 * self._values.longest, 256)
        self._longest_mixed = max(self._values.longest + LONGEST_SHAPE, self._longest_chain)
        self.longest = self._longest_mixed + (LONGEST_WITH_LEAD if self._values.longest else 0)
        """Bytes: no match spans more, and as much context before a place is enough to tell if it is in a match."""
        self._labels: dict[str, bytes] = {}

    @property
    def pattern_bytes(self) -> int:
        """Of all that is searched for: the measure of the memory that this takes."""
        return self._values.size

    def _label(self, name: str) -> bytes:
        if (label := self._labels.get(name)) is None:
            told = any(self._values.are_in(text.encode("utf-8", "replace")) for text in (name, _shown(name)))
            label = self._labels[name] = _label("secret" if told else _shown(name))
        return label

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

    def redact_excerpt(self, text: str) -> str:
        """As `redact_text`, for a text of which something may have been left out where the mark CUT stands: what may be
        a part of a secret beside it is redacted as well."""
        parts = self.redact_text(text).split(CUT)
        if len(parts) == 1:
            return parts[0]
        last = len(parts) - 1
        return CUT.join(self._part(part, begins=at == 0, ends=at == last) for at, part in enumerate(parts))

    def _part(self, text: str, *, begins: bool, ends: bool) -> str:
        pieces = self.pieces(text.encode("utf-8", "surrogatepass"), begins=begins, ends=ends)
        return b"".join(piece.data for piece in pieces).decode("utf-8", "surrogatepass")

    def pieces(self, data: bytes, *, begins: bool = True, ends: bool = True) -> list[Piece]:
        """A window of a stream. Together the pieces stand for all of `data`.

        With `begins` or `ends` false the stream goes on before or behind the window, and what may be a part of a secret
        that was cut there, from 4 bytes on, is redacted as well: at the end also the beginning of any token, at the
        front also what looks like the rest of one.
        """
        stream = RedactionStream(self, None if begins else self._cut_off(data))
        pieces = stream.feed(data)
        return pieces + stream._take(_Ending.NOTHING if ends else _Ending.UNREAD)

    def _cut_off(self, data: bytes) -> _Match | None:
        token = cut_off_token(data)
        value = self._values.cut_off(data, LEAST_CUT)
        if value is not None and (token is None or value[1] >= token[1]):
            return self._value(value[0], 0, value[1])
        return None if token is None else _Match(0, token[1], token[0], False, 0, token[1])

    def _value(self, number: int, start: int, end: int) -> _Match:
        return _Match(start, end, self._values.names[number], True, start, end)

    def _decide(self, data: bytes, ending: _Ending, front: _Match | None) -> tuple[list[_Match], int]:
        """The matches that no byte behind `data` can change, and where what is undecided begins."""
        undecided = len(data)
        found: list[_Found] = [] if front is None else [(0, -front.end, front)]
        if ending is _Ending.MORE:
            if (begun := self._values.begun(data, 1)) is not None:
                undecided = begun[1]
            if undecided == 0:
                return [], 0
            undecided = min(undecided, begun_trigger(data))
        elif ending is _Ending.UNREAD and (begun := self._values.begun(data, LEAST_CUT)) is not None:
            number, start = begun
            found.append((start, -len(data), self._value(number, start, len(data))))
        found += [
            (start, -end, self._value(number, start, end)) for number, start, end in self._values.occurrences(data)
        ]
        found += [(start, 0, shape) for start, shape in triggers(data)]
        if not found:
            return [], undecided
        # By their beginnings; of those that begin together values first, longer before shorter ones.
        found.sort(key=_place)
        return self._swept(data, found, ending, undecided)

    def _swept(self, data: bytes, found: list[_Found], ending: _Ending, undecided: int) -> tuple[list[_Match], int]:
        """Match after match, each with all that overlaps with it."""
        decided: list[_Match] = []
        current: _Match | None = None
        value: _Match | None = None
        """The longest of the known values that begin where the latest of them does."""
        end = token_from = token_to = 0
        for start, minus_end, each in found:
            if start >= undecided:
                break
            if current is not None and start >= end:
                decided.append(current)
                current, token_to = None, 0
            if isinstance(each, int):
                if value is None or value.start != start:
                    value = self._value(each, start, -minus_end)
                if current is not None and current.known and start >= current.lead and -minus_end <= current.tail:
                    continue
                match = self._value(each, start, -minus_end)
            elif isinstance(each, _Match):
                match = each
            elif token_from <= start < token_to:
                # A token inside of a token ends with it.
                continue
            elif ending is _Ending.MORE and each.is_undecided(data, start):
                undecided = start
                break
            elif ending is _Ending.UNREAD and each.is_cut(data, start):
                match = _Match(start, len(data), each.name, False, start, len(data))
            elif (token := each.pattern.match(data, start)) is not None:
                match = _Match(start, token.end(), each.name, False, *token.span(1))
            else:
                continue
            if current is None:
                current = match
            # What tells of a token is shown, and may be the end of what comes before: such a one begins no next part.
            elif (
                match.end <= end
                or match.lead > start
                or match.end - current.start <= self._most(current, match, token_to)
            ):
                current.absorb(match)
            else:
                decided.append(current.cut_at(start))
                # From here on nothing is remembered that reading from here on would not know.
                current, token_to = match, 0
                if value is not None and value.start == start and not match.known:
                    current = replace(value)
                    current.absorb(match)
            end = current.end
            if not match.known:
                token_from, token_to = match.lead, match.tail
        if current is not None:
            if end <= undecided:
                decided.append(current)
            else:
                undecided = current.start
        return decided, undecided

    def _most(self, current: _Match, match: _Match, token_to: int) -> int:
        """How long they may be together: values alone not long, as all of it is held back until its end is known."""
        return self._longest_chain if current.known and match.known and not token_to else self._longest_mixed

    def _shown(self, data: bytes, match: _Match) -> Piece:
        label = self._label(match.name) if match.known else _label(match.name)
        shown = data[match.start : match.lead] + label + data[match.tail : match.end]
        return Piece(shown, match.end - match.start, match.name)


class RedactionStream:
    """The bytes of one stream on their way. Holds back what may be the beginning of a secret."""

    def __init__(self, redactor: Redactor, front: _Match | None = None) -> None:
        self._redactor = redactor
        self._front = front
        """The rest of a secret that began before the first byte."""
        self._held = b""
        self._counts: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Bytes held back: at most twice `Redactor.longest`."""
        return len(self._held)

    @property
    def counts(self) -> Mapping[str, int]:
        """How often each secret was redacted so far."""
        return self._counts

    def feed(self, data: bytes) -> list[Piece]:
        """What can be shown now that these bytes have come."""
        pieces: list[Piece] = []
        for at in range(0, len(data), _BLOCK):
            self._held += data[at : at + _BLOCK]
            pieces += self._take(_Ending.MORE)
        return pieces

    def end(self) -> list[Piece]:
        """What was held back, now that no more bytes come."""
        return self._take(_Ending.NOTHING)

    def _take(self, ending: _Ending) -> list[Piece]:
        data = self._held
        if not data:
            return []
        front = None if self._front is None else replace(self._front)
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


def _place(found: _Found) -> tuple[int, int]:
    return found[0], found[1]


def _shown(name: str) -> str:
    return _NOT_IN_LABELS.sub("_", name)[:_LONGEST_LABEL]


def _label(name: str) -> bytes:
    return b"[redacted:%b]" % name.encode()
