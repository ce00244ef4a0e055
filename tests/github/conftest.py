"""A stand-in for GitHub for each test, and a vault to connect it in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from sandhold.github import GitHub
from sandhold.settings import Settings
from sandhold.vault import Vault, open_vault
from tests.github.api_server import GitHubApi, running_github_api
from tests.github.certificates import Authority
from tests.stack import KEY_RING, RING


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.new(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def api(authority: Authority) -> AsyncIterator[GitHubApi]:
    async with running_github_api(authority) as api:
        yield api


@pytest.fixture
def settings(api: GitHubApi, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, keyring=SecretStr(KEY_RING), **api.settings)


@pytest.fixture
async def vault(settings: Settings) -> AsyncIterator[Vault]:
    vault = await open_vault(settings, RING)
    yield vault
    await vault.close()


@pytest.fixture
async def github(settings: Settings, vault: Vault) -> AsyncIterator[GitHub]:
    github = GitHub(settings, vault)
    yield github
    await github.close()
