"""Whether a new key may take the place of a connection's: it has to see the sandboxes that live under that."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from pydantic import SecretStr
from temporalio.client import Client

from sandhold.connections.daytona_key import DaytonaKey, KeyCheck, KeyRefused, ProviderUnreachable
from sandhold.connections.use import UsedSandbox, sandboxes_under, shown_names
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.vault import ConnectionRow

SAMPLE = 10
"""How many of a connection's sandboxes a replacement key has to see."""


class SeesOtherSandboxes(ToolFailure):
    """The new key does not see what the connection's sandboxes are; under it they would all seem gone."""

    def __init__(self, owner: str, unseen: list[UsedSandbox]) -> None:
        super().__init__(
            ErrorCode.CONFLICT,
            f"this key does not see sandboxes that {owner!r} has open: {shown_names(unseen)}; it seems to belong to "
            "another organization or server. Nothing was changed",
            hint="Connect a key of the same organization, or end those sandboxes first.",
        )


class SandboxesUntold(ToolFailure):
    """The new key finds none of the connection's sandboxes, and nobody tells whether they are gone or elsewhere."""

    def __init__(self, owner: str, unseen: list[UsedSandbox]) -> None:
        super().__init__(
            ErrorCode.CONFLICT,
            f"neither this key nor the one before tells whether sandboxes that {owner!r} has open are still there: "
            f"{shown_names(unseen)}. This key does not find them, the provider does not tell that both keys are of the "
            "same organization, and the key before cannot be asked any more. Nothing was changed",
            hint="Connect a key that sees them, or with which the provider tells its organization. Where they are gone "
            f"for sure, `sandhold disconnect daytona --owner {owner} --force` gives up what is left of them.",
        )


class KeyBefore:
    """The key that is to be replaced, for as far as it still works. A context: what it opens is closed with it."""

    def __init__(self, secret: SecretStr | None, api_url: str | None) -> None:
        """`secret` is None where what is stored does not open."""
        self._check = None if secret is None else KeyCheck(secret, api_url)
        self._answers = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._check is not None:
            await self._check.close()

    async def has(self, provider_id: str) -> bool | None:
        """Whether the sandbox is there; None where this key cannot tell, which it is not asked again then."""
        if self._check is None or not self._answers:
            return None
        try:
            state = await self._check.state_of(provider_id)
        except (KeyRefused, ProviderUnreachable):
            self._answers = False
            return None
        return state not in {None, "destroyed"}


async def check_sandboxes(
    client: Client, before: ConnectionRow, key_before: KeyBefore, told: DaytonaKey, check: KeyCheck
) -> int:
    """How many of the connection's open sandboxes the new key was seen to see, of SAMPLE at most.

    A sandbox that it does not find counts only while it lives. That it is gone is known where the key before does not
    find it either, or where the new key is of the same organization: the provider says so, or it sees others of them.
    Raises SeesOtherSandboxes, SandboxesUntold, KeyRefused, ProviderUnreachable and TemporalRefused.
    """
    seen = 0
    beginning: list[UsedSandbox] = []
    untold: list[UsedSandbox] = []
    async for used in sandboxes_under(client, before.owner, before.id):
        if used.state == "deleting":
            continue  # it may be gone from one moment to the next
        is_the_same = _same(told.organization, used.organization or before.organization)
        if is_the_same is False:
            # Were it gone, its workflow could never learn that by this key.
            raise SeesOtherSandboxes(before.owner, [used])
        if used.provider_id is None:
            beginning += [] if is_the_same else [used]
        elif await check.state_of(used.provider_id) is not None:
            seen += 1
        elif lives := await key_before.has(used.provider_id):
            raise SeesOtherSandboxes(before.owner, [used])
        elif lives is None and not is_the_same:
            untold.append(used)
        if seen >= SAMPLE:
            break
    if not seen and beginning:
        raise SeesOtherSandboxes(before.owner, beginning)
    if not seen and untold:
        raise SandboxesUntold(before.owner, untold)
    return seen


def _same(one: str | None, other: str | None) -> bool | None:
    """Whether two organizations are the same one; None where one of them is not known."""
    return None if one is None or other is None else one == other
