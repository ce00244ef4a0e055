"""The provider's clients as connections come, are replaced and go; and what a "not found" proves under which key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from temporalio.exceptions import ApplicationError

from activities import clients
from activities.clients import ProviderPool
from activities.connections import Connection
from activities.provider import ProviderAccess
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.steps import SandboxRef
from sandhold.security import open_key_ring
from sandhold.settings import Settings
from sandhold.storage import SessionStorage
from sandhold.vault import Vault, open_vault
from tests.activities.provider_under_test import ProviderUnderTest, create_step
from tests.local_daytona_server import LocalDaytona, running_local_daytona
from tests.stack import KEY_RING, RING


def version(number: int, connection_id: str = "one") -> Connection:
    return Connection(connection_id, number, "ada", "http://127.0.0.1:9/api", SecretStr(f"key-{number}"))


@pytest.fixture
async def pool() -> AsyncIterator[ProviderPool]:
    pool = ProviderPool(Settings())
    yield pool
    await pool.close()


def is_open(pool: ProviderPool, connection: Connection) -> bool:
    return connection.key in pool._pooled


async def test_a_replaced_client_is_closed_once_nobody_uses_it(pool: ProviderPool) -> None:
    with pool.watched():
        old = pool.client_of(version(1))
        with pool.watched():
            assert pool.client_of(version(2)) is not old
        assert pool.client_of(version(1)) is old, "the attempt goes on with it"
        assert is_open(pool, version(1))
    assert pool.client_of(version(2)) is not old
    assert not is_open(pool, version(1))
    assert is_open(pool, version(2))


async def test_clients_that_nobody_uses_are_bounded(pool: ProviderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "CLIENTS_KEPT", 2)
    with pool.watched():
        used = pool.client_of(version(1, "used"))
        for number in range(4):
            pool.client_of(version(1, f"owner-{number}"))
        assert pool.client_of(version(1, "used")) is used
    with pool.watched():
        pool.client_of(version(1, "last"))
    assert [key for key, _ in pool._pooled] == ["used", "last"]


@pytest.fixture(scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[LocalDaytona, LocalDaytona]]:
    """The deployment's server, and an owner's."""
    folder = tmp_path_factory.mktemp("two")
    async with (
        running_local_daytona(folder / "a") as one,
        running_local_daytona(folder / "b", api_key="key-of-the-owner") as other,
    ):
        yield one, other


@pytest.fixture
async def vault(tmp_path: Path) -> AsyncIterator[Vault]:
    settings = Settings(data_dir=tmp_path, keyring=SecretStr(KEY_RING))
    vault = await open_vault(settings, open_key_ring(settings))
    yield vault
    await vault.close()


@pytest.fixture
async def provider(
    two: tuple[LocalDaytona, LocalDaytona], vault: Vault, tmp_path: Path
) -> AsyncIterator[ProviderUnderTest]:
    """The activities of a deployment with an account of its own."""
    settings = Settings(
        daytona_api_url=two[0].url,
        daytona_api_key=SecretStr(two[0].api_key),
        absence_confirm_s=0.1,
        create_settle_s=0.1,
    )
    provider = ProviderUnderTest(
        settings, SessionStorage.open((tmp_path / "storage").as_uri(), RING), two[0], vault=vault
    )
    yield provider
    await provider.close()


async def connect(vault: Vault, server: LocalDaytona, replaces: int = 0) -> str:
    row = await vault.put_connection(
        "me", "daytona", SecretStr(server.api_key), replaces=replaces, api_url=server.url, organization=None
    )
    return row.id


async def test_each_attempt_at_a_creation_uses_the_same_connection(
    provider: ProviderUnderTest, vault: Vault, two: tuple[LocalDaytona, LocalDaytona]
) -> None:
    ref = provider.new_ref()
    connections = provider.pool.connections
    before = datetime.now(UTC) - timedelta(seconds=1)
    assert (await connections.for_new("me", before)).is_default
    own = await connect(vault, two[1])
    assert (await connections.for_new("me", before)).is_default, "an earlier attempt may have used it"
    assert (await connections.for_new("me", datetime.now(UTC) + timedelta(seconds=1))).id == own
    left = await provider.run(provider.lifecycle.create_sandbox, create_step(ref), attempt=1)
    assert left.connection == own
    again = await provider.run(provider.lifecycle.create_sandbox, create_step(ref), attempt=2)
    assert (again.provider_id, again.connection) == (left.provider_id, own)
    await provider.delete(ref.model_copy(update={"connection": own, "provider_id": left.provider_id}))


@pytest.mark.parametrize("is_own", [False, True])
async def test_what_an_unanswered_create_left_is_found_and_deleted_under_either_connection(
    provider: ProviderUnderTest, vault: Vault, two: tuple[LocalDaytona, LocalDaytona], is_own: bool
) -> None:
    ref = provider.new_ref()
    if is_own:
        await connect(vault, two[1])
    left = await provider.run(provider.lifecycle.create_sandbox, create_step(ref))
    if not is_own:
        await connect(vault, two[1])
    again = await provider.run(provider.lifecycle.create_sandbox, create_step(ref), attempt=2)
    assert again.provider_id == left.provider_id
    await provider.delete(ref)
    known = ref.model_copy(update={"connection": left.connection, "provider_id": left.provider_id})
    found = await provider.access.find(known)
    assert found is None or found.state == "destroyed"


async def test_not_found_by_a_key_of_another_organization_is_no_absence(
    provider: ProviderUnderTest, vault: Vault, two: tuple[LocalDaytona, LocalDaytona]
) -> None:
    found = await provider.run(provider.lifecycle.create_sandbox, create_step(provider.new_ref()))
    ref = SandboxRef(
        session_id="s",
        sandbox_id="box",
        owner="me",
        generation=1,
        **found.model_dump(exclude={"provider_name", "state"}),
    )
    moved = provider.settings.model_copy(
        update={"daytona_api_url": two[1].url, "daytona_api_key": SecretStr(two[1].api_key)}
    )
    pool = ProviderPool(moved, vault)
    try:
        with pytest.raises(ApplicationError) as refused:
            await ProviderAccess(pool, moved, provider.deployment).find(ref)
    finally:
        await pool.close()
    assert refused.value.type == ErrorCode.CONNECTION_REQUIRED
    assert "another Daytona organization" in str(refused.value)


async def test_a_connection_made_anew_is_trusted_with_a_sandbox_only_in_the_same_organization(
    provider: ProviderUnderTest, vault: Vault, two: tuple[LocalDaytona, LocalDaytona]
) -> None:
    server = two[1]

    async def connected(organization: str | None) -> str:
        row = await vault.put_connection(
            "me", "daytona", SecretStr(server.api_key), replaces=0, api_url=server.url, organization=organization
        )
        return row.id

    first = await connected("one")
    ref = provider.new_ref().model_copy(update={"connection": first, "organization": "one", "provider_id": "x"})
    await vault.delete_connection("me", "daytona")
    for organization, is_trusted in (("one", True), ("two", False), (None, False)):
        assert await connected(organization) != first
        if is_trusted:
            assert (await provider.pool.connections.of(ref)).organization == organization
        else:
            with pytest.raises(ApplicationError, match="another Daytona organization"):
                await provider.pool.connections.of(ref)
        await vault.delete_connection("me", "daytona")
