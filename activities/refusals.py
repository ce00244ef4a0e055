"""What it means for the caller that the launcher did not do what it was asked for."""

from __future__ import annotations

from activities.launcher import Refusal, Script
from activities.launcher.access import torn
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.excerpts import beginning_of


def start_refused(refusal: Refusal, script: Script) -> Exception:
    """Nothing was started. The failure to raise: ToolFailure, or ApplicationError when another attempt may do."""
    match refusal.kind:
        case "cwd_missing":
            return ToolFailure(
                ErrorCode.PATH_NOT_FOUND,
                f"the directory {script.cwd} does not exist; nothing was run",
                hint="Create the directory first, or give another cwd.",
            )
        case "cwd_not_a_directory":
            return ToolFailure(ErrorCode.PATH_NOT_FOUND, f"{script.cwd} is not a directory; nothing was run")
        case "cwd_denied":
            return ToolFailure(ErrorCode.PERMISSION_DENIED, f"{script.cwd} may not be entered; nothing was run")
        case "no_mkfifo":
            return ToolFailure(
                ErrorCode.INVALID_ARGUMENTS,
                "standard input cannot be kept open in this sandbox: it has no mkfifo; nothing was run",
                hint="Call without stdin, or use an image with coreutils or busybox.",
            )
        case "folder":
            return _folder_refused(refusal.detail, "nothing was run")
        case "script" if _is_full(refusal.detail):
            return _disk_full("nothing was run")
        case kind:
            # The upload was lost, or no process could be started.
            return torn(f"the command was not started ({kind}) {beginning_of(refusal.detail, 300)}".rstrip())


def sending_refused(refusal: Refusal, call_id: str) -> Exception:
    """Nothing was written or signalled. The failure to raise, as for `start_refused`."""
    match refusal.kind:
        case "unknown":
            return ToolFailure(
                ErrorCode.INVALID_ARGUMENTS,
                f"no command {call_id} is in this sandbox",
                hint="List the sandbox's commands with action list.",
            )
        case "over":
            return ToolFailure(
                ErrorCode.CONFLICT, f"the command {call_id} has ended", hint="Read its output with action read."
            )
        case "no_stdin":
            return ToolFailure(
                ErrorCode.CONFLICT,
                f"the command {call_id} was started without standard input",
                hint="Start it again under a new call id with background and stdin.",
            )
        case "closed":
            return ToolFailure(ErrorCode.CONFLICT, f"the standard input of the command {call_id} was closed before")
        case "folder":
            return _folder_refused(refusal.detail, "nothing was sent")
        case kind:
            return torn(f"nothing was sent to the command ({kind})")


def _folder_refused(detail: str, consequence: str) -> ToolFailure:
    if _is_full(detail):
        return _disk_full(consequence)
    return ToolFailure(
        ErrorCode.PERMISSION_DENIED,
        f"the folder for commands cannot be written: {beginning_of(detail, 300)}",
        hint="~/.sandhold must be a directory that the sandbox's user can write to.",
    )


def _is_full(detail: str) -> bool:
    return "space left" in detail or "quota" in detail.lower()


def _disk_full(consequence: str) -> ToolFailure:
    return ToolFailure(
        ErrorCode.STORAGE_FULL,
        f"the sandbox's disk is full; {consequence}",
        hint="Delete what is not needed with a short command, or create a sandbox of a larger size.",
    )
