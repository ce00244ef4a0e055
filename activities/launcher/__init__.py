"""The command launcher: a POSIX sh program that runs inside the sandbox, and the requests that carry it there."""

from activities.launcher.answer import Answer, CallReport, Captured, Refusal, TornAnswer, parse_answer
from activities.launcher.request import (
    INLINE_SCRIPT_BYTES,
    LauncherRequest,
    Script,
    follow_request,
    start_request,
    stop_request,
)

__all__ = [
    "INLINE_SCRIPT_BYTES",
    "Answer",
    "CallReport",
    "Captured",
    "LauncherRequest",
    "Refusal",
    "Script",
    "TornAnswer",
    "follow_request",
    "parse_answer",
    "start_request",
    "stop_request",
]
