"""Names that scripts, operators and other languages rely on; changing one is a breaking change."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Literal

# Temporal: types, messages, queues.
SESSION_WORKFLOW = "AgentSession"
SANDBOX_WORKFLOW = "Sandbox"
CLEAN_STORAGE_WORKFLOW = "CleanStorage"
CLEAN_STORAGE_SCHEDULE = "sandhold-clean-storage"
"""Id of the Temporal Schedule that starts it, and first part of the ids of the workflows it starts."""
CALL_UPDATE = "call"
END_UPDATE = "end"
SUBMIT_SIGNAL = "submit"
RENEW_SIGNAL = "renew"
STATUS_QUERY = "status"
RESULT_QUERY = "result"
COMMAND_QUERY = "command"
DRAINING = "Draining"
"""Failure type of an update that was refused because the workflow is about to continue as new: send it again."""
QUERY_TOO_EARLY = "the workflow has events that its next task has to take up first: ask again in a moment"
"""The message of a query's failure that would have brought a workflow ahead of its task; it has changed nothing."""
DEFAULT_TASK_QUEUE = "sandhold"
FOLLOW_QUEUE_SUFFIX = "-follow"
WORKER_DEPLOYMENT = "sandhold"
"""Name of the worker deployment where workers are versioned."""

# Search attributes, all of type Keyword. They are not encrypted: nothing sensitive may be in them.
OWNER_ATTRIBUTE = "SandholdOwner"
SESSION_ATTRIBUTE = "SandholdSession"
SANDBOX_ATTRIBUTE = "SandholdSandbox"
STATE_ATTRIBUTE = "SandholdState"
PROVIDER_ID_ATTRIBUTE = "SandholdProviderId"
SEARCH_ATTRIBUTES = (
    OWNER_ATTRIBUTE,
    SESSION_ATTRIBUTE,
    SANDBOX_ATTRIBUTE,
    STATE_ATTRIBUTE,
    PROVIDER_ID_ATTRIBUTE,
)

DEFAULT_CONNECTION = "default"
"""The id of the deployment's own connection to a provider; those of owners have ids of the vault."""

# Labels at the provider.
MANAGED_LABEL = "sandhold-managed"
DEPLOYMENT_LABEL = "sandhold-deployment"
SESSION_LABEL = "sandhold-session"
SANDBOX_LABEL = "sandhold-sandbox"
OWNER_LABEL = "sandhold-owner"

WORKSPACE_PATH = "/home/daytona"

ID_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
CALL_ID_PATTERN = r"^[A-Za-z0-9_.:-]{1,128}$"
OWNER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$"
_ID = re.compile(ID_PATTERN.removesuffix("$") + r"\Z")
_CALL_ID = re.compile(CALL_ID_PATTERN.removesuffix("$") + r"\Z")
_OWNER = re.compile(OWNER_PATTERN.removesuffix("$") + r"\Z")


class ToolName(StrEnum):
    """The tools that can be called."""

    CREATE_SANDBOX = "daytona_create_sandbox"
    EXEC = "daytona_exec"
    READ_FILE = "daytona_read_file"
    WRITE_FILE = "daytona_write_file"
    DOWNLOAD_WORKSPACE = "daytona_download_workspace"
    LIST_SANDBOXES = "daytona_list_sandboxes"
    MANAGE_SANDBOX = "daytona_manage_sandbox"
    COMMAND = "daytona_command"
    GIT_CLONE = "daytona_git_clone"
    GIT_CREDENTIALS = "daytona_git_credentials"
    PUSH_FILES = "sandhold_push_files"


CLIENT_TOOLS = frozenset({ToolName.PUSH_FILES})
"""Tools for those who run agents; no model is told of them."""
MODEL_TOOLS = tuple(tool for tool in ToolName if tool not in CLIENT_TOOLS)
"""The tools that are declared to models."""

COMMAND_TOOLS = frozenset({ToolName.EXEC, ToolName.GIT_CLONE})
"""Tools whose calls are commands in the sandbox: started once, followed, and in the reach of `daytona_command`."""

