"""What a Daytona key is, as the provider tells it: whose, and what it may do."""

from __future__ import annotations

import asyncio
from datetime import datetime

import aiohttp
from daytona import AsyncDaytona, DaytonaConfig, DaytonaError, DaytonaNotFoundError, ListSandboxesQuery
from daytona.common.errors import DaytonaAuthenticationError, DaytonaAuthorizationError
from daytona_api_client_async import ApiException, ApiKeysApi
from pydantic import SecretStr, ValidationError

from sandhold.connections.address import HOSTED_API_URL
from sandhold.contracts.base import Message
from sandhold.contracts.errors import ErrorCode, ToolFailure

WITHIN_S = 20.0

NEEDED = ("write:sandboxes", "delete:sandboxes")
"""Without these a key can create nothing, or leaves what it created."""


class DaytonaKey(Message):
    """A key that the provider takes."""

    name: str | None = None
    organization: str | None = None
    permissions: list[str] | None = None
    """None when the provider does not tell."""
    expires_at: datetime | None = None

    @property
    def lacks(self) -> list[str]:
        """What it needs and does not have. A key without any listed permission may be one that has all of them."""
        return [each for each in NEEDED if self.permissions and each not in self.permissions]


class KeyInformationMissing(LookupError):
    """The provider does not tell what a key is."""


class KeyRefused(ToolFailure):
    """The provider does not take the key, or it cannot do what Sandhold needs it for."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(ErrorCode.PROVIDER_REJECTED, message, hint=hint, provider="daytona")


class ProviderUnreachable(ToolFailure):
    """Whether the key is good cannot be told: the provider does not answer as one."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.PROVIDER_UNAVAILABLE, message, retryable=True)


class QuietDaytona(AsyncDaytona):
    """The official client, without the tracing that it sets up for the whole process when its environment says so."""

    def _init_otel(self, sdk_version: str) -> None:
        """Do nothing: a tracer provider and an instrumented aiohttp of its own would displace the process's."""


async def look_at_key(client: AsyncDaytona) -> DaytonaKey:
    """What the provider tells of the key that the client works with.

    Raises DaytonaError; KeyInformationMissing where it has no such route, or answers it in another way.
    """
    try:
        told = await ApiKeysApi(client._api_client).get_current_api_key(_request_timeout=WITHIN_S)
    except ApiException as error:
        if error.status in {401, 403}:
            kind = DaytonaAuthenticationError if error.status == 401 else DaytonaAuthorizationError
            raise kind("the key is refused", status_code=error.status) from error
        if (error.status is not None and error.status < 500) or error.status == 501:
            raise KeyInformationMissing from error
        raise DaytonaError("the provider does not tell what the key is", status_code=error.status) from error
    except (ValidationError, ValueError) as error:
        raise KeyInformationMissing from error
    return DaytonaKey(
        name=told.name,
        organization=told.organization_id or None,
        permissions=list(told.permissions),
        expires_at=told.expires_at,
    )


class KeyCheck:
    """A key that is looked at before it is stored. A context: what it opens is closed with it."""

    def __init__(self, key: SecretStr, api_url: str | None) -> None:
        self._where = api_url or HOSTED_API_URL
        self._client = QuietDaytona(DaytonaConfig(api_key=key.get_secret_value(), api_url=self._where))

    async def __aenter__(self) -> KeyCheck:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def look(self) -> DaytonaKey:
        """What the key is. When this returns it can list sandboxes, and has what Sandhold needs as far as is told.

        Raises KeyRefused and ProviderUnreachable.
        """
        try:
            async with asyncio.timeout(WITHIN_S):
                organization = await self._organization_of_a_sandbox()
                try:
                    key = await look_at_key(self._client)
                except KeyInformationMissing:
                    key = DaytonaKey()
        except (DaytonaAuthenticationError, DaytonaAuthorizationError) as error:
            raise self._refused(error) from None
        except (DaytonaError, aiohttp.ClientError, OSError, ValueError) as error:
            raise self._unreachable(error) from None
        if key.lacks:
            raise KeyRefused(
                f"the key lacks the permissions {' and '.join(key.lacks)}",
                hint="Make a key with the permissions to write and delete sandboxes, and connect that one.",
            )
        return key.model_copy(update={"organization": key.organization or organization})

    async def state_of(self, provider_id: str) -> str | None:
        """The state of this sandbox; None where the key does not find it. Raises KeyRefused and ProviderUnreachable."""
        try:
            async with asyncio.timeout(WITHIN_S):
                found = await self._client.get(provider_id)
        except DaytonaNotFoundError:
            return None
        except (DaytonaAuthenticationError, DaytonaAuthorizationError) as error:
            raise self._refused(error) from None
        except (DaytonaError, aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from None
        return str(getattr(found.state, "value", found.state))

    async def _organization_of_a_sandbox(self) -> str | None:
        """The organization of any sandbox that the key sees; None when it sees none."""
        async for sandbox in self._client.list(ListSandboxesQuery(limit=1)):
            return sandbox.organization_id or None
        return None

    def _refused(self, error: DaytonaError) -> KeyRefused:
        if error.status_code == 403:
            return KeyRefused(f"Daytona at {self._where} does not let this key list sandboxes (403)")
        return KeyRefused(
            f"Daytona at {self._where} does not take this key (401)",
            hint="Look whether it was copied whole, has expired, or belongs to another address (--api-url).",
        )

    def _unreachable(self, error: BaseException) -> ProviderUnreachable:
        status = getattr(error, "status_code", None)
        why = f"it answered {status}" if status else type(error).__name__
        return ProviderUnreachable(f"Daytona at {self._where} cannot be asked about the key: {why}")
