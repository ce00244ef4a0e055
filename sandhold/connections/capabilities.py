"""What the sessions of an owner can use, by which connection, and if not, why.

Workers decide that, with their vault and their settings, and whoever asks may have others. So only what is known of the
workers is told for sure: what a stack on this machine gave them, what they noted in the vault, and under which
connections the session's sandboxes are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sandhold.client.rows import Capability
from sandhold.connections.address import HOSTED_API_URL
from sandhold.contracts.names import DEFAULT_CONNECTION
from sandhold.contracts.sandboxes import SandboxStatus, ShownSandbox
from sandhold.settings import Settings, read_stack
from sandhold.vault import ConnectionRow, Vault

_REFUSED = {
    "connection_required": "the provider does not take its key any more",
    "provider_rejected": "its key does not allow what was asked of it",
}

_REFUSED_BY_GITHUB = {
    "authentication_failed": "GitHub does not take it any more, or does not give it what was asked for",
    "connection_required": "the installation was removed",
}


async def capabilities_of(
    settings: Settings, vault: Vault, owner: str, sandboxes: Sequence[ShownSandbox] = ()
) -> list[Capability]:
    """For a session of `owner` with these sandboxes. Opens no secret. Raises VaultError and StackError."""
    rows = {row.provider: row for row in await vault.connection_rows(owner)}
    known = _Known.of(settings, vault, sandboxes)
    return [_sandboxes(known, rows.get("daytona"), owner), _git(known, rows.get("github"), owner)]


@dataclass(frozen=True)
class _Known:
    """What is known here of the workers."""

    vault_is_theirs: bool
    """Whether a stack on this machine says that they have the vault which is read here."""
    account: str | None
    """Where the deployment's own Daytona account is that the same stack gave them; None also when it gave them none."""
    under: dict[str, str]
    """By connection, one of the session's sandboxes that is used under it, as that says itself."""

    @classmethod
    def of(cls, settings: Settings, vault: Vault, sandboxes: Sequence[ShownSandbox]) -> _Known:
        stack = read_stack(settings.data_dir)
        is_theirs = (
            stack.get("temporal_address") == settings.temporal_address and stack.get("workers_vault") == vault.shown
        )
        under = {
            each.connection: each.sandbox_id
            for each in sandboxes
            if isinstance(each, SandboxStatus) and each.connection is not None
        }
        return cls(is_theirs, stack.get("daytona_api_url") if is_theirs else None, under)


def _sandboxes(known: _Known, own: ConnectionRow | None, owner: str) -> Capability:
    if own is not None:
        return _by_own(known, own)
    if known.account is not None:
        return _told(True, f"the Daytona account of this deployment, at {known.account}", "deployment")
    if known.vault_is_theirs:
        return _told(
            False,
            f"{owner} has no Daytona connection, and this deployment has none; "
            f"make one with `sandhold connect daytona --owner {owner}`",
        )
    if (sandbox := known.under.get(DEFAULT_CONNECTION)) is not None:
        return _told(
            True, f"the Daytona account of this deployment, which sandbox {sandbox} is used under", "deployment"
        )
    if known.under:
        [sandbox, *_] = known.under.values()
        return _told(
            None,
            f"not known here: sandbox {sandbox} is used under a connection that is not in the vault read here, so "
            "the workers have another one, or it was removed",
        )
    return _told(
        None,
        f"not known here: {owner} has no Daytona connection in the vault read here; whether the workers have this "
        f"vault, and an account of the deployment, only they know; `sandhold connect daytona --owner {owner}` "
        "makes one",
    )


def _by_own(known: _Known, own: ConnectionRow) -> Capability:
    what = f"the Daytona connection of {own.owner}"
    if own.last_failure is not None:
        return _told(
            False,
            f"{what} failed at {own.last_failure_at:%Y-%m-%d %H:%M} UTC: "
            f"{_REFUSED.get(own.last_failure, own.last_failure)}; "
            f"replace it with `sandhold connect daytona --owner {own.owner}`",
            "own",
        )
    at = f"{what}, at {own.api_url or HOSTED_API_URL}"
    if known.vault_is_theirs or own.last_used_at is not None or own.id in known.under:
        return _told(True, at, "own")
    return _told(None, f"{at}, in the vault read here; no worker has used it yet", "own")


def _git(known: _Known, own: ConnectionRow | None, owner: str) -> Capability:
    """Whether git gets a credential. Repositories that everybody may read are cloned without."""
    connect = f"`sandhold connect github --owner {owner}`"
    if own is None:
        without = (
            f"{owner} has no GitHub connection, so that git reads public repositories alone; make one with {connect}"
        )
        if known.vault_is_theirs:
            return _told_of("git", False, without)
        return _told_of("git", None, f"not known here: in the vault read here {without}")
    by_app = own.details.get("kind") == "app"
    what = f"the GitHub {'App' if by_app else 'token'} of {own.details.get('account') or owner}"
    if own.last_failure is not None:
        why = _REFUSED_BY_GITHUB.get(own.last_failure, own.last_failure)
        failed = f"{what} failed at {own.last_failure_at:%Y-%m-%d %H:%M} UTC: {why}; replace it with {connect}"
        return _told_of("git", False, failed, "own")
    at = f"{what}, at {own.api_url}"
    # Whether the workers have the app itself, only its use tells.
    if own.last_used_at is not None or (known.vault_is_theirs and not by_app):
        return _told_of("git", True, at, "own")
    return _told_of("git", None, f"{at}, in the vault read here; no worker has used it yet", "own")


def _told(available: bool | None, reason: str, connection: str | None = None) -> Capability:
    return _told_of("sandboxes", available, reason, connection)


def _told_of(
    name: Literal["sandboxes", "git"], available: bool | None, reason: str, connection: str | None = None
) -> Capability:
    return Capability.model_validate({"name": name, "available": available, "connection": connection, "reason": reason})
