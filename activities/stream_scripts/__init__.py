"""The programs behind streams into and out of a sandbox, and the lines in which their requests answer.

They are POSIX sh and travel in the environment of a request, like everything they work on: nothing is ever spliced
into a command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMMAND = 'exec sh -c "$SANDHOLD_SCRIPT"'
"""Runs a program given as SANDHOLD_SCRIPT, whichever shell the provider hands commands to."""


def _program(*parts: str) -> str:
    """These parts as they are sent: one behind the other, without their comments."""
    texts = (Path(__file__).with_name(f"{part}.sh").read_text() for part in parts)
    lines = (line for text in texts for line in text.splitlines())
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#")) + "\n"


PREPARE, SEND, TAKE, RECEIVE, PUT, DROP = (
    _program("common", name) for name in ("prepare", "send", "take", "receive", "put", "drop")
)
PACK, PLACE, UNPACK = _program("pack"), _program("place"), _program("unpack")
"""What streams run: to bring a directory out, to put a file in its place, to unpack an archive."""


@dataclass(frozen=True)
class Told:
    """One line of an answer: what it is about, and the rest, which may be a path."""

    word: str
    rest: str

    def number(self) -> int:
        """The number that the rest begins with. Raises ValueError."""
        return int(self.rest.split(" ", 1)[0])


def told(nonce: str, output: str) -> Iterator[Told]:
    """The lines of the answer in a program's output, whatever else was printed around them; broken ones left out."""
    for found in re.finditer(rf"^@{nonce} (\S+)(?: (.*))? \.$", output, re.MULTILINE):
        yield Told(found[1], found[2] or "")
