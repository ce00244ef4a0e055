"""Making, replacing and removing an owner's connection, so that no sandbox is lost or left behind by it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pydantic import SecretStr
from temporalio.client import Client

from sandhold.connections.daytona_key import DaytonaKey, KeyCheck
from sandhold.connections.replacement import KeyBefore, check_sandboxes
from sandhold.connections.use import SHOWN, UsedSandbox, sandboxes_under, shown_names
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.security import SecurityError
from sandhold.vault import ConnectionMissing, ConnectionRow, Provider, Vault

Temporal = Callable[[], Awaitable[Client]]
"""Connects when it is needed: a first connection needs nothing of Temporal."""


class ConnectionInUse(ToolFailure):
    """Open sandboxes are used under the connection; without it they could not even be deleted."""

    def __init__(self, owner: str, provider: str, used: list[UsedSandbox], *, more: bool) -> None:
        others = " and others" if more else ""
        super().__init__(
            ErrorCode.CONFLICT,
            f"sandboxes of {owner!r} are open under the connection to {provider}: {shown_names(used)}{others}",
            hint="End their sessions first. With --force the connection goes all the same: those sandboxes cannot be "
            "used or deleted any more until the same organization is connected again.",
        )


@dataclass(frozen=True)
class Connected:
    """A connection that was made or replaced."""

    row: ConnectionRow
    key: DaytonaKey
    replaced: bool
    sandboxes_seen: int = 0
    """Of the open sandboxes that were looked for by the new key."""


@dataclass(frozen=True)
class Disconnected:
    """A connection that was removed, and what is left without it."""

    owner: str
    provider: str
    left_behind: list[UsedSandbox] = field(default_factory=list)


async def connect_daytona(
    temporal: Temporal, vault: Vault, owner: str, key: SecretStr, api_url: str | None = None
) -> Connected:
    """Store a key after it has proved itself: the provider takes it, and it sees the connection's open sandboxes.

    Raises KeyRefused, ProviderUnreachable, SeesOtherSandboxes, SandboxesUntold, TemporalUnreachable and VaultError;
    nothing is stored then.
    """
    before = await _row_of(vault, owner, "daytona")
    async with KeyCheck(key, api_url) as check:
        told = await check.look()
        seen = 0
        if before is not None:
            async with await _key_before(vault, before) as key_before:
                seen = await check_sandboxes(await temporal(), before, key_before, told, check)
    row = await vault.put_connection(
        owner,
        "daytona",
        key,
        replaces=0 if before is None else before.version,
        api_url=api_url,
        organization=told.organization,
        details=told.model_dump(mode="json", include={"name", "permissions", "expires_at"}),
    )
    return Connected(row, told, before is not None, seen)


async def disconnect(temporal: Temporal, vault: Vault, owner: str, provider: Provider, *, force: bool) -> Disconnected:
    """Remove a connection that no open sandbox is used under, or with `force` any.

    Raises ConnectionMissing, ConnectionInUse, TemporalUnreachable and VaultError; nothing is changed then.
    """
    row = await _row_of(vault, owner, provider)
    if row is None:
        raise ConnectionMissing(owner, provider)
    used: list[UsedSandbox] = []
    if provider == "daytona":
        async for each in sandboxes_under(await temporal(), owner, row.id):
            used.append(each)
            if len(used) > SHOWN and not force:
                break
    if used and not force:
        raise ConnectionInUse(owner, provider, used[:SHOWN], more=len(used) > SHOWN)
    await vault.delete_connection(owner, provider, version=row.version)
    return Disconnected(owner, provider, used)


async def _row_of(vault: Vault, owner: str, provider: Provider) -> ConnectionRow | None:
    return next((row for row in await vault.connection_rows(owner) if row.provider == provider), None)


async def _key_before(vault: Vault, before: ConnectionRow) -> KeyBefore:
    try:
        record = await vault.connection(before.owner, before.provider)
    except SecurityError:
        record = None  # A key that does not open any more is one to be replaced.
    return KeyBefore(None if record is None else record.secret, before.api_url)
