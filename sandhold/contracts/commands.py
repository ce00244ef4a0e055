"""The tool `daytona_command`: what can be done with a command that runs, or has run, in a sandbox."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sandhold.contracts.base import Message, Strict
from sandhold.contracts.fields import CallId, CommandStatus, SandboxId

INPUT_LIMIT_CHARS = 64 * 1024
WAIT_LIMIT_MS = 3_600_000
READ_WINDOW_BYTES = 16 * 1024
"""The most of stdout, and of stderr, that one answer carries."""

CommandAction = Literal["read", "wait", "write", "signal", "cancel", "list"]
Signal = Literal["HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "WINCH"]

# Which arguments belong to which action, beside sandbox_id, action and call_id.
_OFFSETS = {"stdout_offset", "stderr_offset", "wait_ms"}
_BELONG: dict[str, set[str]] = {
    "read": _OFFSETS,
    "wait": _OFFSETS,
    "write": {"input", "encoding", "close"},
    "signal": {"signal"},
    "cancel": set(),
    "list": set(),
}


class CommandArguments(Strict):
    """Work with a command that runs in a sandbox: read its new output, wait for its end, write to its standard
    input, signal or cancel it, or list the sandbox's commands."""

    sandbox_id: SandboxId
    """The sandbox."""
    action: CommandAction
    """`read` returns output from the offsets on; `wait` does the same once the command has ended or the wait is over;
    `write` sends `input`; `signal` sends `signal`; `cancel` ends the command and all it started; `list` lists."""
    call_id: CallId | None = None
    """The command: the `call_id` that daytona_exec answered with. Needed by every action but `list`."""
    stdout_offset: int = Field(0, ge=0, le=2**53)
    """Byte of stdout to read from: the `stdout_offset` of the answer before."""
    stderr_offset: int = Field(0, ge=0, le=2**53)
    """Byte of stderr to read from."""
    wait_ms: int | None = Field(None, ge=0, le=WAIT_LIMIT_MS)
    """Milliseconds to wait: for new output (`read`, default 0), or for the end (`wait`, default the most)."""
    input: Annotated[str, Field(max_length=INPUT_LIMIT_CHARS)] | None = None
    """What to write, as text or base64. The command must have been started with `stdin`."""
    encoding: Literal["text", "base64"] = "text"
    """How `input` is to be read."""
    close: bool = False
    """End the standard input after `input`."""
    signal: Signal | None = None
    """Signal to send, without SIG."""

    @model_validator(mode="after")
    def _arguments_fit_the_action(self) -> CommandArguments:
        given = self.model_fields_set - {"sandbox_id", "action", "call_id"}
        foreign = sorted(given - _BELONG[self.action])
        if foreign:
            raise ValueError(f"{', '.join(foreign)} cannot be given with action {self.action}")
        if (self.call_id is None) != (self.action == "list"):
            raise ValueError("call_id belongs to every action but list")
        if self.action == "signal" and self.signal is None:
            raise ValueError("action signal needs signal")
        if self.action == "write" and not self.input and not self.close:
            raise ValueError("action write needs input, or close")
        self.data()
        return self

    def data(self) -> bytes:
        """The bytes to write to the standard input."""
        text = self.input or ""
        if self.encoding == "base64":
            try:
                return base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ValueError("input is not valid base64") from error
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("input is not valid Unicode; send such bytes as base64") from error

    def data_base64(self) -> str:
        return base64.b64encode(self.data()).decode()


class CommandRow(Message):
    """One command of a sandbox."""

    call_id: str
    status: CommandStatus
    background: bool
    started_at: datetime
    ended_at: datetime | None = None
    exit_code: int | None = None


class CommandResult(Message):
    """What an action found; the output and its counts only for `read` and `wait`, the rows only for `list`."""

    action: CommandAction
    call_id: str | None = None
    status: CommandStatus | None = None
    exit_code: int | None = None
    stdout: str = ""
    """Output from the asked offset on, cleaned for reading, at most READ_WINDOW_BYTES of it."""
    stderr: str = ""
    stdout_offset: int = 0
    """Byte to read from next."""
    stderr_offset: int = 0
    stdout_bytes: int = 0
    """Bytes written so far."""
    stderr_bytes: int = 0
    redactions: int = 0
    """How many secrets in this output were replaced by `[redacted:NAME]`. Offsets count what was written."""
    commands: list[CommandRow] | None = None
    hint: str | None = None
