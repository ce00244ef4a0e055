"""What the sessions of an owner can use, by which connection, and if not, why."""

from __future__ import annotations

from sandhold.client.rows import Capability
from sandhold.connections.address import HOSTED_API_URL, deployment_address
from sandhold.settings import Settings
from sandhold.vault import ConnectionRow, Vault

_REFUSED = {
    "connection_required": "the provider does not take its key any more",
    "provider_rejected": "its key does not allow what was asked of it",
}


async def capabilities_of(settings: Settings, vault: Vault, owner: str) -> list[Capability]:
    """As the vault and the settings of this process say. Opens no secret. Raises VaultError."""
    rows = {row.provider: row for row in await vault.connection_rows(owner)}
    return [_sandboxes(settings, rows.get("daytona"), owner)]


def _sandboxes(settings: Settings, own: ConnectionRow | None, owner: str) -> Capability:
    if own is not None:
        failed = own.last_failure
        if failed is None:
            return Capability(
                name="sandboxes",
                available=True,
                connection="own",
                reason=f"the Daytona connection of {owner}, at {own.api_url or HOSTED_API_URL}",
            )
        return Capability(
            name="sandboxes",
            available=False,
            connection="own",
            reason=f"the Daytona connection of {owner} failed at {own.last_failure_at:%Y-%m-%d %H:%M} UTC: "
            f"{_REFUSED.get(failed, failed)}; replace it with `sandhold connect daytona --owner {owner}`",
        )
    address = deployment_address(settings)
    if address is not None:
        return Capability(
            name="sandboxes",
            available=True,
            connection="deployment",
            reason=f"the Daytona account of this deployment, at {address}",
        )
    return Capability(
        name="sandboxes",
        available=False,
        reason=f"{owner} has no Daytona connection, and none of the deployment is set here; "
        f"make one with `sandhold connect daytona --owner {owner}`",
    )
