"""The tools: one model for the arguments and one for the result of each.

They are the single source of the JSON Schemas that agents see, of validation and of the docs. Field
docstrings are the descriptions, written for a model to read.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, ValidationError, model_validator

from sandhold.contracts.base import Message, Strict
from sandhold.contracts.commands import CommandArguments, CommandResult
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure
from sandhold.contracts.fields import CommandStatus, SandboxId, SandboxPath, Size, Text
from sandhold.contracts.git import GitCloneArguments, GitCloneResult
from sandhold.contracts.git_credentials import GitCredentialsArguments, GitCredentialsResult
from sandhold.contracts.names import MODEL_TOOLS, WORKSPACE_PATH, ToolName
from sandhold.contracts.secrets import SECRET_NAME_PATTERN, why_no_secret_variable
from sandhold.contracts.transfers import (
    FailedUpload,
    PushFilesArguments,
    PushFilesResult,
    RestoredWorkspace,
    RestoreFrom,
    SavedWorkspace,
    ToldWhenSaved,
    UploadFiles,
)
from sandhold.contracts.workspaces import DownloadWorkspaceArguments, DownloadWorkspaceResult

COMMAND_LIMIT_CHARS = 1024 * 1024
CONTENT_LIMIT_CHARS = 32 * 1024 * 1024
DEFAULT_TIMEOUT_MS = 120_000
MAX_TIMEOUT_MS = 86_400_000
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ENV_LIMIT_BYTES = 64 * 1024
SECRETS_LIMIT = 100


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name, content in value.items():
        if _VARIABLE.match(name) is None:
            raise ValueError(f"{name[:64]!r} is not a variable name")
        if "\0" in content:
            raise ValueError(f"the value of {name} contains a NUL character")
    if sum(len(name) + len(content.encode()) for name, content in value.items()) > _ENV_LIMIT_BYTES:
        raise ValueError(f"must be at most {_ENV_LIMIT_BYTES} bytes in all")
    return value


def _secret_names(value: list[str]) -> list[str]:
    for name in value:
        if (refused := why_no_secret_variable(name)) is not None:
            raise ValueError(refused)
    if len(set(value)) != len(value):
        raise ValueError("must name each secret once")
    return value


SecretNames = Annotated[
    list[Annotated[str, Field(pattern=SECRET_NAME_PATTERN, max_length=128)]],
    Field(max_length=SECRETS_LIMIT),
    AfterValidator(_secret_names),
]


class CreateSandboxArguments(Strict):
    """Create and start a new Linux sandbox. Files persist while it exists, also when it is stopped."""

    title: Annotated[Text, Field(min_length=1, max_length=200)] | None = None
    """What the sandbox is for, in a few words."""
    sandbox_id: SandboxId | None = None
    """Name to use in later calls; by default made from the title, else `sandbox-N`."""
    size: Size | None = None
    """`small` 1 CPU, 1 GiB memory, 3 GiB disk (default); `medium` 2/4/8; `large` 4/8/10."""
    snapshot: Annotated[Text, Field(min_length=1, max_length=200)] | None = None
    """Provider snapshot to start from; a snapshot brings its own size."""
    env: Annotated[dict[str, str], Field(max_length=200), AfterValidator(_environment)] | None = None
    """Environment variables for every command in the sandbox."""
    secret_env: SecretNames | None = None
    """Names of secrets that the user has set for this session. Each command gets them as environment variables of these
    names, with the values that they have when it starts; you never see a value, and output shows `[redacted:NAME]`
    instead. A name that is not set is an error: ask the user to set it."""
    auto_stop_minutes: int | None = Field(None, ge=1, le=60)
    """Minutes without any call after which the sandbox is stopped, by default as the session's policy says (5). Its
    files stay; the next call starts it again."""
    upload_files: UploadFiles | None = None
    """Files or folders of the session's storage to bring into the sandbox before it is used."""
    restore_from: RestoreFrom | None = None
    """A workspace that was saved to session storage, to go on with in this sandbox. Comes before `upload_files`."""

    @model_validator(mode="after")
    def _size_or_snapshot(self) -> CreateSandboxArguments:
        if self.snapshot is not None and self.size is not None:
            raise ValueError("give either size or snapshot: a snapshot brings its own size")
        return self


class CreateSandboxResult(Message):
    sandbox_id: str
    status: Literal["started"] = "started"
    workspace_path: str = WORKSPACE_PATH
    files_uploaded: int = 0
    files_failed: list[FailedUpload] = Field(default_factory=list)
    """Of `upload_files`, what is not in the sandbox."""
    restored: RestoredWorkspace | None = None
    """What became of `restore_from`."""


