"""The one request that carries the launcher, its orders and the user's script into a sandbox.

Everything travels as data: the program, the script and the directory in the environment of the request, the
rest as plain words of a fixed command line. Nothing of the user's is ever part of a shell line or of argv.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sandhold.contracts.names import call_folder

INLINE_SCRIPT_BYTES = 96_000
"""A larger script is uploaded first: one variable holds 128 KiB, its name included."""
STDOUT_WINDOW_BYTES = 64 * 1024
"""The most of stdout that an answer carries for the caller: the largest budget that can be asked for."""
STDERR_WINDOW_BYTES = 16 * 1024

UPLOADS = "/tmp/sandhold-upload-"  # noqa: S108 - the request that names one moves it from there
"""How the paths begin to which what is too large for a request is uploaded."""
UNFETCHED_MINUTES = 60
"""How old an upload is for which no request will come: its activity was given up long before."""

KEPT_CALLS = 200
KEPT_MINUTES = 24 * 60
"""How many of the calls that are over keep their folder, and how long. That they ran is never forgotten."""

UNKILLABLE_S = 8.0
"""How long the launcher may try to end a command beyond its grace, before it publishes the end all the same."""

UNWANTED = 2**50
"""In a `Position`, for a stream of which nothing more is to be told: no file is as large."""

_REOPENS = re.compile(r"(?<!>)>\|?\s*[\"']?/(?:dev/(?:std(?:out|err)|fd/[12])|proc/self/fd/[12])\b")
"""A redirection that opens the command's own output anew, and so empties the file behind it."""

_PARTS: dict[str, tuple[str, ...]] = {
    "start": ("state", "telling", "starting", "request"),
    "start, more": ("members", "waiting"),
    "owner": ("state", "records", "owning"),
    "owner, more": ("members", "ending"),
    "follow": ("state", "members", "telling", "waiting", "request"),
    "read": ("state", "members", "telling", "waiting", "request"),
    "stop": ("state", "members", "records", "telling", "ending", "request"),
    "write": ("state", "members", "telling", "input", "request"),
    "signal": ("state", "members", "telling", "input", "request"),
    "clean": ("state", "members", "records", "cleaning", "request"),
}


