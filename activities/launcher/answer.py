"""Reading the launcher's answer out of a request's output, where stdout, stderr and noise come merged."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

State = Literal["ended", "running", "interrupted", "absent"]
Reason = Literal["timed_out", "cancelled"]
_STATES = frozenset(get_args(State))
_REASONS = frozenset(get_args(Reason))


class TornAnswer(Exception):
    """The output does not hold a whole answer: the launcher was killed, or something else ran in its place."""

    def __init__(self, why: str, output: str) -> None:
        super().__init__(f"{why}; the request printed {output[:200]!r}")


@dataclass(frozen=True)
class Captured:
    """What a stream wrote: `size` bytes in all, of which the first and the last are here."""

    size: int = 0
    head: bytes = b""
    tail: bytes = b""
    """Empty when `head` is everything."""

    @property
    def unseen(self) -> int:
        """Bytes between head and tail that were not sent."""
        return max(0, self.size - len(self.head) - len(self.tail))


@dataclass(frozen=True)
class CallReport:
    """What the launcher says about one call. Times are hundredths of a second on the sandbox's clock."""

    folder: str
    state: State
    exit_code: int | None = None
    began: int | None = None
    ended: int | None = None
    reason: Reason | None = None
    """Why we ended it; None when it ended by itself."""
    fingerprint: str | None = None
    stdout: Captured = field(default_factory=Captured)
    stderr: Captured = field(default_factory=Captured)
    disk_was_full: bool = False
    """Whether nothing could be written when the command began or ended: then output may be missing."""


@dataclass(frozen=True)
class Refusal:
    """Why the launcher started nothing."""

    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Answer:
    clock: int
    """The sandbox's clock when the request came in."""
    reports: list[CallReport]
    refusal: Refusal | None = None


def parse_answer(nonce: str, output: str) -> Answer:
    """The answer in `output`. Raises TornAnswer when it is not there from beginning to end."""
    lines = output.splitlines()
    opening = next((i for i, line in enumerate(lines) if line.startswith(f"<{nonce} ")), None)
    closing = next((i for i, line in enumerate(lines) if line == f"{nonce}>"), None)
    if opening is None or closing is None or closing < opening:
        raise TornAnswer("the launcher did not answer", output)
    try:
        return _answer(int(lines[opening].split()[1]), lines[opening + 1 : closing])
    except (ValueError, IndexError) as error:
        raise TornAnswer(f"the launcher's answer cannot be read ({error})", output) from error


def _answer(clock: int, lines: list[str]) -> Answer:
    reports: list[CallReport] = []
    refusal: Refusal | None = None
    for words, payload in _sections(lines):
        match words[0]:
            case "@call":
                reports.append(_report(words[1:]))
            case "@stdout":
                reports[-1] = replace(reports[-1], stdout=_captured(words, payload))
            case "@stderr":
                reports[-1] = replace(reports[-1], stderr=_captured(words, payload))
            case "@full":
                reports[-1] = replace(reports[-1], disk_was_full=True)
            case "@error":
                refusal = Refusal(words[1], " ".join([*words[2:], *payload]))
            case unknown:
                raise ValueError(f"{unknown} is unknown")
    return Answer(clock, reports, refusal)


def _sections(lines: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Each line that begins with @, as words, with the lines that follow it."""
    words: list[str] = []
    payload: list[str] = []
    for line in lines:
        if line.startswith("@"):
            if words:
                yield words, payload
            words, payload = line.split(), []
        else:
            payload.append(line)
    if words:
        yield words, payload


def _report(words: list[str]) -> CallReport:
    folder, state, code, began, ended, reason, fingerprint = words
    if state not in _STATES:
        raise ValueError(f"state {state} is unknown")
    return CallReport(
        folder=folder,
        state=cast("State", state),
        exit_code=_number(code),
        began=_number(began),
        ended=_number(ended),
        reason=cast("Reason", reason) if reason in _REASONS else None,
        fingerprint=None if fingerprint == "-" else fingerprint,
    )


def _captured(words: list[str], payload: list[str]) -> Captured:
    """A stream: its size (`-` when the bytes say it), its encoding, and the bytes, with `.tail` before the last."""
    _, size, encoding = words
    split = payload.index(".tail") if ".tail" in payload else len(payload)
    head, tail = _decoded(encoding, payload[:split]), _decoded(encoding, payload[split + 1 :])
    return Captured(len(head) if size == "-" else int(size), head, tail)


def _number(word: str) -> int | None:
    """The number, or None for `-` and for what a command may have put in its place: the folder is in its reach."""
    return int(word) if word.isdecimal() and len(word) <= 18 else None


def _decoded(encoding: str, lines: list[str]) -> bytes:
    text = "".join(lines)
    if encoding == "hex":
        return bytes.fromhex(text)
    if encoding != "base64":
        raise ValueError(f"encoding {encoding} is unknown")
    return base64.b64decode(text, validate=True)
