"""Ending the tokens of git that sessions have left: what their sandboxes could not, and what has ended by itself.

A token lives for an hour. This is for the rest of that hour, and for the rows, which nobody needs after it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.client import Client

from activities.ended_secrets import is_over
from sandhold.github import GitHub, GitHubFault
from sandhold.security import SecurityError
from sandhold.vault import GitToken, SecretsOfSession, Vault, VaultError

_AT_ONCE = 100


class EndedGitTokens:
    """The clean-up of git's tokens."""

    def __init__(self, client: Client, vault: Vault, github: GitHub, deployment: str, settled_after: timedelta) -> None:
        self._client = client
        self._vault = vault
        self._github = github
        self._deployment = deployment
        self._settled_after = settled_after

    async def end(self, *, dry_run: bool) -> tuple[int, int]:
        """End those of sessions that are over, and forget those that have expired; how many, and how many are left.

        What is left could not be revoked or does not open, and ends by itself. Raises RPCError and VaultError.
        """
        ended = await self._forget_expired(dry_run=dry_run)
        left = 0
        claimed_by = await self._vault.claimed_by()
        after = ("", "")
        while found := await self._vault.sessions_with_git_tokens(after, _AT_ONCE):
            for each in found:
                after = (each.session_id, each.run_id)
                if not await is_over(self._client, each, claimed_by == self._deployment, self._settled_after):
                    continue
                for token in await self._tokens(each):
                    if dry_run or await self._is_ended(token):
                        ended += 1
                    else:
                        left += 1
        return ended, left

    async def _forget_expired(self, *, dry_run: bool) -> int:
        forgotten = 0
        while ids := await self._vault.git_tokens_to_end(datetime.now(UTC)):
            forgotten += len(ids)
            if dry_run:
                break
            for each in ids:
                await self._vault.delete_git_token(each)
        return forgotten

    async def _tokens(self, of: SecretsOfSession) -> list[GitToken]:
        try:
            tokens = await self._vault.git_tokens(of.session_id, of.run_id)
        except SecurityError as error:
            activity.logger.warning("tokens do not open", extra={"session": of.session_id, "reason": str(error)})
            return []
        now = datetime.now(UTC)
        return [token for token in tokens if token.expires_at > now]

    async def _is_ended(self, token: GitToken) -> bool:
        try:
            await self._github.revoke(token)
            await self._vault.delete_git_token(token.id)
        except (GitHubFault, VaultError) as fault:
            activity.logger.warning(
                "a token was not revoked", extra={"session": token.session_id, "reason": str(fault)}
            )
            return False
        return True
