"""The two programs that read and write files inside a sandbox, and the frame in which they answer.

They are POSIX sh and travel with each request, in its environment like everything they work on: nothing is
ever spliced into a command line.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path

READ = (Path(__file__).parent / "read.sh").read_text()
WRITE = (Path(__file__).parent / "write.sh").read_text()

COMMAND = 'exec sh -c "$SANDHOLD_SCRIPT"'
"""Runs a program given as SANDHOLD_SCRIPT, whichever shell the provider hands commands to."""

_FRAME = re.compile(r"^sandhold-file (\S+) (\d+) (\S+)(?: (\S+))?\n(.*?)\n?^sandhold-end$", re.MULTILINE | re.DOTALL)


class BrokenAnswer(ValueError):
    """The answer holds no whole frame: the program was killed, or never ran."""


@dataclass(frozen=True)
class ScriptAnswer:
    """What a program answered. `third` is a number of lines when reading, a hash when writing."""

    kind: str
    size: int
    third: str
    body: str
    encoding: str | None

    def data(self) -> bytes:
        """The bytes in the frame. Raises BrokenAnswer when they are damaged."""
        try:
            if self.encoding == "hex":
                return bytes.fromhex(self.body)
            return base64.b64decode("".join(self.body.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise BrokenAnswer("the bytes in the answer are damaged") from error


def parse_answer(output: str) -> ScriptAnswer:
    """The frame in a program's output, whatever else was printed around it. Raises BrokenAnswer without one."""
    frame = _FRAME.search(output)
    if frame is None:
        raise BrokenAnswer("the answer holds no whole frame")
    kind, size, third, encoding, body = frame.groups()
    return ScriptAnswer(kind, int(size), third, body, encoding)
