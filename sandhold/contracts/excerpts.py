"""Texts of others, cut to a length: where something was left out the mark CUT stands.

A secret of which only a part is left is recognised by nobody but who knows that there was more. Whoever redacts looks
for the mark, so whoever cuts what others have said cuts it here.
"""

from __future__ import annotations

CUT = "…"


def beginning_of(text: str, most: int) -> str:
    """The text if it has at most `most` characters, else its beginning and the mark."""
    return text if len(text) <= most else text[: most - len(CUT)] + CUT


def end_of(text: str, most: int) -> str:
    """The text if it has at most `most` characters, else the mark and its end, without a part of a word before it: by
    its rest alone no token is recognised."""
    if len(text) <= most:
        return text
    at = len(text) - most + len(CUT)
    _, blank, whole = text[at - 1 :].partition(" ")
    return CUT + (whole if blank else text[at:])
