"""The tool `daytona_git_credentials`: git in a sandbox reaches the connected host until the sandbox stops."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sandhold.contracts.base import Message, Strict
from sandhold.contracts.fields import SandboxId
from sandhold.contracts.steps import SandboxRef


class GitCredentialsArguments(Strict):
    """Let git in a sandbox pull from and push to the user's GitHub, over https. The credential is renewed while the
    sandbox runs, taken away when it stops, and back after its next start. Calling again is harmless."""

    sandbox_id: SandboxId
    """The sandbox."""


class GitCredentialsResult(Message):
    authenticated: bool
    """Whether git in the sandbox has a credential now."""
    provider: Literal["github"] = "github"
    hosts: list[str]
    """The hosts that it is for; git gives it to no other one."""
    expires_at: datetime | None = None
    """When the credential of now ends; it is renewed before. Null for a token that the user has stored."""
    hint: str | None = None


class GitCredentialsKept(Message):
    """What a sandbox's workflow keeps of git's credentials, from before the first was asked for."""

    wanted: bool = False
    """Whether git in the sandbox is to have them while it runs."""
    in_place: bool = False
    """Whether their file may be in the sandbox."""
    tokens: bool = False
    """Whether some that were minted may not have been ended."""
    version: int | None = None
    """Of the connection that those in place are by."""
    due_at: datetime | None = None
    """When something is to be done: to renew them, or to try again what failed."""
    requests: int = 0
    """How many changes inside the sandbox were asked for: by it a late one is known there."""


class InstallGitCredentialsStep(Message):
    """Put a credential for git in place, the present one while it is young: `install_git_credentials`."""

    ref: SandboxRef
    number: int
    """Of the change, in order."""
    version: int | None = None
    """Of the connection by which the present one was had; None when there is none, or that is unknown."""


class GitCredentialsInstalled(Message):
    """A credential is in place."""

    result: GitCredentialsResult
    version: int
    renew_at: datetime
    """When another one is to be had."""


class RemoveGitCredentialsStep(Message):
    """Take the credential's file out of the sandbox: `remove_git_credentials`."""

    ref: SandboxRef
    number: int
    for_good: bool = False
    """Whether git's settings go as well."""


class RevokeGitTokensStep(Message):
    """End every token that was minted for git in the sandbox: `revoke_git_tokens`."""

    ref: SandboxRef


class GitTokensRevoked(Message):
    revoked: int
    """How many were ended, those included that had expired."""
