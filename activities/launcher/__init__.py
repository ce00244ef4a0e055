"""The command launcher: a POSIX sh program that runs inside the sandbox, and the requests that carry it there."""

from activities.launcher.answer import Answer, CallReport, Captured, Refusal, Slice, TornAnswer, parse_answer
from activities.launcher.request import (
    INLINE_SCRIPT_BYTES,
    UNKILLABLE_S,
    UNWANTED,
    LauncherRequest,
    Position,
    Script,
    clean_request,
    follow_request,
    inline_input,
    read_request,
    signal_request,
    start_request,
    stop_request,
    write_request,
)

__all__ = [
    "INLINE_SCRIPT_BYTES",
    "UNKILLABLE_S",
    "UNWANTED",
    "Answer",
    "CallReport",
    "Captured",
    "LauncherRequest",
    "Position",
    "Refusal",
    "Script",
    "Slice",
    "TornAnswer",
    "clean_request",
    "follow_request",
    "inline_input",
    "parse_answer",
    "read_request",
    "signal_request",
    "start_request",
    "stop_request",
    "write_request",
]
