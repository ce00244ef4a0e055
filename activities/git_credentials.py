"""Git's credential in a sandbox: minted, put in place, taken away, ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from pydantic import SecretStr
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.git_requests import answer_of
from activities.git_scripts.credentials import (
    CredentialAnswer,
    Delivery,
    credential_answer,
    install_request,
    remove_request,
)
from activities.git_scripts.frames import ScriptRequest
from activities.heartbeats import heartbeats
from activities.minted_tokens import MintedTokens, to_its_end
from activities.provider import ProviderAccess
from sandhold.contracts.errors import ErrorCode, ToolError, as_application_error
from sandhold.contracts.git_credentials import (
    GitCredentialsInstalled,
    GitCredentialsResult,
    GitTokensRevoked,
    InstallGitCredentialsStep,
    RemoveGitCredentialsStep,
    RevokeGitTokensStep,
)
from sandhold.contracts.names import Activity
from sandhold.contracts.steps import SandboxRef
from sandhold.github import USERNAME, WRITE, GitHub, GitHubConnection, GitHubFault, how_to_connect
from sandhold.vault import VaultError

log = structlog.get_logger("git")

ANSWERS_WITHIN_S = 20.0
LOOKED_AT_EVERY = timedelta(hours=1)
"""How often a stored token, which has no end that anybody knows, is looked up again."""
_NO_GIT = "There is no git in the sandbox yet; install it, and call this tool again."
_LOCKED = "Git's settings in the sandbox could not be changed (~/.gitconfig is locked or not writable): mend that, and \
call this tool again."


@dataclass(frozen=True)
class _Credential:
    delivery: Delivery
    expires_at: datetime | None
    renew_at: datetime
    version: int


class GitCredentialsActivities:
    """Changes git's credential in a sandbox. Every token that is minted is in the vault before it is delivered."""

    def __init__(self, access: ProviderAccess, github: GitHub, tokens: MintedTokens) -> None:
        self._access = access
        self._github = github
        self._tokens = tokens

    @activity.defn(name=Activity.INSTALL_GIT_CREDENTIALS)
    async def install_git_credentials(self, step: InstallGitCredentialsStep) -> GitCredentialsInstalled:
        """Put a credential in place; git in the sandbox finds it when this returns.

        The one before is put in place again while it is in the first half of its life and by the same connection; else
        another one is had, and the one before goes on until it ends by itself, as something may be at work with it.
        Raises `connection_required`, what GitHub refuses, and as `ProviderAccess.toolbox`.
        """
        async with heartbeats():
            # A cancellation waits: nobody may look for tokens while one is on its way into the vault.
            credential = await to_its_end(self._credential(step))
            answer = await self._ask(step.ref, install_request(step.number, credential.delivery))
            if answer.late:
                raise as_application_error(ToolError(code=ErrorCode.CANCELLED, message="a later change was made"))
            if not answer.done:
                raise _not_delivered(answer)
        host = credential.delivery.host
        hint = {"no": _NO_GIT, "locked": _LOCKED}.get(
            answer.git or "", f"Only https://{host} gets it, no other host and no ssh: use https addresses."
        )
        return GitCredentialsInstalled(
            result=GitCredentialsResult(
                authenticated=answer.git == "yes", hosts=[host], expires_at=credential.expires_at, hint=hint
            ),
            version=credential.version,
            renew_at=credential.renew_at,
        )

    @activity.defn(name=Activity.REMOVE_GIT_CREDENTIALS)
    async def remove_git_credentials(self, step: RemoveGitCredentialsStep) -> None:
        """Take the file out of the sandbox; it is gone when this returns. Raises as `ProviderAccess.toolbox`."""
        async with heartbeats():
            answer = await self._ask(step.ref, remove_request(step.number, self._github.host, for_good=step.for_good))
            if not answer.late and not answer.done:
                raise _not_delivered(answer)

    @activity.defn(name=Activity.REVOKE_GIT_TOKENS)
    async def revoke_git_tokens(self, step: RevokeGitTokensStep) -> GitTokensRevoked:
        """End all tokens that were minted for the sandbox's git; they are when this returns.

        Every one is tried. Raises an error to be repeated when one is not known to have ended.
        """
        revoked, faults = 0, list[GitHubFault | VaultError]()
        async with heartbeats():
            for token in await self._tokens.of(step.ref):
                try:
                    await self._tokens.end(token)
                    revoked += 1
                except (GitHubFault, VaultError) as fault:
                    faults.append(fault)
        if faults:
            left = len(faults)
            log.warning("tokens of git were not revoked", sandbox=step.ref.sandbox_id, left=left, revoked=revoked)
            raise _to_be_repeated(faults)
        return GitTokensRevoked(revoked=revoked)

    async def _credential(self, step: InstallGitCredentialsStep) -> _Credential:
        connection = await self._github.connection(step.ref.owner)
        if connection is not None and (young := await self._young(step, connection)):
            token, expires_at, renew_at = young
            return _Credential(self._delivery(connection, token), expires_at, renew_at, connection.version)
        access = await self._github.access(step.ref.owner, None, WRITE)
        if access is None:
            raise as_application_error(_not_connected(step.ref.owner))
        now = datetime.now(UTC)
        if access.minted:
            await self._tokens.keep(step.ref, access)
        renew_at = now + (LOOKED_AT_EVERY if access.expires_at is None else (access.expires_at - now) / 2)
        delivery = Delivery(
            access.hosts[0], access.username, access.token.get_secret_value(), access.name or "", access.email or ""
        )
        return _Credential(delivery, access.expires_at, renew_at, access.version)

    async def _young(
        self, step: InstallGitCredentialsStep, connection: GitHubConnection
    ) -> tuple[SecretStr, datetime, datetime] | None:
        """The token in place, or of an earlier attempt, with its end and its life's middle, while that is ahead."""
        info = activity.info()
        if connection.version != step.version and info.attempt == 1:
            return None
        tokens = await self._tokens.of(step.ref)
        if not tokens:
            return None
        latest = tokens[-1]
        if connection.version != step.version and latest.created_at < info.scheduled_time:
            return None
        middle = latest.created_at + (latest.expires_at - latest.created_at) / 2
        return (latest.token, latest.expires_at, middle) if datetime.now(UTC) < middle else None

    def _delivery(self, connection: GitHubConnection, token: SecretStr) -> Delivery:
        host = self._github.hosts(connection)[0]
        return Delivery(host, USERNAME, token.get_secret_value(), connection.name or "", connection.email or "")

    async def _ask(self, ref: SandboxRef, request: ScriptRequest) -> CredentialAnswer:
        return await answer_of(self._access, ref, request, credential_answer, most_s=ANSWERS_WITHIN_S, sure=False)


