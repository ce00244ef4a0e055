"""Patterns of which one can also tell whether the end of a text may be the beginning of a match.

A pattern is a row of parts, each of which takes what it can and gives nothing back. It looks at nothing before its
first byte, so that what it finds in a stream does not depend on where reading began.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """One of these words, the first that fits."""

    words: tuple[bytes, ...]

    @property
    def longest(self) -> int:
        return max(map(len, self.words))

    @property
    def whole(self) -> bytes:
        return b"(?>" + b"|".join(map(re.escape, self.words)) + b")"

    @property
    def cut(self) -> bytes:
        """Any beginning of a word."""
        beginnings = {word[:end] for word in self.words for end in range(len(word) + 1)}
        return b"(?:" + b"|".join(map(re.escape, sorted(beginnings, key=len, reverse=True))) + b")"


@dataclass(frozen=True)
class Run:
    """Between `fewest` and `most` times a unit: a regular expression for one byte, which may look further."""

    unit: bytes
    fewest: int
    most: int
    only_if: bytes = b""
    """A look ahead from where the run begins, into the run."""

    @property
    def longest(self) -> int:
        return self.most

    @property
    def whole(self) -> bytes:
        return b"%b(?:%b){%d,%d}+" % (self.only_if, self.unit, self.fewest, self.most)

    @property
    def cut(self) -> bytes:
        return b"(?:%b){0,%d}+" % (self.unit, self.most)


Part = Words | Run


def word(*words: bytes) -> Words:
    return Words(words)


def whole(parts: Sequence[Part]) -> bytes:
    """The expression for all parts."""
    return b"".join(part.whole for part in parts)


def cut(parts: Sequence[Part]) -> bytes:
    """The expression for everything up to the end of a text that may go on as, or go on being, all parts."""
    expression = rb"\Z"
    for part in reversed(parts):
        expression = b"(?:%b%b|%b\\Z)" % (part.whole, expression, part.cut)
    return expression