SESSION_TOOLS = frozenset({ToolName.CREATE_SANDBOX, ToolName.LIST_SANDBOXES})
"""Tools that are calls of the session; all others go to the sandbox's own workflow."""


class Activity(StrEnum):
    """Activity types; the workflows schedule them by these names."""

    CREATE_SANDBOX = "create_sandbox"
    START_SANDBOX = "start_sandbox"
    STOP_SANDBOX = "stop_sandbox"
    ARCHIVE_SANDBOX = "archive_sandbox"
    DELETE_SANDBOX = "delete_sandbox"
    RUN_COMMAND = "run_command"
    CLONE_REPOSITORY = "clone_repository"
    FINISH_CLONE = "finish_clone"
    INSTALL_GIT_CREDENTIALS = "install_git_credentials"
    REMOVE_GIT_CREDENTIALS = "remove_git_credentials"
    REVOKE_GIT_TOKENS = "revoke_git_tokens"
    FOLLOW_COMMANDS = "follow_commands"
    STOP_COMMANDS = "stop_commands"
    READ_OUTPUT = "read_output"
    WRITE_INPUT = "write_input"
    SIGNAL_COMMAND = "signal_command"
    CLEAN_COMMANDS = "clean_commands"
    TELL_INTERRUPTED = "tell_interrupted"
    READ_FILE = "read_file"
    WRITE_FILE = "write_file"
    DOWNLOAD_WORKSPACE = "download_workspace"
    SAVE_WORKSPACE = "save_workspace"
    FILL_SANDBOX = "fill_sandbox"
    PUSH_FILES = "push_files"
    SANDBOX_STATUSES = "sandbox_statuses"
    CLEAN_STORAGE = "clean_storage"


def is_id(value: str) -> bool:
    """Whether `value` can be a session or sandbox id."""
    return _ID.match(value) is not None


def is_call_id(value: str) -> bool:
    """Whether `value` can be a call id."""
    return _CALL_ID.match(value) is not None


def is_owner(value: str) -> bool:
    """Whether `value` can be an owner id."""
    return _OWNER.match(value) is not None


def session_workflow_id(session_id: str) -> str:
    return f"session/{session_id}"


def sandbox_workflow_id(session_id: str, sandbox_id: str) -> str:
    return f"sandbox/{session_id}/{sandbox_id}"


def is_sandbox_of(workflow_id: str, session_workflow: str) -> bool:
    """Whether the first is the workflow id of a sandbox of the session with the second."""
    kind, _, session_id = session_workflow.partition("/")
    return kind == "session" and workflow_id.startswith(f"sandbox/{session_id}/")


def follow_queue(task_queue: str) -> str:
    """The task queue of the followers of long commands, beside the deployment's own."""
    return task_queue + FOLLOW_QUEUE_SUFFIX


def provider_name(deployment: str, session_id: str, sandbox_id: str, generation: int) -> str:
    """The provider's name of a sandbox: the same for every attempt at creating one generation."""
    digest = hashlib.sha256(f"{deployment}\0{session_id}\0{sandbox_id}".encode()).hexdigest()
    return f"sandhold-{digest[:32]}-g{generation}"


def provider_labels(deployment: str, owner: str, session_id: str, sandbox_id: str) -> dict[str, str]:
    """The labels that say whose a provider sandbox is."""
    return {
        MANAGED_LABEL: "true",
        DEPLOYMENT_LABEL: deployment,
        OWNER_LABEL: owner,
        SESSION_LABEL: session_id,
        SANDBOX_LABEL: sandbox_id,
    }


def call_folder(call_id: str) -> str:
    """A call's folder name in session storage and in its sandbox: one path segment, unique for the call id.

    Call ids may begin with a dot (`..` is a valid one), which no folder name may; `%` is in no call id.
    """
    return f"%2E{call_id[1:]}" if call_id.startswith(".") else call_id


def output_folder(call_id: str, stream: Literal["stdout", "stderr"]) -> str:
    """Where a command's output lies in session storage, as segments named by their offset."""
    return f"calls/{call_folder(call_id)}/{stream}"
