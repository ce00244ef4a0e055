"""From what a command wrote to what the caller reads: cleaned, within a budget, errors first, and counted.

Pure: the same bytes give the same text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from activities.launcher import CallReport, Captured
from sandhold.contracts.fields import CommandStatus
from sandhold.contracts.names import output_folder
from sandhold.contracts.tools import ExecResult, OutputDetail, OutputFiles
from sandhold.storage import Stream

KIB = 1024
BUDGETS: dict[OutputDetail, int] = {
    "concise": 2 * KIB,
    "normal": 8 * KIB,
    "verbose": 16 * KIB,
    "full": 64 * KIB,
}
AUTO_SUCCESS_BYTES = 512
AUTO_FAILURE_BYTES = 8 * KIB
STDERR_BYTES = 4 * KIB

_MARKER_BYTES = 64
"""Room for one line that counts what was left out."""
_REGIONS = 4
"""Error regions kept at most; the end of the output, where most errors are summed up, is kept anyway."""
_REGION_SHARE = 0.4
_LINES_BEFORE, _LINES_AFTER = 1, 6

# ECMA-48: control sequences (CSI), strings (OSC, DCS, SOS, PM, APC) to their terminator, two-character escapes.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"
    r"|\x1b[ -/]*[0-~]"
    r"|\x1b"
)
_ERROR_LINE = re.compile(
    r"\b(?:error|fatal|panic(?:ked)?|exception|traceback|segmentation fault|assertion\w*|undefined reference"
    r"|cannot|could not|permission denied|no such file|not found|denied)\b"
    r"|\b[A-Z]\w*(?:Error|Exception)\b"
    r"|^(?:FAILED|FAIL|E )",
    re.IGNORECASE,
)

_EXIT_HINTS = {
    126: "Exit code 126: the command was found but is not executable.",
    127: "Exit code 127: a command was not found. Install it, or check its name and the PATH.",
    137: "Exit code 137: killed by SIGKILL, mostly because the sandbox ran out of memory or of disk. "
    "Delete what is not needed, or use a larger size.",
    139: "Exit code 139: crashed with a segmentation fault.",
    141: "Exit code 141: wrote to a pipe that nobody read any more.",
    143: "Exit code 143: ended by SIGTERM.",
}


_BEYOND_CAP = "Only the first {kept} bytes of the output were kept, because the command wrote so much more than it may."
_NO_ROOM = (
    "The session's storage is full (storage_quota_bytes), so only the beginning of the output was kept there. "
    "Files that are not needed can be deleted from it."
)


@dataclass(frozen=True)
class Shown:
    """What the caller gets to read of a stream."""

    text: str
    truncated: bool


def exec_result(
    call_id: str,
    report: CallReport,
    detail: OutputDetail,
    *,
    asked_to_end: bool = False,
    time_is_up: bool = False,
    redactions: int | None = None,
) -> ExecResult:
    """The result of a command that is over, by a report that is redacted.

    `asked_to_end` says that somebody has asked to end it, `time_is_up` that its timeout made us; `redactions` is how
    many secrets were replaced in the whole output, by default those in the report.
    """
    ended = status_of(report, asked_to_end=asked_to_end, time_is_up=time_is_up)
    failed = ended != "completed" or report.exit_code != 0
    budget = stdout_budget(detail, failed=failed)
    stdout = shown(report.stdout, budget, failed=failed)
    stderr = shown(report.stderr, min(budget, STDERR_BYTES), failed=failed)
    truncated = stdout.truncated or stderr.truncated
    return ExecResult(
        status=ended,
        exit_code=report.exit_code,
        stdout=stdout.text,
        stderr=stderr.text,
        truncated=truncated,
        stdout_bytes=report.stdout.size,
        stderr_bytes=report.stderr.size,
        redactions=report.stdout.redactions + report.stderr.redactions if redactions is None else redactions,
        duration_ms=_duration_ms(report),
        call_id=call_id,
        hint=_hint(ended, report, truncated=truncated, detail=detail),
    )


def with_files(result: ExecResult, *, whole: bool = True, cut_at: int | None = None) -> ExecResult:
    """The result of a command whose output is in session storage; `whole` unless there was no room for all of it.

    `cut_at` is how many bytes of stdout and stderr were kept of a command that wrote far more than its cap.
    """
    call_id = result.call_id
    kept = whole and cut_at is None
    files = OutputFiles(stdout=output_folder(call_id, "stdout"), stderr=output_folder(call_id, "stderr"), whole=kept)
    why = [None if whole else _NO_ROOM, None if cut_at is None else _BEYOND_CAP.format(kept=cut_at)]
    hint = " ".join(filter(None, [result.hint, *why])) or None
    return result.model_copy(update={"output_files": files, "hint": hint})


def with_loss(result: ExecResult, emptied_at: Mapping[Stream, int]) -> ExecResult:
    """The result of a command that emptied streams of its output when so many bytes of them had been stored."""
    if not emptied_at:
        return result
    hints = [
        f"The command emptied its own {stream}: only the first {stored} bytes that it wrote there were stored."
        for stream, stored in emptied_at.items()
    ]
    files = result.output_files and result.output_files.model_copy(update={"whole": False})
    return result.model_copy(update={"output_files": files, "hint": " ".join(filter(None, [result.hint, *hints]))})


def status_of(report: CallReport, *, asked_to_end: bool = False, time_is_up: bool = False) -> CommandStatus:
    """What became of the command; the arguments are those of `exec_result`."""
    match report.state:
        case "running":
            return "running"
        case "ended":
            # One that wrote too much is cancelled, by us.
            return "cancelled" if report.reason == "output_limit" else report.reason or "completed"
        case _:
            # It could not put its end on record any more.
            return "cancelled" if asked_to_end else "timed_out" if time_is_up else "interrupted"


def whole_characters(data: bytes) -> int:
    """`len(data)` without the beginning of a UTF-8 character at the end."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 2 if 0xC2 <= byte < 0xE0 else 3 if 0xE0 <= byte < 0xF0 else 4 if 0xF0 <= byte < 0xF5 else 1
        return len(data) - back if length > back else len(data)
    return len(data)


