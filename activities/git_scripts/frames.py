"""Requests that run one of the programs, and the frame in which it answers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field


class BrokenAnswer(ValueError):
    """The answer holds no whole frame: the program was killed, or never ran."""


@dataclass(frozen=True)
class ScriptRequest:
    """A request that runs a program; its answer lies between two lines with `nonce`."""

    nonce: str
    env: dict[str, str] = field(repr=False)
    command: str = 'exec sh -c "$SANDHOLD_SCRIPT"'


def script_request(script: str, environment: dict[str, str]) -> ScriptRequest:
    """Run `script`, with what it works on in its environment."""
    nonce = secrets.token_hex(8)
    return ScriptRequest(nonce, {"SANDHOLD_SCRIPT": script, "SANDHOLD_NONCE": nonce, **environment, "LC_ALL": "C"})


def told_lines(nonce: str, output: str) -> list[tuple[str, str]]:
    """The lines of an answer, each as its first word and the rest.

    Raises BrokenAnswer when it is not there from beginning to end.
    """
    lines = output.split("\n")
    try:
        start = lines.index(f"<{nonce}")
        told = lines[start + 1 : lines.index(f"{nonce}>", start)]
    except ValueError as error:
        raise BrokenAnswer("the answer holds no whole frame") from error
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in told)]