def _program(order: str) -> str:
    """The launcher as it is sent with this order: without its comments. It holds no string of several lines."""
    texts = (Path(__file__).with_name(f"{part}.sh").read_text() for part in _PARTS[order])
    lines = (line.lstrip() for text in texts for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#"))


PROGRAMS = {order: _program(order) for order in _PARTS}
"""What each request runs. `start` runs an owner as well, and each of the two reads its second half when it needs it."""


@dataclass(frozen=True)
class Script:
    """What to run and where."""

    text: str
    cwd: str
    """An absolute path."""
    stands_for: str | None = None
    """What it does, where its text does not say: a fixed one that is told by its environment."""

    @property
    def fingerprint(self) -> str:
        """Recorded where it runs, so that another script under the same call id is noticed."""
        return hashlib.sha256(f"{self.cwd}\0{self.stands_for or self.text}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Position:
    """A call, and how much of its output is known already."""

    call_id: str
    stdout: int = 0
    stderr: int = 0

    def words(self) -> list[str]:
        return [call_folder(self.call_id), str(self.stdout), str(self.stderr)]


@dataclass(frozen=True)
class LauncherRequest:
    """A request to `process/execute`; its answer lies in the output between two lines with `nonce`."""

    nonce: str
    command: str
    wait_s: float
    """How long the launcher may take to answer, apart from its own work."""
    env: dict[str, str] = field(default_factory=dict, repr=False)


def start_request(
    call_id: str,
    script: Script,
    *,
    wait_s: float,
    timeout_s: float | None,
    grace_s: float,
    again: bool,
    cap_bytes: int,
    keep_stdin: bool = False,
    upload_path: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> LauncherRequest:
    """Start the command of `call_id` unless it was started before; answer when it has ended, or after `wait_s`.

    `upload_path` is where a script above INLINE_SCRIPT_BYTES has been uploaded to; it is moved away from there
    or removed. `again` says that an earlier request may have started the command. The command is ended after
    `timeout_s`, and when it has written more than `cap_bytes`. Its standard input is empty, or with `keep_stdin` open.
    `environment` holds variables that it gets besides those of the sandbox: its processes' environment is the only
    place in the sandbox where their values are.
    """
    env = {
        "SANDHOLD_CWD": script.cwd,
        "SANDHOLD_SCRIPT": "",
        "SANDHOLD_UPLOAD": upload_path or "",
        "SANDHOLD_LAUNCHER_MORE": PROGRAMS["start, more"],
        "SANDHOLD_OWNER": PROGRAMS["owner"],
        "SANDHOLD_OWNER_MORE": PROGRAMS["owner, more"],
    }
    if upload_path is None:
        env["SANDHOLD_SCRIPT"] = script.text
    words = [
        call_folder(call_id),
        script.fingerprint,
        _hundredths(wait_s),
        "0" if timeout_s is None else _hundredths(timeout_s, least=1),
        _hundredths(grace_s),
        "again" if again else "first",
        str(cap_bytes),
        "open" if keep_stdin else "empty",
        "reopens" if _REOPENS.search(script.text) else "appends",
    ]
    return _request("start", words, wait_s, {**(environment or {}), **env})


def follow_request(known: Sequence[Position], *, wait_s: float, budget_bytes: int) -> LauncherRequest:
    """Answer when at least one of the commands is over or has written more, or after `wait_s`.

    Tells only of those, with at most about `budget_bytes` of their output beyond what is known.
    """
    words = [str(budget_bytes), _hundredths(wait_s), *(word for each in known for word in each.words())]
    return _request("follow", words, wait_s)


def read_request(wanted: Position, known: Position, *, wait_s: float, budget_bytes: int) -> LauncherRequest:
    """Tell a command's output from the offsets in `wanted` on, at most about `budget_bytes` of it.

    Waits for output beyond `known` or for the command's end, at most `wait_s`.
    """
    words = [*wanted.words(), *known.words()[1:], str(budget_bytes), _hundredths(wait_s)]
    return _request("read", words, wait_s)


def stop_request(
    call_id: str, *, grace_s: float, reason: Literal["cancelled", "timed_out"] = "cancelled"
) -> LauncherRequest:
    """End the command: TERM, grace, KILL. One that was never started will not start later.

    The answer tells of its end, also when something of it could not be killed.
    """
    return _request("stop", [call_folder(call_id), _hundredths(grace_s), reason], grace_s + UNKILLABLE_S)


def inline_input(data: bytes) -> str | None:
    """`data` as it travels in a write request; None when it has to be uploaded first."""
    text = "".join(_ESCAPED[byte] for byte in data)
    return text if len(text) <= INLINE_SCRIPT_BYTES else None


def write_request(
    writer: str, call_id: str, *, close: bool, text: str = "", upload_path: str | None = None
) -> LauncherRequest:
    """Queue data for the standard input of the command `call_id`, once for each call id `writer`.

    The data is `text` (made by `inline_input`) or the file at `upload_path`, which is moved away from there or
    removed. `close` ends the input behind it.
    """
    env = {"SANDHOLD_INPUT": text, "SANDHOLD_UPLOAD": upload_path or ""}
    words = [call_folder(call_id), call_folder(writer), "close" if close else "open"]
    return _request("write", words, 0, env)


def signal_request(sender: str, call_id: str, signal: str) -> LauncherRequest:
    """Send a signal (its name without SIG) to the command `call_id`, once for each call id `sender`."""
    return _request("signal", [call_folder(call_id), call_folder(sender), signal], 2.0)


def clean_request(keep: Sequence[str], *, uploads: str = UPLOADS) -> LauncherRequest:
    """Remove the folders of old calls, but for those of the call ids in `keep`, and old files at `uploads`."""
    words = [str(KEPT_CALLS), str(KEPT_MINUTES), str(UNFETCHED_MINUTES), uploads, *map(call_folder, keep)]
    return _request("clean", words, 20.0)


def _request(order: str, words: Sequence[str], wait_s: float, env: Mapping[str, str] | None = None) -> LauncherRequest:
    nonce = secrets.token_hex(8)
    fixed = [order, nonce, str(STDOUT_WINDOW_BYTES), str(STDERR_WINDOW_BYTES)]
    # The provider runs this line with zsh, bash or sh, whichever it finds first; the launcher is written for sh.
    command = f'exec sh -c "$SANDHOLD_LAUNCHER" sandhold {shlex.join([*fixed, *words])}'
    return LauncherRequest(nonce, command, wait_s, {"SANDHOLD_LAUNCHER": PROGRAMS[order], **(env or {})})


def _hundredths(seconds: float, least: int = 0) -> str:
    return str(max(least, round(seconds * 100)))


def _escape(byte: int) -> str:
    """A byte as printf's %b reads it on every shell, in any locale."""
    return chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\0{byte:03o}"


_ESCAPED = [_escape(byte) for byte in range(256)]
