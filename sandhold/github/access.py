"""Credentials for git: a token for one repository and one purpose, minted when it is needed, and ended after."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import AwareDatetime, SecretStr, TypeAdapter, ValidationError

from sandhold.contracts.errors import ErrorCode
from sandhold.github.addresses import RepositoryAddress, repository_of
from sandhold.github.api import Answer, Api
from sandhold.github.app import App, app_of
from sandhold.github.connection import GitHubConnection, connection_of
from sandhold.github.errors import GitHubRefused, GitHubUnavailable, RepositoryNotGranted
from sandhold.github.places import api_url_of, host_of
from sandhold.security import SecurityError
from sandhold.security.process_secrets import logs_ready, register_secret_in_use
from sandhold.settings import Settings
from sandhold.vault import GitToken, Vault, VaultCache, VaultError

logger = logging.getLogger("sandhold.github")

USERNAME = "x-access-token"
"""By which GitHub knows that the password is a token."""
READ: Mapping[str, str] = {"contents": "read"}
WRITE: Mapping[str, str] = {"contents": "write"}
_MOMENT = TypeAdapter(AwareDatetime)


@dataclass(frozen=True)
class Access:
    """A credential that git may be given for the named hosts, and for nothing else."""

    token: SecretStr
    username: str
    hosts: tuple[str, ...]
    """As `RepositoryAddress.host` is."""
    expires_at: datetime | None
    """Of a minted token; None for a stored one."""
    minted: bool
    """Whether it was made for this: it is to be revoked then."""
    api_url: str
    version: int
    """Of the connection."""
    name: str | None = None
    """Of the author of commits, where the connection knows it."""
    email: str | None = None


class GitHub:
    """Access to GitHub for owners. Belongs to one event loop; `close` lets go of what it has opened."""

    def __init__(self, settings: Settings, vault: Vault | None) -> None:
        """Raises SettingsError when the app's key, the certificates or the address cannot be used."""
        self.host = host_of(settings)
        """Where repositories are that are named `owner/repo`."""
        self.api_url = api_url_of(settings)
        self._app: App | None = app_of(settings)
        self._ca_file = settings.github_ca_file
        self._timeout_s = settings.request_timeout_s
        self._vault = vault
        self._cache = None if vault is None else VaultCache(vault)
        self._apis: dict[str, Api] = {}
        self._api(self.api_url)

    def hosts(self, connection: GitHubConnection | None) -> tuple[str, ...]:
        """The hosts that the connection's credential is for; none without a connection."""
        return () if connection is None else (self.host,)

    async def address(self, owner: str, text: str) -> RepositoryAddress:
        """The repository that `text` names for this owner. Raises AddressRefused, VaultError and SecurityError."""
        return repository_of(text, self.hosts(await self.connection(owner)), self.host)

    async def connection(self, owner: str, *, fresh: bool = False) -> GitHubConnection | None:
        """The owner's connection, as it was ten seconds ago at most, or with `fresh` is now; None when there is none.

        One that was made for another API than that of the settings is none: its credential goes nowhere. Raises
        VaultError and SecurityError.
        """
        if self._cache is None or (record := await self._cache.connection(owner, "github", fresh=fresh)) is None:
            return None
        connection = connection_of(record)
        if connection.api_url != self.api_url:
            logger.warning("a GitHub connection is for another host than SANDHOLD_GITHUB_URL", extra={"owner": owner})
            return None
        if connection.token is not None:
            register_secret_in_use("github-connection", connection.token.get_secret_value())
            await logs_ready()
        return connection

    async def access(
        self, owner: str, address: RepositoryAddress | None, permissions: Mapping[str, str]
    ) -> Access | None:
        """A credential for the repository, or with None for all that the connection reaches.

        None where none belongs: no connection, another host, not by https, or for an installation another account.
        A minted token is limited to the repository and to `permissions`. Raises GitHubRefused, RateLimited,
        GitHubUnavailable, VaultError and SecurityError.
        """
        connection = await self.connection(owner)
        if connection is None or not self._is_for(connection, address):
            return None
        if connection.installation is None:
            return await self._stored(connection)
        answer = await self._mint(connection, address, permissions)
        if answer.status in {401, 404}:
            # Another installation may have been connected meanwhile.
            again = await self.connection(owner, fresh=True)
            if again is None or not self._is_for(again, address):
                return None
            if again.installation is None:
                return await self._stored(again)
            if again.version != connection.version:
                connection, answer = again, await self._mint(again, address, permissions)
        return await self._minted(connection, address, answer)

    async def revoke(self, access: Access | GitToken) -> None:
        """End a minted token; nothing for a stored one. One that has ended already is as good. Safe to repeat.

        Raises RateLimited, GitHubUnavailable, and GitHubRefused.
        """
        if isinstance(access, Access) and not access.minted:
            return
        answer = await self._api(access.api_url).ask("DELETE", "/installation/token", access.token)
        if answer.status not in {204, 401, 404}:
            raise GitHubRefused(
                ErrorCode.PROVIDER_REJECTED, f"GitHub did not revoke a token ({answer.status}): {answer.said}"
            )

    async def close(self) -> None:
        """Close the connections to GitHub. Safe to repeat."""
        for api in self._apis.values():
            await api.close()

    def _is_for(self, connection: GitHubConnection, address: RepositoryAddress | None) -> bool:
        if address is None:
            return True
        # Compared here once more: whoever parsed it may have had other hosts in mind.
        if not address.is_connected_host or address.host not in self.hosts(connection):
            return False
        # What an installation reaches belongs to its account; others' public repositories need no token.
        return (
            connection.installation is None
            or connection.account is None
            or (address.owner or "").lower() == connection.account.lower()
        )

    async def note_answer(self, owner: str, access: Access, *, refused: bool) -> None:
        """Note at the vault whether the host took a stored token, which only git gets to know; safe for others."""
        connection = None if access.minted else await self.connection(owner)
        if connection is not None and connection.version == access.version:
            await self._mark(connection, ErrorCode.AUTHENTICATION_FAILED if refused else None)

    async def _stored(self, connection: GitHubConnection) -> Access:
        assert connection.token is not None
        return Access(
            token=connection.token,
            username=connection.account or USERNAME,
            hosts=self.hosts(connection),
            expires_at=None,
            minted=False,
            api_url=connection.api_url,
            version=connection.version,
            name=connection.name,
            email=connection.email,
        )

    async def _mint(
        self, connection: GitHubConnection, address: RepositoryAddress | None, permissions: Mapping[str, str]
    ) -> Answer:
        if self._app is None:
            raise GitHubRefused(
                ErrorCode.CONNECTION_REQUIRED,
                "the GitHub connection is an installation of an app, and this deployment has none",
                "Tell the operator: SANDHOLD_GITHUB_APP_ID and SANDHOLD_GITHUB_APP_PRIVATE_KEY have to be set.",
            )
        body: dict[str, object] = {"permissions": dict(permissions)}
        if address is not None and address.name is not None:
            body["repositories"] = [address.name]
        path = f"/app/installations/{connection.installation}/access_tokens"
        return await self._api(connection.api_url).ask("POST", path, self._app.proof(), body=body)

    async def _minted(self, connection: GitHubConnection, address: RepositoryAddress | None, answer: Answer) -> Access:
        if answer.status != 201:
            refused = _refusal(connection, address, answer)
            # A name that is wrong is no fault of the connection's, and the app's proof none of its owner's.
            if answer.status != 401 and not isinstance(refused, RepositoryNotGranted):
                await self._mark(connection, refused.error.code)
            raise refused
        body = answer.body if isinstance(answer.body, dict) else {}
        token = body.get("token")
        if not isinstance(token, str) or not token:
            raise GitHubUnavailable("GitHub answered without a token")
        register_secret_in_use("GIT_TOKEN", token)
        await logs_ready()
        access = Access(
            token=SecretStr(token),
            username=USERNAME,
            hosts=self.hosts(connection),
            expires_at=_moment(body.get("expires_at")),
            minted=True,
            api_url=connection.api_url,
            version=connection.version,
            name=connection.name,
            email=connection.email,
        )
        if access.expires_at is None:
            # Nobody would know when it ends: it is ended at once.
            await self.revoke(access)
            raise GitHubUnavailable("GitHub answered with a token without an end")
        await self._mark(connection, None)
        return access

    async def _mark(self, connection: GitHubConnection, refused: ErrorCode | None) -> None:
        """Note use, failure or recovery at the vault. That it cannot be noted fails nothing: the next one will do."""
        assert self._vault is not None
        version = (connection.owner, connection.id, connection.version)
        try:
            if refused is not None:
                await self._vault.note_failure(*version, refused.value)
                return
            if connection.has_failed:
                await self._vault.clear_failure(*version)
            await self._vault.note_use(*version)
        except (VaultError, SecurityError) as error:
            logger.warning(
                "the use of a connection was not noted", extra={"owner": connection.owner, "reason": str(error)}
            )

    def _api(self, url: str) -> Api:
        if url not in self._apis:
            self._apis[url] = Api(url, ca_file=self._ca_file, timeout_s=self._timeout_s)
        return self._apis[url]


