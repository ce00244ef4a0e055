"""Which connection a sandbox is used under: the owner's own, or the deployment's.

A sandbox stays with the connection that it was created under: under another one the provider may answer "not found",
which would read as its absence. So the choice is made once, for its creation, and then carried by its workflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import SecretStr
from temporalio.exceptions import ApplicationError

from sandhold.contracts.errors import ErrorCode, ToolError, as_application_error
from sandhold.contracts.names import DEFAULT_CONNECTION
from sandhold.contracts.steps import SandboxRef
from sandhold.security.process_secrets import register_secret_in_use
from sandhold.settings import Settings
from sandhold.vault import Vault, VaultCache

DAYTONA: Final = "daytona"
_NEITHER = "the owner {owner!r} has no Daytona connection, and this deployment has none"


@dataclass(frozen=True)
class Connection:
    """Access to a provider account. A new key for the same connection is a new version."""

    id: str
    version: int
    owner: str
    """Whose it is; for the deployment's own, who uses it."""
    api_url: str | None
    """None for the hosted service."""
    api_key: SecretStr
    organization: str | None = None
    created_at: datetime | None = None
    """None for the deployment's own, which was there before."""
    has_failed: bool = False
    """Whether the last use that is on record was refused."""

    @property
    def is_default(self) -> bool:
        return self.id == DEFAULT_CONNECTION

    @property
    def key(self) -> tuple[str, int]:
        """Tells it from every other connection, and from its own other versions."""
        return self.id, self.version


class Connections:
    """Finds the connections of owners. Without a vault there is only the deployment's own."""

    def __init__(self, settings: Settings, vault: Vault | None = None) -> None:
        self._settings = settings
        self.vault = vault
        self.cache = None if vault is None else VaultCache(vault)
        """What it held some seconds ago at most."""

    def default(self, owner: str) -> Connection | None:
        """The deployment's own connection, for `owner` to use; None when it has none."""
        key = self._settings.daytona_api_key
        if key is None:
            return None
        return Connection(DEFAULT_CONNECTION, 1, owner, self._settings.daytona_api_url, key)

    async def own(self, owner: str, *, fresh: bool = False) -> Connection | None:
        """The owner's own connection; None when there is none."""
        if self.cache is None:
            return None
        record = await self.cache.connection(owner, DAYTONA, fresh=fresh)
        if record is None:
            return None
        register_secret_in_use(f"{DAYTONA}-connection", record.secret.get_secret_value())
        return Connection(
            id=record.id,
            version=record.version,
            owner=owner,
            api_url=record.api_url,
            api_key=record.secret,
            organization=record.organization,
            created_at=record.created_at,
            has_failed=record.last_failure is not None,
        )

    async def for_new(self, owner: str, asked_at: datetime | None = None) -> Connection:
        """The connection for a sandbox whose creation was asked for at `asked_at`, the same whenever this is asked.

        The owner's own, unless it was made after that and there is the deployment's: an earlier attempt may have
        used that. Raises ApplicationError `connection_required`.
        """
        default = self.default(owner)
        own = await self.own(owner, fresh=True)
        if own is not None and (default is None or asked_at is None or not _made_after(own, asked_at)):
            return own
        if default is None:
            raise required(owner, _NEITHER.format(owner=owner))
        return default

    async def possible(self, ref: SandboxRef) -> list[Connection]:
        """Every connection that the sandbox may have been created under.

        Raises ApplicationError `connection_required` when there is none.
        """
        if ref.connection is not None or ref.provider_id is not None:
            return [await self.of(ref)]
        found = [each for each in (self.default(ref.owner), await self.own(ref.owner, fresh=True)) if each is not None]
        if not found:
            raise required(
                ref.owner, f"the owner {ref.owner!r} has no Daytona connection, and this deployment has none"
            )
        return found

    async def of(self, ref: SandboxRef, *, fresh: bool = False) -> Connection:
        """The connection that the sandbox is used under.

        Raises ApplicationError `connection_required` when it is there no longer, or leads to another organization.
        """
        default = self.default(ref.owner)
        if ref.connection == DEFAULT_CONNECTION or (ref.connection is None and ref.provider_id is not None):
            if default is None:
                raise required(
                    ref.owner,
                    f"sandbox {ref.sandbox_id} was created under the deployment's own Daytona key, which is not set",
                    hint="Tell the operator: SANDHOLD_DAYTONA_API_KEY has to be set for the workers.",
                )
            return default
        own = await self.own(ref.owner, fresh=fresh)
        if ref.connection is None:
            chosen = own or default
            if chosen is None:
                raise required(ref.owner, _NEITHER.format(owner=ref.owner))
            return chosen
        if own is None:
            raise required(
                ref.owner, f"sandbox {ref.sandbox_id} was created under a connection of {ref.owner!r} that was removed"
            )
        is_another = own.id != ref.connection and None in {own.organization, ref.organization}
        if is_another or _differ(own.organization, ref.organization):
            raise elsewhere(ref)
        return own


def required(owner: str, why: str, *, hint: str | None = None) -> ApplicationError:
    """The failure that says that somebody has to connect Daytona first."""
    return as_application_error(
        ToolError(
            code=ErrorCode.CONNECTION_REQUIRED,
            message=why,
            hint=hint or how_to_connect(owner),
            provider=DAYTONA,
        )
    )


def elsewhere(ref: SandboxRef) -> ApplicationError:
    """The failure for a key that sees other sandboxes than the one that is meant: its "not found" proves nothing."""
    return required(
        ref.owner,
        f"sandbox {ref.sandbox_id} belongs to another Daytona organization than the key in use",
        hint=f"Ask the user to connect a key of the organization {ref.organization or 'that it was created in'}: "
        f"`{connect_command(ref.owner)}`."
        if ref.connection != DEFAULT_CONNECTION
        else "Tell the operator: SANDHOLD_DAYTONA_API_KEY has to be a key of the organization it was before.",
    )


def how_to_connect(owner: str) -> str:
    """What an agent is to ask its user for."""
    return f"Ask the user to connect Daytona: `{connect_command(owner)}`, which asks for an API key."


def connect_command(owner: str) -> str:
    return f"sandhold connect {DAYTONA} --owner {owner}"


def _made_after(connection: Connection, moment: datetime) -> bool:
    return connection.created_at is not None and connection.created_at > moment


def _differ(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and one != other
