"""The programs that clone a repository inside a sandbox and look at what is left of that; what they are told and tell.

They are POSIX sh of fixed text. Everything that they work on travels in the environment: nothing of it is ever part of
a line for a shell.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from activities.git_scripts.frames import ScriptRequest, script_request, told_lines


def program(name: str) -> str:
    """The program without its comments, which would only travel."""
    lines = (Path(__file__).parent / f"{name}.sh").read_text().splitlines()
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


CLONE, CHECK, _HELPER = program("clone"), program("check"), program("helper")

PATH_OCCUPIED, NO_GIT, OLD_GIT, NO_PLACE = 80, 81, 82, 83
"""Exit codes of CLONE beside git's own."""
STALLED_S = 300
"""How long a server may send nothing at all before git gives up on it."""


@dataclass(frozen=True)
class Credential:
    """What git is given for one host, and for no other."""

    host: str
    """The host, with its port unless that is 443."""
    username: str
    password: str = field(repr=False)


def clone_environment(
    url: str, *, ref: str, path: str, mark: str, depth: int | None, submodules: bool, credential: Credential | None
) -> dict[str, str]:
    """What CLONE works on. The credential is in here alone, and git gives it to its host alone, also after redirects,
    for submodules and for LFS."""
    settings = [
        ("credential.helper", ""),  # no helper of the sandbox's own hears of it
        ("protocol.allow", "never"),
        ("protocol.https.allow", "always"),
        ("protocol.http.allow", "always"),
        ("core.hooksPath", "/dev/null"),
        ("core.fsmonitor", "false"),
        ("init.templateDir", ""),
        ("gc.auto", "0"),  # nothing goes on in the background
        ("maintenance.auto", "false"),
        ("advice.detachedHead", "false"),
        ("http.lowSpeedLimit", "1"),
        ("http.lowSpeedTime", str(STALLED_S)),
    ]
    environment = {
        "SANDHOLD_GIT_URL": url,
        "SANDHOLD_GIT_REF": ref,
        "SANDHOLD_GIT_PATH": path,
        "SANDHOLD_GIT_MARK": mark,
        "SANDHOLD_GIT_DEPTH": "" if depth is None else str(depth),
        "SANDHOLD_GIT_SUBMODULES": "yes" if submodules else "",
        "SANDHOLD_GIT_GIVEN": "no" if credential is None else "yes",
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "GCM_INTERACTIVE": "never",
        "GIT_ALLOW_PROTOCOL": "https:http",
    }
    if credential is not None:
        settings.append((f"credential.https://{credential.host}.helper", '!f() { eval "$SANDHOLD_GIT_HELPER"; }; f'))
        environment["SANDHOLD_GIT_HELPER"] = _HELPER
        environment["SANDHOLD_GIT_USERNAME"] = credential.username
        environment["SANDHOLD_GIT_PASSWORD"] = credential.password
    environment["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, (name, value) in enumerate(settings):
        environment[f"GIT_CONFIG_KEY_{number}"] = name
        environment[f"GIT_CONFIG_VALUE_{number}"] = value
    return environment


def mark_of(*parts: str) -> str:
    """By which a clone is known as that of one call."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class CloneState:
    """What CHECK found."""

    path: str | None = None
    """Where the clone was to be; None when its command never began."""
    given: bool = False
    """Whether there was a credential for it."""
    ours: bool = False
    """Whether the clone is there."""
    url: str = ""
    commit: str | None = None
    branch: str | None = None
    asked: bool = False
    """Whether git wanted the credential."""
    taken: bool = False
    refused: bool = False
    found: tuple[str, ...] = ()
    """What held a credential, and does no more."""


def check_request(call_folder: str, patterns: list[str], *, own: bool) -> ScriptRequest:
    """Look at the clone of a call; `patterns` are the forms of its credential, `own` whether it was made for it."""
    escaped = "".join(f"\\0{byte:03o}" for byte in "\n".join(patterns).encode())
    env = {
        "SANDHOLD_FINISHES": call_folder,
        "SANDHOLD_PATTERNS": escaped,
        "SANDHOLD_OWN": "yes" if own else "",
    }
    return script_request(CHECK, env)


def clone_state(nonce: str, output: str) -> CloneState:
    """What the answer says. Raises BrokenAnswer when it is not there from beginning to end."""
    told = told_lines(nonce, output)
    values = dict(told)
    return CloneState(
        path=values.get("path"),
        given=values.get("given") == "yes",
        ours=values.get("ours") == "yes",
        url=values.get("url", ""),
        commit=values.get("commit") or None,
        branch=values.get("branch") or None,
        asked=values.get("asked") == "yes",
        taken=values.get("taken") == "yes",
        refused=values.get("refused") == "yes",
        found=tuple(rest for word, rest in told if word == "found"),
    )
