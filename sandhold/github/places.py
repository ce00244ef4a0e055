"""Where GitHub is: its host, and its API."""

from __future__ import annotations

from urllib.parse import urlsplit

from sandhold.github.addresses import GITHUB_HOST, normal_host
from sandhold.settings import Settings

_OF_TENANTS = ".ghe.com"


def host_of(settings: Settings) -> str:
    """The host of repositories, as `RepositoryAddress.host` is. Raises AddressRefused for a setting that names none."""
    parts = urlsplit(settings.github_url)
    host = normal_host(parts.hostname or "")
    return host if parts.port in {None, 443} else f"{host}:{parts.port}"


def api_url_of(settings: Settings) -> str:
    """The API that belongs to it.

    https://docs.github.com/en/rest/using-the-rest-api/getting-started-with-the-rest-api; Enterprise Server has its
    own below its host.
    """
    if settings.github_api_url is not None:
        return settings.github_api_url
    host = host_of(settings)
    if host == GITHUB_HOST or host.endswith(_OF_TENANTS):
        return f"https://api.{host}"
    return f"https://{host}/api/v3"


def noreply_host(host: str) -> str:
    """Where GitHub has the addresses of those who do not show theirs."""
    return f"users.noreply.{host.partition(':')[0]}"
