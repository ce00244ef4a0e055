"""Session secrets: which names they have, and which of them can be variables of a command."""

from __future__ import annotations

import re

SECRET_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"  # noqa: S105 - no secret
_NAME = re.compile(SECRET_NAME_PATTERN.removesuffix("$") + r"\Z")

# What decides which programs a command finds, and what they load; and what is ours, or the shell's own.
_OF_THE_SYSTEM = {"PATH", "HOME", "SHELL", "USER", "LOGNAME"}
_OF_THE_SHELL = {
    *("IFS", "ENV", "BASH_ENV", "BASHOPTS", "SHELLOPTS", "POSIXLY_CORRECT", "PS1", "PS2", "PS4", "PPID", "UID", "EUID"),
    *("PWD", "OLDPWD", "CDPATH", "OPTARG", "OPTIND", "RANDOM", "SECONDS", "LINENO"),
}
_REFUSED_BEGINNINGS = ("LD_", "SANDHOLD_", "BASH_FUNC", "sd_")  # the last are variables of the launcher


def is_secret_name(name: str) -> bool:
    """Whether a session secret can have this name."""
    return _NAME.match(name) is not None


def why_no_secret_variable(name: str) -> str | None:
    """Why no command can get a secret as the variable `name`; None when it can."""
    if not is_secret_name(name):
        return f"{name[:64]!r} is no name of a secret: letters, digits and _, at most 128"
    if name in _OF_THE_SYSTEM | _OF_THE_SHELL or name.startswith(_REFUSED_BEGINNINGS):
        return f"{name} cannot be a secret: the variable belongs to the system, the shell or Sandhold"
    return None
