"""The credentials of clones: had when one begins, and ended when it is over, by whichever worker."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pydantic import SecretStr

from activities.github_faults import failure_of
from activities.minted_tokens import MintedTokens, to_its_end
from sandhold.contracts.steps import CallStep, SandboxRef
from sandhold.github import READ, USERNAME, GitHub, GitHubFault, RepositoryAddress, RepositoryNotGranted
from sandhold.vault import GitToken

ENDS_TOO_SOON = timedelta(minutes=5)
"""A token that has less left is not given to a clone that begins."""


class CloneTokens:
    """Every token that was minted for a clone is in the vault from before its delivery until it has ended."""

    def __init__(self, github: GitHub, minted: MintedTokens) -> None:
        self._github = github
        self._minted = minted

    async def access(
        self, step: CallStep, address: RepositoryAddress, *, submodules: bool
    ) -> tuple[str, SecretStr] | None:
        """User name and token for the clone; None when none belongs there.

        One that is minted is for the repository alone; with `submodules`, whose names are not known yet, for all that
        the installation has. Another attempt of the same call gets the same token, while that lives. Raises GitHubFault
        (a refusal), ApplicationError to be repeated, VaultError and SecurityError. A cancellation waits until what is
        minted is in the vault.
        """
        return await to_its_end(self._access(step, address, submodules=submodules))

    async def _access(
        self, step: CallStep, address: RepositoryAddress, *, submodules: bool
    ) -> tuple[str, SecretStr] | None:
        for token in await self.of(step.ref, step.call_id):
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
            await self._minted.keep(step.ref, access, step.call_id)
        return access.username, access.token

    async def of(self, ref: SandboxRef, call_id: str) -> list[GitToken]:
        """The minted tokens of the clone that have not been ended."""
        return [token for token in await self._minted.of(ref) if token.call_id == call_id]

    async def stored(self, owner: str) -> tuple[str, SecretStr] | None:
        """User name and token that the owner has connected, where that is a token."""
        connection = await self._github.connection(owner)
        if connection is None or connection.token is None:
            return None
        return connection.account or USERNAME, connection.token

    async def note_answer(self, owner: str, *, refused: bool) -> None:
        """Note at the vault whether the server took the token that the owner has connected, where that is one."""
        if await self.stored(owner) is None:
            return
        access = await self._github.access(owner, None, READ)
        if access is not None:
            await self._github.note_answer(owner, access, refused=refused)

    async def end(self, token: GitToken) -> None:
        """Revoke it and forget it. Raises GitHubFault and VaultError when that is not known to have been done."""
        await self._minted.end(token)


def patterns_of(token: SecretStr, username: str = USERNAME) -> list[str]:
    """A token as it is, and as http sends it with its user name."""
    value = token.get_secret_value()
    # Without its end, which depends on what comes behind.
    basic = base64.b64encode(f"{username}:{value}".encode()).decode().rstrip("=")
    return [value, basic]
