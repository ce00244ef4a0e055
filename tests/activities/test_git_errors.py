"""What an agent is told of a clone that came to nothing."""

from __future__ import annotations

import pytest

from activities.git_errors import clone_error
from activities.git_scripts import NO_GIT, NO_PLACE, OLD_GIT, PATH_OCCUPIED, CloneState
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.fields import CommandStatus

# As git 2.39 says it, unless another version is named.
SAID = [
    ("fatal: Remote branch nope not found in upstream origin", ErrorCode.BRANCH_NOT_FOUND),
    ("fatal: couldn't find remote ref abcdef0", ErrorCode.BRANCH_NOT_FOUND),
    ("fatal: remote error: upload-pack: not our ref 0000", ErrorCode.BRANCH_NOT_FOUND),
    ("error: Server does not allow request for unadvertised object 1234", ErrorCode.BRANCH_NOT_FOUND),
    ("error: pathspec 'abc' did not match any file(s) known to git", ErrorCode.BRANCH_NOT_FOUND),
    ("fatal: could not read Username for 'https://h': terminal prompts disabled", ErrorCode.REPOSITORY_NOT_FOUND),
    ("remote: Repository not found.\nfatal: repository 'https://h/a/b/' not found", ErrorCode.REPOSITORY_NOT_FOUND),
    ("fatal: unable to access 'https://h/': The requested URL returned error: 403", ErrorCode.REPOSITORY_NOT_FOUND),
    (
        "remote: Invalid username or token.\nfatal: Authentication failed for 'https://h/a/b/'",
        ErrorCode.AUTHENTICATION_FAILED,
    ),
    ("fatal: unable to access 'https://h/': Could not resolve host: h", ErrorCode.NETWORK_ERROR),
    ("fatal: unable to access 'https://h/': CONNECT tunnel failed, response 403", ErrorCode.NETWORK_ERROR),
    ("Received HTTP code 403 from proxy after CONNECT", ErrorCode.NETWORK_ERROR),
    ("fatal: unable to access 'https://h/': Failed to connect to h port 443", ErrorCode.NETWORK_ERROR),
    ("fatal: unable to access 'https://h/': server certificate verification failed.", ErrorCode.NETWORK_ERROR),
    ("fatal: unable to access 'https://h/': The requested URL returned error: 503", ErrorCode.NETWORK_ERROR),
    ("error: RPC failed; curl 18 transfer closed\nfatal: early EOF", ErrorCode.NETWORK_ERROR),
    ("error: RPC failed; curl 28 Operation too slow.\nfatal: expected 'packfile'", ErrorCode.NETWORK_ERROR),
    ("fatal: write error: No space left on device", ErrorCode.DISK_FULL),
    ("error: unable to write file big: Disk quota exceeded", ErrorCode.DISK_FULL),
    ("fatal: could not create work tree dir '/proc/x': No such file or directory", ErrorCode.PERMISSION_DENIED),
    ("fatal: transport 'ssh' not allowed", ErrorCode.GIT_FAILED),
    ("", ErrorCode.GIT_FAILED),
]


@pytest.mark.parametrize(("said", "code"), SAID)
def test_what_git_says_becomes_a_code_with_a_hint(said: str, code: ErrorCode) -> None:
    error = clone_error("completed", 128, said, CloneState(path="/home/daytona/a"))
    assert error.code is code
    assert error.hint


@pytest.mark.parametrize(
    ("exit_code", "code"),
    [
        (PATH_OCCUPIED, ErrorCode.CONFLICT),
        (NO_GIT, ErrorCode.GIT_FAILED),
        (OLD_GIT, ErrorCode.GIT_FAILED),
        (NO_PLACE, ErrorCode.PERMISSION_DENIED),
        (0, ErrorCode.CONFLICT),
    ],
)
def test_exit_codes_of_the_script_become_codes(exit_code: int, code: ErrorCode) -> None:
    assert clone_error("completed", exit_code, "said", CloneState(path="/home/daytona/a")).code is code


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("timed_out", ErrorCode.TIMEOUT),
        ("cancelled", ErrorCode.CANCELLED),
        ("interrupted", ErrorCode.INTERRUPTED),
    ],
)
def test_what_became_of_the_command_comes_first(status: CommandStatus, code: ErrorCode) -> None:
    assert clone_error(status, None, "fatal: early EOF", None).code is code


def test_the_hint_depends_on_whether_there_was_a_credential() -> None:
    said = "fatal: repository 'https://h/a/b/' not found"
    without = clone_error("completed", 128, said, CloneState()).hint
    used = clone_error("completed", 128, said, CloneState(given=True)).hint
    refused = clone_error("completed", 128, said, CloneState(given=True, asked=True, refused=True))
    assert without is not None
    assert "sandhold connect github" in without
    assert used is not None
    assert "was used" in used
    assert refused.code is ErrorCode.AUTHENTICATION_FAILED
