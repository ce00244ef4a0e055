"""The credentials of clones: had when one begins, and ended when it is over, by whichever worker."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog
from pydantic import SecretStr

from activities.github_faults import failure_of
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.steps import CallStep, SandboxRef
from sandhold.github import READ, USERNAME, Access, GitHub, GitHubFault, RepositoryAddress, RepositoryNotGranted
from sandhold.vault import GitToken, Vault

log = structlog.get_logger("git")

ENDS_TOO_SOON = timedelta(minutes=5)
"""A token that has less left is not given to a clone that begins."""

RunOf = Callable[[str], Awaitable[str | None]]
"""The first run of a session; None when Temporal knows no such session."""


class CloneTokens:
    """Every token that was minted for a clone is in the vault from before its delivery until it has ended."""

    def __init__(self, github: GitHub, vault: Vault, run_of: RunOf) -> None:
        self._github = github
        self._vault = vault
        self._run = run_of

    async def access(
        self, step: CallStep, address: RepositoryAddress, *, submodules: bool
    ) -> tuple[str, SecretStr] | None:
        """User name and token for the clone; None when none belongs there.

        One that is minted is for the repository alone; with `submodules`, whose names are not known yet, for all that
        the installation has. Another attempt of the same call gets the same token, while that lives. Raises GitHubFault
        (a refusal), ApplicationError to be repeated, VaultError and SecurityError.
        """
        run_id = await self._run_of(step.ref)
        for token in await self._live(step.ref, run_id, step.call_id):
            if token.expires_at - datetime.now(UTC) > ENDS_TOO_SOON and address.is_connected_host:
                return USERNAME, token.token
        try:
            wanted = replace(address, name=None) if submodules else address
            access = await self._github.access(step.ref.owner, wanted, READ)
        except RepositoryNotGranted:
            return None  # It may be public. If not, nobody is told more than that it was not found.
        except GitHubFault as fault:
            if not fault.error.retryable:
                raise
            raise failure_of(fault) from fault
        if access is None:
            return None
        if access.minted:
            await self._keep(step, run_id, access)
        return access.username, access.token

    async def of(self, ref: SandboxRef, call_id: str) -> list[GitToken]:
        """The minted tokens of the clone that have not been ended."""
        return await self._live(ref, await self._run_of(ref), call_id)

    async def stored(self, owner: str) -> SecretStr | None:
        """The token that the owner has connected, where that is one."""
        connection = await self._github.connection(owner)
        return None if connection is None else connection.token

    async def note_answer(self, owner: str, *, refused: bool) -> None:
        """Note at the vault whether the server took the token that the owner has connected, where that is one."""
        if await self.stored(owner) is None:
            return
        access = await self._github.access(owner, None, READ)
        if access is not None:
            await self._github.note_answer(owner, access, refused=refused)

    async def end(self, token: GitToken) -> None:
        """Revoke it and forget it. Raises GitHubFault and VaultError when that is not known to have been done."""
        if token.expires_at > datetime.now(UTC):
            await self._github.revoke(token)
        await self._vault.delete_git_token(token.id)

    async def _keep(self, step: CallStep, run_id: str, access: Access) -> None:
        assert access.expires_at is not None
        try:
            await self._vault.put_git_token(
                access.token,
                owner=step.ref.owner,
                session_id=step.ref.session_id,
                run_id=run_id,
                sandbox_id=step.ref.sandbox_id,
                generation=step.ref.generation,
                purpose="clone",
                call_id=step.call_id,
                api_url=access.api_url,
                expires_at=access.expires_at,
            )
        except BaseException:
            # Nobody else will know of it.
            try:
                await self._github.revoke(access)
            except GitHubFault as fault:
                log.error("a token that was not stored was not revoked", reason=str(fault), ends_at=access.expires_at)
            raise

    async def _live(self, ref: SandboxRef, run_id: str, call_id: str) -> list[GitToken]:
        tokens = await self._vault.git_tokens(ref.session_id, run_id, ref.sandbox_id)
        return [token for token in tokens if token.purpose == "clone" and token.call_id == call_id]

    async def _run_of(self, ref: SandboxRef) -> str:
        run_id = await self._run(ref.session_id)
        if run_id is None:
            raise ToolFailure(ErrorCode.INTERNAL, f"Temporal knows no session {ref.session_id}")
        return run_id


def patterns_of(token: SecretStr, username: str = USERNAME) -> list[str]:
    """A token as it is, and as http sends it with its user name."""
    value = token.get_secret_value()
    # Without its end, which depends on what comes behind.
    basic = base64.b64encode(f"{username}:{value}".encode()).decode().rstrip("=")
    return [value, basic]