def how_to_connect(owner: str) -> str:
    """What an agent is to ask its user for."""
    return f"Ask the user to connect GitHub: `sandhold connect github --owner {owner}`."


def _moment(value: object) -> datetime | None:
    try:
        return _MOMENT.validate_python(value)
    except ValidationError:
        return None


def _refusal(connection: GitHubConnection, address: RepositoryAddress | None, answer: Answer) -> GitHubRefused:
    """What a refused mint means.

    https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app
    """
    said = f": {answer.said}" if answer.said else ""
    if answer.status == 401:
        return GitHubRefused(
            ErrorCode.AUTHENTICATION_FAILED,
            f"GitHub does not take the proof of the deployment's app (401){said}",
            "Tell the operator: the app's id, its private key and the clock of the workers have to be right.",
        )
    if answer.status == 404:
        return GitHubRefused(
            ErrorCode.CONNECTION_REQUIRED,
            f"GitHub knows no such installation of the deployment's app (404){said}",
            f"It was removed, it seems. {how_to_connect(connection.owner)}",
        )
    if answer.status == 422 and "permission" not in answer.said.lower():
        what = address.full_name if address is not None and address.full_name else "the repository"
        return RepositoryNotGranted(
            ErrorCode.REPOSITORY_NOT_FOUND,
            f"{what} is not there, or the installation of the app at {connection.account or 'GitHub'} does not have it",
            "Look at the name. Else ask the user to add the repository to the app's installation, in the settings of "
            "the account at GitHub.",
        )
    return GitHubRefused(
        ErrorCode.AUTHENTICATION_FAILED,
        f"GitHub gives no token for the installation ({answer.status}){said}",
        "Ask the user to look at the app's installation, in the settings of the account at GitHub: whether it is "
        "suspended, and whether it has the permission to read and write contents.",
    )