def stdout_budget(detail: OutputDetail, *, failed: bool) -> int:
    """Bytes of stdout that the caller gets at most."""
    if detail == "auto":
        return AUTO_FAILURE_BYTES if failed else AUTO_SUCCESS_BYTES
    return BUDGETS[detail]


def shown(captured: Captured, budget: int, *, failed: bool) -> Shown:
    """The stream as text of at most `budget` bytes of UTF-8.

    What does not fit is replaced by lines that count it. Of a failed command, the surroundings of its first errors
    are kept before anything else; of the rest the head gets a fifth and the tail the other four.
    """
    head = clean(captured.head).encode()
    tail = clean(captured.tail).encode()
    if not captured.unseen and len(head) + len(tail) <= budget:
        return Shown((head + tail).decode(), truncated=False)
    data = head + tail
    seam = len(head) if captured.unseen else None
    spans = _kept_spans(data, budget, seam, failed=failed)
    return Shown(_joined(data, spans, seam, captured.unseen), truncated=True)


def clean(raw: bytes) -> str:
    """Text without colours and other escapes, with overwritten progress collapsed and invalid UTF-8 replaced."""
    text = _ESCAPES.sub("", raw.decode("utf-8", "replace"))
    if "\r" not in text:
        return text
    return "\n".join(_last_overwrite(line) for line in text.split("\n"))


def _last_overwrite(line: str) -> str:
    """What a line of a terminal shows at the end: the text after its last carriage return that has any."""
    return next((part for part in reversed(line.split("\r")) if part), "")


Span = tuple[int, int]


