"""The deployment's GitHub App: its id, and the key by which it proves itself."""

from __future__ import annotations

import time
from dataclasses import dataclass

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sandhold.settings import Settings, SettingsError

CLOCKS_DIFFER_S = 60
LIVES_S = 480
"""With the other: GitHub takes none that lives for longer than ten minutes by its own clock."""


@dataclass(frozen=True)
class App:
    """The app, as which installation tokens are asked for."""

    id: str
    key: RSAPrivateKey

    def proof(self) -> str:
        """A JWT by which the app is known, for some minutes."""
        now = int(time.time())
        claims = {"iat": now - CLOCKS_DIFFER_S, "exp": now + LIVES_S, "iss": self.id}
        return jwt.encode(claims, self.key, algorithm="RS256")


def app_of(settings: Settings) -> App | None:
    """The app of the settings; None when they name none. Raises SettingsError when its key cannot be used."""
    pem = settings.github_app_pem()
    if settings.github_app_id is None or pem is None:
        return None
    try:
        key = load_pem_private_key(pem.get_secret_value().encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without a cause: it may quote what it was given.
        raise SettingsError("SANDHOLD_GITHUB_APP_PRIVATE_KEY: it is no private key in PEM, or has a password") from None
    if not isinstance(key, RSAPrivateKey):
        raise SettingsError("SANDHOLD_GITHUB_APP_PRIVATE_KEY: GitHub's apps have RSA keys, and this is another")
    return App(settings.github_app_id, key)
