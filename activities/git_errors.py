"""What went wrong with git, as errors that an agent can act on: by exit codes, and by what git says in English."""

from __future__ import annotations

import re

from activities.git_scripts import NO_GIT, NO_PLACE, OLD_GIT, PATH_OCCUPIED, CloneState
from sandhold.contracts.errors import ErrorCode, ToolError
from sandhold.contracts.fields import CommandStatus

_QUOTED_CHARS = 300

# The first that matches decides. Seen with git 2.39 and in the sources of 2.31 to 2.47.
_SAID: tuple[tuple[ErrorCode, re.Pattern[str]], ...] = tuple(
    (code, re.compile(pattern, re.IGNORECASE))
    for code, pattern in (
        (ErrorCode.DISK_FULL, r"no space left on device|disk quota exceeded|file too large"),
        (
            ErrorCode.BRANCH_NOT_FOUND,
            r"remote branch .* not found|couldn't find remote ref|not our ref|unadvertised object"
            r"|did not match any file|unable to read tree|reference is not a tree|is not a commit"
            r"|pathspec .* did not match",
        ),
        (
            ErrorCode.PERMISSION_DENIED,
            r"could not create|cannot mkdir|cannot create directory|permission denied|read-only file system",
        ),
        (
            ErrorCode.NETWORK_ERROR,
            r"connect tunnel failed|from proxy after connect|proxy connect aborted|could not resolve proxy",
        ),
        (
            ErrorCode.AUTHENTICATION_FAILED,
            r"authentication failed|invalid username or (password|token)|returned error: 401",
        ),
        (
            ErrorCode.REPOSITORY_NOT_FOUND,
            r"repository .* not found|could not read username|could not read password|terminal prompts disabled"
            r"|returned error: (403|404)|access denied|write access to repository not granted",
        ),
        (
            ErrorCode.NETWORK_ERROR,
            r"could not resolve host|failed to connect|couldn't connect|connection (refused|reset|timed out)"
            r"|operation too slow|timed out|server certificate|certificate verif|ssl|gnutls|early eof|rpc failed"
            r"|transfer closed|recv failure|send failure|returned error: 5\d\d|empty reply|hung up unexpectedly"
            r"|unexpected disconnect|network is unreachable|http/2 stream|unable to access",
        ),
    )
)

_NOT_GIVEN = (
    "Look at the address. Repositories that are not public need the user's GitHub connection, which is for its own "
    "host alone, and with an app's installation for those of its account: ask the user to connect GitHub (`sandhold "
    "connect github`), or to add the repository to the app's installation."
)
_GIVEN = (
    "The user's GitHub connection was used. Look at the address; else ask the user whether the connection reaches this "
    "repository, and these submodules."
)
_REFUSED = "It may have expired or been revoked: ask the user to connect GitHub again (`sandhold connect github`)."
_HINTS: dict[ErrorCode, str] = {
    ErrorCode.DISK_FULL: "Delete what is not needed in the sandbox, use a larger one, or give depth 1.",
    ErrorCode.BRANCH_NOT_FOUND: "Look at the name: a branch, a tag, or a commit that the server still has. Without "
    "branch the default branch is cloned.",
    ErrorCode.NETWORK_ERROR: "The server was not reached, or did not answer to the end. Try again under a new call id; "
    "a large repository may need depth.",
    ErrorCode.GIT_FAILED: "What git said is in the message. daytona_command reads all of it by this call's id.",
}
_WHAT: dict[ErrorCode, str] = {
    ErrorCode.DISK_FULL: "the sandbox's disk is full",
    ErrorCode.BRANCH_NOT_FOUND: "the repository has no such branch, tag or commit",
    ErrorCode.AUTHENTICATION_FAILED: "the server did not take the credential",
    ErrorCode.REPOSITORY_NOT_FOUND: "the repository was not found, or may not be read",
    ErrorCode.NETWORK_ERROR: "the server could not be reached, or did not answer",
    ErrorCode.GIT_FAILED: "git failed",
}


def clone_error(status: CommandStatus | None, exit_code: int | None, said: str, state: CloneState | None) -> ToolError:
    """Why there is no clone: by what became of its command, what that wrote to stderr, and what was found after."""
    match status:
        case "timed_out":
            hint = "Nothing of it is left. Give a larger timeout, or depth."
            return ToolError(code=ErrorCode.TIMEOUT, message="the clone did not end in time", hint=hint, retryable=True)
        case "cancelled":
            return ToolError(code=ErrorCode.CANCELLED, message="the clone was cancelled")
        case "completed" if state is not None:
            return _failed(exit_code, said, state)
        case _:
            return ToolError(
                code=ErrorCode.INTERRUPTED,
                message="the clone was cut off, or could not be looked at any more: the sandbox stopped, or ran out of "
                "memory",
                hint="Look whether the directory is there. If not, clone again under a new call id.",
                ambiguous=True,
            )


def _failed(exit_code: int | None, said: str, state: CloneState) -> ToolError:
    path = state.path or "the path"
    code = _code_of(said)
    if exit_code == 0:
        message = f"{path} is not the clone of this call any more"
        return ToolError(code=ErrorCode.CONFLICT, message=message, hint="Clone again under a new call id.")
    if exit_code == PATH_OCCUPIED:
        message = f"{path} exists, and is no empty directory; nothing was changed"
        return ToolError(code=ErrorCode.CONFLICT, message=message, hint="Give another path, or remove it first.")
    if exit_code in {NO_GIT, OLD_GIT}:
        message = "the sandbox has no git" if exit_code == NO_GIT else "the sandbox's git is too old"
        hint = "git 2.31 or later is needed: install it, or use another snapshot."
        return ToolError(code=ErrorCode.GIT_FAILED, message=message, hint=hint)
    if code is ErrorCode.PERMISSION_DENIED or (exit_code == NO_PLACE and code is not ErrorCode.DISK_FULL):
        message = f"{path} cannot be made: {_quoted(said)}"
        return ToolError(code=ErrorCode.PERMISSION_DENIED, message=message, hint="Give a path below the workspace.")
    hint = _HINTS.get(code) or (_GIVEN if state.given else _NOT_GIVEN)
    if state.refused and code in {ErrorCode.AUTHENTICATION_FAILED, ErrorCode.REPOSITORY_NOT_FOUND}:
        code, hint = ErrorCode.AUTHENTICATION_FAILED, _REFUSED
    return ToolError(
        code=code,
        message=f"{_WHAT[code]}: {_quoted(said)}",
        hint=hint,
        retryable=code is ErrorCode.NETWORK_ERROR,
    )


def _code_of(said: str) -> ErrorCode:
    return next((code for code, pattern in _SAID if pattern.search(said)), ErrorCode.GIT_FAILED)


def _quoted(said: str) -> str:
    """The line that says most: git's last fatal one, else its last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal:", "error:", "remote:"))]
    fatal = [line for line in telling if line.startswith("fatal:")]
    return (fatal or telling or lines or ["it said nothing"])[-1][:_QUOTED_CHARS]
