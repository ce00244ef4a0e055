"""Reading the launcher's answer out of a request's output, where stdout, stderr and noise come merged."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

from sandhold.contracts.excerpts import beginning_of

State = Literal["ended", "running", "interrupted", "cleaned", "absent"]
"""`interrupted`: started, without an end, and nothing runs it. `cleaned`: over, and its folder was removed."""
Reason = Literal["timed_out", "cancelled", "output_limit"]
_STATES = frozenset(get_args(State))
_REASONS = frozenset(get_args(Reason))


class TornAnswer(Exception):
    """The output does not hold a whole answer: the launcher was killed, or something else ran in its place."""

    def __init__(self, why: str, output: str) -> None:
        super().__init__(f"{why}; the request printed {beginning_of(output, 200)!r}")


@dataclass(frozen=True)
class Captured:
    """What a stream wrote: `size` bytes in all, of which the first and the last are here, or what is shown of them."""

    size: int = 0
    head: bytes = b""
    tail: bytes = b""
    """Empty when `head` is everything."""
    stands_for: int | None = None
    """How many bytes of the stream head and tail stand for, where that is not their length."""
    redactions: int = 0
    """How many secrets were replaced in them."""

    @property
    def unseen(self) -> int:
        """Bytes between head and tail that are not here."""
        here = len(self.head) + len(self.tail) if self.stands_for is None else self.stands_for
        return max(0, self.size - here)


@dataclass(frozen=True)
class Slice:
    """A piece of a stream: `data` begins at the offset `start` of the `size` bytes there are, or were a moment ago."""

    size: int
    start: int
    data: bytes = b""

    def beyond(self, offset: int) -> bytes:
        """The part from `offset` on. Raises TornAnswer when there is a gap before the slice."""
        if self.start > offset and self.data:
            raise TornAnswer(f"a slice begins at {self.start} instead of {offset}", "")
        return self.data[offset - self.start :]


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
    cap_bytes: int | None = None
    """With the reason `output_limit`: the limit."""
    fingerprint: str | None = None
    stdout: Captured = field(default_factory=Captured)
    stderr: Captured = field(default_factory=Captured)
    stdout_slice: Slice | None = None
    """What a request that knows a part of the output is told beyond that."""
    stderr_slice: Slice | None = None
    left_alive: bool = False
    """Whether something of it could not be killed when it was ended, and may still run."""
    disk_was_full: bool = False
    """Whether nothing could be written when the command began or ended: then output may be missing."""
    reopens_output: bool = False
    """Whether its script opens its own output anew: what was written before is lost then."""


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
    start = _line_start(output, f"<{nonce} ")
    end = _line_start(output, f"{nonce}>")
    if start < 0 or end < start or output[end + len(nonce) + 1 : end + len(nonce) + 2].strip():
        raise TornAnswer("the launcher did not answer", output)
    first_line = output.index("\n", start)
    try:
        return _answer(int(output[start:first_line].split()[1]), output, first_line + 1, end)
    except (ValueError, IndexError) as error:
        raise TornAnswer(f"the launcher's answer cannot be read ({error})", output) from error


def _line_start(output: str, beginning: str) -> int:
    """Where the first line that begins so does; -1 when none does."""
    if output.startswith(beginning):
        return 0
    found = output.find(f"\n{beginning}")
    return found if found < 0 else found + 1


def _answer(clock: int, output: str, start: int, end: int) -> Answer:
    """The answer between the lines that frame it. A report with output that cannot be read is left out, to be asked for
    again; raises ValueError when that leaves none."""
    reports: list[CallReport] = []
    refusal: Refusal | None = None
    unreadable: ValueError | None = None
    skipping = False
    for words, payload in _sections(output, start, end):
        match words[0]:
            case "@call":
                reports.append(_report(words[1:]))
                skipping = False
            case "@error":
                refusal = Refusal(words[1], " ".join([*words[2:], *payload.split()]))
            case _ if not skipping:
                try:
                    reports[-1] = _with_section(reports[-1], words, payload)
                except ValueError as error:
                    unreadable, skipping = error, True
                    reports.pop()
    if unreadable is not None and not reports:
        raise unreadable
    return Answer(clock, reports, refusal)


def _with_section(report: CallReport, words: list[str], payload: str) -> CallReport:
    match words:
        case ["@stdout", *_]:
            return replace(report, stdout=_captured(words, payload))
        case ["@stderr", *_]:
            return replace(report, stderr=_captured(words, payload))
        case ["@slice", "stdout", *_]:
            return replace(report, stdout_slice=_slice(words, payload))
        case ["@slice", "stderr", *_]:
            return replace(report, stderr_slice=_slice(words, payload))
        case ["@full"]:
            return replace(report, disk_was_full=True)
        case ["@reopens"]:
            return replace(report, reopens_output=True)
        case _:
            raise ValueError(f"{words[0]} is unknown")


def _sections(output: str, start: int, end: int) -> Iterator[tuple[list[str], str]]:
    """Each line that begins with @, as words, with the text that follows it.

    By searching, not line by line: an answer may hold megabytes.
    """
    while start < end:
        if output[start] != "@":
            start = output.find("\n@", start, end) + 1 or end
            continue
        line_end = output.index("\n", start, end)
        following = output.find("\n@", line_end, end) + 1 or end
        yield output[start:line_end].split(), output[line_end + 1 : following]
        start = following


def _report(words: list[str]) -> CallReport:
    folder, state, *told = words
    if state not in _STATES:
        raise ValueError(f"state {state} is unknown")
    report = CallReport(folder=folder, state=cast("State", state))
    if len(told) != 5:
        return report  # of what it tells more, a part lies in the command's reach
    code, began, ended, why, fingerprint = told
    reason, *more = why.split(":")
    return replace(
        report,
        exit_code=_number(code),
        began=_number(began),
        ended=_number(ended),
        reason=cast("Reason", reason) if reason in _REASONS else None,
        cap_bytes=_number(more[0]) if more else None,
        left_alive="alive" in more,
        fingerprint=None if fingerprint == "-" else fingerprint,
    )


def _captured(words: list[str], payload: str) -> Captured:
    """A stream: its size (`-` when the bytes say it), its encoding, and the bytes, with `.tail` before the last."""
    _, size, encoding = words
    before, _, after = payload.partition(".tail\n")
    head, tail = _decoded(encoding, before), _decoded(encoding, after)
    return Captured(len(head) if size == "-" else int(size), head, tail)


def _slice(words: list[str], payload: str) -> Slice:
    _, _, size, start, encoding = words
    return Slice(int(size), int(start), b"" if encoding == "-" else _decoded(encoding, payload))


def _number(word: str) -> int | None:
    """The number, or None for `-` and for what a command may have put in its place: the folder is in its reach."""
    return int(word) if word.isdecimal() and len(word) <= 18 else None


def _decoded(encoding: str, text: str) -> bytes:
    if encoding == "hex":
        return bytes.fromhex(text)
    if encoding != "base64":
        raise ValueError(f"encoding {encoding} is unknown")
    return base64.b64decode(text.replace("\n", ""), validate=True)
