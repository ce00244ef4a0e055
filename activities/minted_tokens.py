"""Tokens that were minted for git in sandboxes: in the vault from before their delivery until they have ended.

So whoever comes after a worker that died knows of them, and ends them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import structlog

from sandhold.contracts.errors import ErrorCode, ToolError, as_application_error
from sandhold.contracts.steps import SandboxRef
from sandhold.github import Access, GitHub, GitHubFault
from sandhold.vault import GitToken, GitTokenPurpose, Vault

log = structlog.get_logger("git")

T = TypeVar("T")
RunOf = Callable[[str], Awaitable[str | None]]
"""The first run of a session; None when Temporal knows no such session."""


class MintedTokens:
    """The tokens of sandboxes for one purpose."""

    def __init__(self, purpose: GitTokenPurpose, github: GitHub, vault: Vault, run_of: RunOf) -> None:
        self._purpose: GitTokenPurpose = purpose
        self._github = github
        self._vault = vault
        self._run_of = run_of

    async def of(self, ref: SandboxRef) -> list[GitToken]:
        """Those of the sandbox that have not been ended, the oldest first. Raises VaultError and SecurityError."""
        tokens = await self._vault.git_tokens(ref.session_id, await self._run(ref), ref.sandbox_id)
        return [token for token in tokens if token.purpose == self._purpose and token.generation <= ref.generation]

    async def keep(self, ref: SandboxRef, access: Access, call_id: str | None = None) -> GitToken:
        """Put one that was just minted into the vault. When that fails it is ended, as far as that can be done."""
        assert access.expires_at is not None
        try:
            return await self._vault.put_git_token(
                access.token,
                owner=ref.owner,
                session_id=ref.session_id,
                run_id=await self._run(ref),
                sandbox_id=ref.sandbox_id,
                generation=ref.generation,
                purpose=self._purpose,
                call_id=call_id,
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

    async def end(self, token: GitToken) -> None:
        """Revoke it and forget it. Raises GitHubFault and VaultError when that is not known to have been done."""
        if token.expires_at > datetime.now(UTC):
            await self._github.revoke(token)
        await self._vault.delete_git_token(token.id)

    async def _run(self, ref: SandboxRef) -> str:
        run_id = await self._run_of(ref.session_id)
        if run_id is None:
            message = f"Temporal knows no session {ref.session_id}"
            raise as_application_error(ToolError(code=ErrorCode.INTERNAL, message=message))
        return run_id


async def to_its_end(work: Awaitable[T]) -> T:
    """What `work` comes to. A cancellation meanwhile is raised when that has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise
