"""Where providers are. Apart from the provider's client, which takes a second to load."""

from __future__ import annotations

from sandhold.settings import Settings

HOSTED_API_URL = "https://app.daytona.io/api"


def deployment_address(settings: Settings) -> str | None:
    """Where the deployment's own Daytona account is, as far as this process is told; None when it has none."""
    if settings.daytona_api_key is None and settings.daytona_api_url is None:
        return None
    return settings.daytona_api_url or HOSTED_API_URL