def _not_connected(owner: str) -> ToolError:
    return ToolError(
        code=ErrorCode.CONNECTION_REQUIRED,
        message="the user has not connected GitHub",
        hint=how_to_connect(owner),
        provider="github",
    )


def _not_delivered(answer: CredentialAnswer) -> ApplicationError:
    if answer.failed == "folder":
        error = ToolError(
            code=ErrorCode.PERMISSION_DENIED,
            message="~/.sandhold/git in the sandbox is no folder that its user alone may enter",
            hint="Look at it with daytona_exec; remove it where it is somebody else's or a link, and call again.",
        )
    else:
        error = ToolError(
            code=ErrorCode.DISK_FULL,
            message="git's credential could not be written or removed in the sandbox",
            hint="Look whether ~/.sandhold is writable and the disk is full.",
        )
    return as_application_error(error)


def _to_be_repeated(faults: list[GitHubFault | VaultError]) -> ApplicationError:
    waits = [fault.retry_after for fault in faults if isinstance(fault, GitHubFault) and fault.retry_after is not None]
    error = ToolError(
        code=ErrorCode.PROVIDER_UNAVAILABLE,
        message=f"{len(faults)} tokens of git were not revoked: {faults[0]}",
        retryable=True,
        provider="github",
    )
    return ApplicationError(error.message, error, type=error.code, next_retry_delay=max(waits) if waits else None)
