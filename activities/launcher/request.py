"""The one request that carries the launcher, its orders and the user's script into a sandbox.

Everything travels as data: the program, the script and the directory in the environment of the request, the
rest as plain words of a fixed command line. Nothing of the user's is ever part of a shell line or of argv.
"""

from __future__ import annotations

import hashlib
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sandhold.contracts.names import call_folder

INLINE_SCRIPT_BYTES = 96_000
"""A larger script is uploaded first: one variable holds 128 KiB, its name included."""
STDOUT_WINDOW_BYTES = 64 * 1024
"""The most of stdout that an answer carries: the largest budget that a caller can ask for."""
STDERR_WINDOW_BYTES = 16 * 1024
REPORTS_PER_ANSWER = 4
"""Ended commands that one answer tells of at most, so that it stays small; the next answer has the others."""


def _program() -> str:
    """The launcher as it is sent: without its comments. It holds no string of several lines."""
    lines = (Path(__file__).with_name("launcher.sh")).read_text().splitlines()
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


PROGRAM = _program()


@dataclass(frozen=True)
class Script:
    """What to run and where."""

    text: str
    cwd: str
    """An absolute path."""

    @property
    def fingerprint(self) -> str:
        """Recorded where it runs, so that another script under the same call id is noticed."""
        return hashlib.sha256(f"{self.cwd}\0{self.text}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class LauncherRequest:
    """A request to `process/execute`; its answer lies in the output between two lines with `nonce`."""

    nonce: str
    command: str
    wait_s: float
    """How long the launcher may take to answer, apart from its own work."""
    env: dict[str, str] = field(default_factory=dict)


def start_request(
    call_id: str,
    script: Script,
    *,
    wait_s: float,
    timeout_s: float,
    grace_s: float,
    again: bool,
    upload_path: str | None = None,
) -> LauncherRequest:
    """Start the command of `call_id` unless it was started before; answer when it has ended, or after `wait_s`.

    `upload_path` is where a script above INLINE_SCRIPT_BYTES has been uploaded to; it is moved away from there
    or removed. `again` says that an earlier request may have started the command.
    """
    env = {"SANDHOLD_CWD": script.cwd, "SANDHOLD_SCRIPT": "", "SANDHOLD_UPLOAD": upload_path or ""}
    if upload_path is None:
        env["SANDHOLD_SCRIPT"] = script.text
    words = [
        call_folder(call_id),
        script.fingerprint,
        _hundredths(wait_s),
        _hundredths(timeout_s, least=1),
        _hundredths(grace_s),
        "again" if again else "first",
    ]
    return _request("start", words, wait_s, env)


def follow_request(call_ids: Sequence[str], *, wait_s: float) -> LauncherRequest:
    """Answer when at least one of the commands is over, or after `wait_s`; tell only of those that are."""
    words = [str(REPORTS_PER_ANSWER), _hundredths(wait_s), *map(call_folder, call_ids)]
    return _request("follow", words, wait_s)


def stop_request(call_id: str, *, grace_s: float) -> LauncherRequest:
    """End the command: TERM, grace, KILL. One that was never started will not start later."""
    return _request("stop", [call_folder(call_id), _hundredths(grace_s)], grace_s)


def _request(order: str, words: Sequence[str], wait_s: float, env: Mapping[str, str] | None = None) -> LauncherRequest:
    nonce = secrets.token_hex(8)
    fixed = [order, nonce, str(STDOUT_WINDOW_BYTES), str(STDERR_WINDOW_BYTES)]
    # The provider runs this line with zsh, bash or sh, whichever it finds first; the launcher is written for sh.
    command = f'exec sh -c "$SANDHOLD_LAUNCHER" sandhold {shlex.join([*fixed, *words])}'
    return LauncherRequest(nonce, command, wait_s, {"SANDHOLD_LAUNCHER": PROGRAM, **(env or {})})


def _hundredths(seconds: float, least: int = 0) -> str:
    return str(max(least, round(seconds * 100)))
