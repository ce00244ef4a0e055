"""One provider for all tests of the activities: the local server, or with DAYTONA_API_KEY a real account."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from sandhold.contracts.steps import SandboxRef
from sandhold.settings import Settings
from sandhold.storage import SessionStorage
from tests.activities.provider_under_test import ProviderUnderTest
from tests.local_daytona_faults import FaultPlan
from tests.local_daytona_server import LocalDaytona, running_local_daytona
from tests.s3_server import S3Server
from tests.stack import RING


@pytest.fixture(scope="session")
async def any_provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProviderUnderTest]:
    folder = tmp_path_factory.mktemp("activities")
    storage = SessionStorage.open((folder / "storage").as_uri(), RING)
    if os.environ.get("DAYTONA_API_KEY"):
        provider = ProviderUnderTest(Settings.load(), storage, None)
        try:
            yield provider
        finally:
            await provider.close()
        return
    async with running_local_daytona(folder / "daytona") as server:
        provider = ProviderUnderTest(settings_for(server), storage, server)
        try:
            yield provider
        finally:
            await server.faults.clear()
            await provider.close()


@pytest.fixture(scope="session")
def s3_provider(any_provider: ProviderUnderTest, s3_server: S3Server) -> ProviderUnderTest:
    """The same provider with a bucket as its session storage."""
    return any_provider.with_storage(SessionStorage.open(s3_server.new_place(), RING))


@pytest.fixture(scope="module")
def module_provider(request: pytest.FixtureRequest, storage_kind: str) -> ProviderUnderTest:
    """The provider with the kind of session storage that the test is marked with."""
    provider: ProviderUnderTest = request.getfixturevalue({"folder": "any_provider", "s3": "s3_provider"}[storage_kind])
    return provider


@pytest.fixture
async def provider(module_provider: ProviderUnderTest) -> AsyncIterator[ProviderUnderTest]:
    """The provider, without faults. Tests with this fixture alone run against a real account as well."""
    await _mend(module_provider)
    yield module_provider
    await _mend(module_provider)


@pytest.fixture
async def local_provider(provider: ProviderUnderTest) -> ProviderUnderTest:
    """The local server, for tests that need faults or short times."""
    if provider.local is None:
        pytest.skip("needs the local server's fault plan")
    return provider


@pytest.fixture
async def faults(local_provider: ProviderUnderTest) -> FaultPlan:
    assert local_provider.local is not None
    return local_provider.local.faults


@pytest.fixture(scope="session")
async def shared_sandbox(any_provider: ProviderUnderTest) -> SandboxRef:
    """One sandbox for all tests that only use what is inside of it."""
    return await any_provider.created()


def settings_for(server: LocalDaytona) -> Settings:
    return Settings(
        daytona_api_url=server.url,
        daytona_api_key=SecretStr(server.api_key),
        absence_confirm_s=0.3,
        create_settle_s=1.5,
        request_timeout_s=10.0,
    )


async def _mend(provider: ProviderUnderTest) -> None:
    if provider.local is not None:
        await provider.local.faults.clear()
        await provider.local.faults.forget_requests()
