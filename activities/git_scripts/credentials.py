"""The programs that put git's credential into a sandbox and take it out again, and what they tell.

The credential reaches the sandbox in the environment of one request, and lies there in one file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from activities.git_scripts import program
from activities.git_scripts.frames import ScriptRequest, script_request, told_lines

_PLACE, _CREDENTIAL = program("place"), program("credential")
_INSTALL, _REMOVE = f"{_PLACE}\n{program('install')}", f"{_PLACE}\n{program('remove')}"
_AS_IT_IS = re.compile(r"[A-Za-z0-9_.~+/=-]+")
"""What can stand in the file, and in its form for `gh`, without a thought."""


@dataclass(frozen=True)
class Delivery:
    """A credential for git, and what its commits are to be signed with where git does not know."""

    host: str
    """The host, with its port unless that is 443."""
    username: str
    token: str = field(repr=False)
    name: str = ""
    email: str = ""

    def __post_init__(self) -> None:
        if not _AS_IT_IS.fullmatch(self.token) or not re.fullmatch(r"[A-Za-z0-9_.\[\]-]+", self.username):
            raise ValueError("the credential has characters that no token of GitHub has")


@dataclass(frozen=True)
class CredentialAnswer:
    """What came of it."""

    late: bool = False
    """Whether a later change was made before, so that nothing was done."""
    done: bool = False
    failed: str | None = None
    """`folder` when there is no folder that nobody else may enter, `file` when the file could not be changed."""
    place: Literal["memory", "disk"] | None = None
    git: Literal["yes", "no", "locked"] | None = None
    """Whether git asks for the credential: `no` where there is no git, `locked` where its settings were not changed."""


def install_request(number: int, delivery: Delivery) -> ScriptRequest:
    """Put the credential in place, unless a change with a higher number was made."""
    return _request(
        _INSTALL,
        number,
        delivery.host,
        SANDHOLD_USERNAME=delivery.username,
        SANDHOLD_TOKEN=delivery.token,
        SANDHOLD_CREDENTIAL=_CREDENTIAL,
        SANDHOLD_NAME=delivery.name,
        SANDHOLD_EMAIL=delivery.email,
    )


def remove_request(number: int, host: str, *, for_good: bool) -> ScriptRequest:
    """Remove what is in place, unless a change with a higher number was made."""
    return _request(_REMOVE, number, host, SANDHOLD_FOR_GOOD="yes" if for_good else "")


def _request(script: str, number: int, host: str, **more: str) -> ScriptRequest:
    return script_request(script, {"SANDHOLD_NUMBER": str(number), "SANDHOLD_HOST": host, **more})


def credential_answer(nonce: str, output: str) -> CredentialAnswer:
    """What the answer says. Raises BrokenAnswer when it is not there from beginning to end."""
    told = dict(told_lines(nonce, output))
    place, git = told.get("place"), told.get("git")
    return CredentialAnswer(
        late="late" in told,
        done=place is not None or "removed" in told,
        failed=told.get("failed"),
        place="memory" if place == "memory" else "disk" if place else None,
        git=git if git in {"yes", "no", "locked"} else None,  # type: ignore[arg-type]
    )