def _kept_spans(data: bytes, budget: int, seam: int | None, *, failed: bool) -> list[Span]:
    """The byte ranges to keep, in order and apart, which fit the budget together with the lines between them."""
    regions = _error_spans(data, int(budget * _REGION_SHARE)) if failed else []
    markers = len(regions) + 1 + (seam is not None)
    left = max(0, budget - markers * _MARKER_BYTES - sum(end - start for start, end in regions))
    head = _back_to_boundary(data, min(left // 5, len(data)))
    tail = _on_to_boundary(data, max(head, len(data) - (left - left // 5)))
    return _merged([(0, head), *regions, (tail, len(data))])


def _error_spans(data: bytes, budget: int) -> list[Span]:
    """The surroundings of the first lines that look like an error, together at most `budget` bytes."""
    lines = _line_spans(data)
    spans: list[Span] = []
    free = 0
    for number, (start, end) in enumerate(lines):
        if number < free or _ERROR_LINE.search(data[start:end].decode("utf-8", "replace")) is None:
            continue
        last = min(number + _LINES_AFTER, len(lines) - 1)
        first = max(number - _LINES_BEFORE, free)
        # A region that is too large gives up its surroundings first; a line that is too large is no region.
        for span in ((lines[first][0], lines[last][1]), (start, lines[last][1]), (start, end)):
            if span[1] - span[0] <= budget:
                spans.append(span)
                budget -= span[1] - span[0]
                free = last + 1
                break
        if len(spans) == _REGIONS:
            break
    return spans


def _line_spans(data: bytes) -> list[Span]:
    spans: list[Span] = []
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        spans.append((start, end))
        start = end
    return spans


def _back_to_boundary(data: bytes, end: int) -> int:
    """`end`, moved back to the end of a line when one lies in the second half, else of a character."""
    if end >= len(data):
        return len(data)
    newline = data.rfind(b"\n", end // 2, end)
    if newline >= 0:
        return newline + 1
    while end > 0 and _inside_character(data, end):
        end -= 1
    return end


def _on_to_boundary(data: bytes, start: int) -> int:
    """`start`, moved on to the beginning of a line when one lies in the first half, else of a character."""
    if start == 0:
        return 0
    newline = data.find(b"\n", start - 1, start + (len(data) - start) // 2)
    if newline >= 0:
        return newline + 1
    while start < len(data) and _inside_character(data, start):
        start += 1
    return start


def _inside_character(data: bytes, index: int) -> bool:
    return index < len(data) and data[index] & 0xC0 == 0x80


def _merged(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _joined(data: bytes, spans: Sequence[Span], seam: int | None, unseen: int) -> str:
    """The spans with a line between them that counts what was left out; `unseen` bytes are missing at the seam."""
    parts: list[bytes] = []
    position = 0
    for start, end in [*spans, (len(data), len(data))]:
        gap = unseen if seam is not None and position <= seam <= start else 0
        if gap or start > position:
            parts.append(_marker(data[position:start], gap, parts))
        if seam is not None and start < seam < end:
            parts += [data[start:seam], _marker(b"", unseen, [data[start:seam]]), data[seam:end]]
            seam = None
        else:
            parts.append(data[start:end])
            seam = None if gap else seam
        position = end
    return b"".join(parts).decode()


def _marker(left_out: bytes, unseen: int, before: Sequence[bytes]) -> bytes:
    lines = left_out.count(b"\n")
    count = f"{len(left_out) + unseen} bytes" if unseen or not lines else f"{lines} lines, {len(left_out)} bytes"
    previous = next((part for part in reversed(before) if part), b"\n")
    begin = "" if previous.endswith(b"\n") else "\n"
    return f"{begin}[... {count} left out ...]\n".encode()


def _duration_ms(report: CallReport) -> int | None:
    """From begin to end by the sandbox's own clock; None when its end is not known, as that of an interrupted one."""
    if report.began is None or report.ended is None:
        return None
    return max(0, report.ended - report.began) * 10


def _hint(status: str, report: CallReport, *, truncated: bool, detail: OutputDetail) -> str | None:
    hints = []
    match status:
        case "timed_out":
            hints.append(
                "The time limit was reached, and the command was ended with everything it started. "
                "Give a larger timeout, or do less at once."
            )
        case "cancelled" if report.reason == "output_limit":
            cap = f"{report.cap_bytes} bytes" if report.cap_bytes else "its limit"
            hints.append(
                f"The command wrote more than {cap}, the most that a command may here, and was ended with everything "
                "it started. Let it write less, or into a file."
            )
        case "cancelled":
            hints.append("The command was cancelled; it may have had part of its effect.")
        case "interrupted":
            hints.append(
                "The command was cut off from outside: the sandbox stopped, or ran out of memory or processes. "
                "It may have had part of its effect; it was not run again."
            )
        case _ if report.exit_code is not None and report.exit_code in _EXIT_HINTS:
            hints.append(_EXIT_HINTS[report.exit_code])
    if report.left_alive:
        hints.append("Some of it could not be killed, and may still run.")
    if report.disk_was_full:
        hints.append(
            "The sandbox's disk was full: output of the command, and what it wrote, may be missing. "
            "Delete what is not needed, or use a larger sandbox."
        )
    if report.reopens_output:
        hints.append(
            "The command opens its own output anew (as `> /dev/stderr` does), which empties it: what it had written "
            "there before is lost. Write with `>&2` or `>&1`, or append with `>>`."
        )
    if truncated and detail != "full":
        hints.append("Output was left out; read it with `daytona_command`, or ask for more with `output` next time.")
    elif truncated:
        hints.append("Output was left out; read it with `daytona_command`.")
    return " ".join(hints) or None