OutputDetail = Literal["auto", "concise", "normal", "verbose", "full"]


class ExecArguments(Strict):
    """Run a shell command in a sandbox and return its output. A stopped sandbox is started first."""

    sandbox_id: SandboxId
    """The sandbox to run in."""
    command: Annotated[Text, Field(min_length=1, max_length=COMMAND_LIMIT_CHARS)]
    """Shell script for `sh`; several lines, heredocs and `exit` are fine. Standard input is empty."""
    cwd: SandboxPath = WORKSPACE_PATH
    """Directory to run in."""
    timeout: int = Field(DEFAULT_TIMEOUT_MS, ge=1, le=MAX_TIMEOUT_MS)
    """Milliseconds after which the command and everything it started are killed. A background command that names none
    runs until it ends, is cancelled, or the sandbox is stopped as unused."""
    output: OutputDetail = "auto"
    """How much output to return: `auto` (little on success, more on failure), `concise` 2 KiB, `normal` 8 KiB,
    `verbose` 16 KiB, `full` 64 KiB."""
    background: bool = False
    """Answer as soon as the command runs. Read its output, wait for it or end it with `daytona_command`."""
    stdin: bool = False
    """Only with `background`: keep standard input open, to be written with `daytona_command`."""

    @model_validator(mode="after")
    def _stdin_needs_background(self) -> ExecArguments:
        if self.stdin and not self.background:
            raise ValueError("stdin needs background: nobody could write while the call waits")
        return self


class OutputFiles(Message):
    """Where the whole output of a command lies in session storage: folders of segments named by byte offset."""

    stdout: str
    stderr: str
    whole: bool = True
    """False when only the beginning of a stream is there: the session's storage had no room for more of it, the command
    wrote far more than it may, or emptied it after that was stored. The result's `hint` says which."""


class ExecResult(Message):
    status: CommandStatus
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    redactions: int = 0
    """How many secrets in the output were replaced by `[redacted:NAME]`. Bytes are counted as they were written."""
    duration_ms: int | None = None
    call_id: str
    output_files: OutputFiles | None = None
    """The whole output in session storage; null when all of it is here, byte for byte."""
    hint: str | None = None


class ReadFileArguments(Strict):
    """Read a file of a sandbox. Text comes as lines; a small binary file comes as base64."""

    sandbox_id: SandboxId
    """The sandbox to read from."""
    path: SandboxPath
    """The file, absolute or relative to the workspace."""
    offset: int = Field(0, ge=0, le=2**53)
    """First line to return, from 0."""
    limit: int = Field(2000, ge=1, le=100_000)
    """Lines to return at most."""


class ReadFileResult(Message):
    path: str
    content: str | None = None
    """The lines asked for, or base64; null for a binary file that is too large to return."""
    encoding: Literal["text", "base64"]
    bytes: int
    """Size of the whole file."""
    media_type: str | None = None
    """What kind of file it is, when it is no text."""
    total_lines: int | None = None
    truncated: bool = False
    hint: str | None = None


class WriteFileArguments(Strict):
    """Write a file in a sandbox. Parent directories are made; the file is replaced as a whole."""

    sandbox_id: SandboxId
    """The sandbox to write to."""
    path: SandboxPath
    """The file, absolute or relative to the workspace."""
    content: Annotated[str, Field(max_length=CONTENT_LIMIT_CHARS)]
    """The content, as text or base64."""
    encoding: Literal["text", "base64"] = "text"
    """How `content` is to be read."""
    mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] | None = None
    """Permissions in octal, for example `755`; by default those of the file before, else 644."""
    append: bool = False
    """Add to the end of the file instead of replacing it."""

    @model_validator(mode="after")
    def _content_is_decodable(self) -> WriteFileArguments:
        self.data()
        return self

    def data(self) -> bytes:
        """The bytes to write."""
        if self.encoding == "base64":
            try:
                return base64.b64decode(self.content, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ValueError("content is not valid base64") from error
        try:
            return self.content.encode()
        except UnicodeEncodeError as error:
            raise ValueError("content is not valid Unicode; send such bytes as base64") from error


class WriteFileResult(Message):
    path: str
    bytes: int
    """Size of the file after the write."""
    sha256: str
    """Of the whole file after the write."""


class ListSandboxesArguments(Strict):
    """List the sandboxes of this session with their live state."""


class SandboxRow(Message):
    """One sandbox, as the list tool and `session show` give it."""

    sandbox_id: str
    title: str | None = None
    state: str
    workspace_path: str = WORKSPACE_PATH
    created_at: datetime
    last_used_at: datetime | None = None
    stops_at: datetime | None = None
    """When it will be stopped as idle if nothing uses it; null while a call runs or when it is not running."""
    running_calls: int = 0
    error: ToolError | None = None


class ListSandboxesResult(Message):
    sandboxes: list[SandboxRow]
    count: int


Action = Literal["start", "stop", "archive", "delete"]


class ManageSandboxArguments(Strict):
    """Start, stop, archive or delete a sandbox. Repeating an action is harmless."""

    sandbox_id: SandboxId
    """The sandbox."""
    action: Action
    """`stop` keeps the files and ends all processes; `archive` moves it to cheaper storage; `delete` is final."""


class ManageSandboxResult(ToldWhenSaved):
    sandbox_id: str
    action: Action
    state: str
    saved: SavedWorkspace | None = None
    """With `delete`: what was saved before, where the session's policy says so."""

    @classmethod
    def deleted(cls, sandbox_id: str) -> ManageSandboxResult:
        """The result of deleting, also once more, what is confirmed absent."""
        return cls(sandbox_id=sandbox_id, action="delete", state="deleted")


ToolArguments = (
    CreateSandboxArguments
    | ExecArguments
    | ReadFileArguments
    | WriteFileArguments
    | DownloadWorkspaceArguments
    | ListSandboxesArguments
    | ManageSandboxArguments
    | CommandArguments
    | GitCloneArguments
    | GitCredentialsArguments
    | PushFilesArguments
)

ARGUMENTS: dict[ToolName, type[ToolArguments]] = {
    ToolName.CREATE_SANDBOX: CreateSandboxArguments,
    ToolName.EXEC: ExecArguments,
    ToolName.READ_FILE: ReadFileArguments,
    ToolName.WRITE_FILE: WriteFileArguments,
    ToolName.DOWNLOAD_WORKSPACE: DownloadWorkspaceArguments,
    ToolName.LIST_SANDBOXES: ListSandboxesArguments,
    ToolName.MANAGE_SANDBOX: ManageSandboxArguments,
    ToolName.COMMAND: CommandArguments,
    ToolName.GIT_CLONE: GitCloneArguments,
    ToolName.GIT_CREDENTIALS: GitCredentialsArguments,
    ToolName.PUSH_FILES: PushFilesArguments,
}

RESULTS: dict[ToolName, type[Message]] = {
    ToolName.CREATE_SANDBOX: CreateSandboxResult,
    ToolName.EXEC: ExecResult,
    ToolName.READ_FILE: ReadFileResult,
    ToolName.WRITE_FILE: WriteFileResult,
    ToolName.DOWNLOAD_WORKSPACE: DownloadWorkspaceResult,
    ToolName.LIST_SANDBOXES: ListSandboxesResult,
    ToolName.MANAGE_SANDBOX: ManageSandboxResult,
    ToolName.COMMAND: CommandResult,
    ToolName.GIT_CLONE: GitCloneResult,
    ToolName.GIT_CREDENTIALS: GitCredentialsResult,
    ToolName.PUSH_FILES: PushFilesResult,
}


def tool_named(name: str) -> ToolName:
    """The tool of this name. Raises ToolFailure `invalid_arguments` with the names that exist."""
    try:
        return ToolName(name)
    except ValueError:
        known = ", ".join(tool.value for tool in MODEL_TOOLS)
        raise ToolFailure(
            ErrorCode.INVALID_ARGUMENTS, f"there is no tool {name[:100]!r}", hint=f"The tools are: {known}."
        ) from None


def parse_arguments(tool: ToolName, arguments: JsonValue) -> ToolArguments:
    """The typed arguments of a call. Raises ToolFailure `invalid_arguments` that names every fault."""
    try:
        return ARGUMENTS[tool].model_validate(arguments)
    except ValidationError as error:
        raise ToolFailure(
            ErrorCode.INVALID_ARGUMENTS,
            f"{tool.value}: {_faults(error)}",
            hint="Correct the arguments and call again.",
        ) from None


def _faults(error: ValidationError) -> str:
    """The faults in words, without repeating what was sent: it may be long or secret."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    told = []
    for fault in faults[:8]:
        place = ".".join(str(part)[:64] for part in fault["loc"])
        told.append(f"{place}: {fault['msg']}" if place else fault["msg"])
    if len(faults) > len(told):
        told.append(f"and {len(faults) - len(told)} more")
    return "; ".join(told)


def input_schema(tool: ToolName) -> dict[str, Any]:
    """The JSON Schema of a tool's arguments."""
    return ARGUMENTS[tool].model_json_schema()


def description(tool: ToolName) -> str:
    """What the tool does, for a model to read."""
    return " ".join((ARGUMENTS[tool].__doc__ or "").split())
