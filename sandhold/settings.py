"""One settings model, read once per process from the environment; secrets are masked wherever it is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from sandhold.contracts.names import DEFAULT_TASK_QUEUE
from sandhold.contracts.storage_url import check_storage_url

STACK_FILE = "stack.json"
DEFAULT_TEMPORAL_ADDRESS = "127.0.0.1:7233"
GITHUB_URL = "https://github.com"
_HTTPS = re.compile(r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
_APP_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class SettingsError(ValueError):
    """The environment holds a setting that cannot be used. The message names the variable."""


class StackError(SettingsError):
    """`stack.json` is there but cannot be read."""


def _blank_is_unset(value: object) -> object:
    return None if value == "" else value


def _blank_is_no(value: object) -> object:
    return False if value == "" else value


def _blank_is_github(value: object) -> object:
    return GITHUB_URL if value == "" else value


Optional = BeforeValidator(_blank_is_unset)
BlankIsNo = BeforeValidator(_blank_is_no)
BlankIsGitHub = BeforeValidator(_blank_is_github)


class DaytonaEnvironment(BaseSettings):
    """The names that Daytona's own client reads, taken where ours are not set."""

    model_config = SettingsConfigDict(env_prefix="DAYTONA_", extra="ignore")

    api_url: Annotated[str | None, Optional] = None
    api_key: Annotated[SecretStr | None, Optional] = None


class Settings(BaseSettings):
    """Settings of every Sandhold process, from variables with the prefix `SANDHOLD_`.

    A blank variable counts as not set, so that a compose file can pass one through.
    """

    model_config = SettingsConfigDict(env_prefix="SANDHOLD_", extra="ignore")

    data_dir: Path = Path(".sandhold")
    """Where the embedded default keeps everything."""
    temporal_address: Annotated[str | None, Optional] = None
    """host:port of Temporal; by default that of the running `sandhold dev`, else 127.0.0.1:7233."""
    temporal_namespace: str = "default"
    task_queue: str = DEFAULT_TASK_QUEUE
    storage_url: Annotated[str | None, Optional] = None
    """Session storage, `file:///folder` or `s3://bucket/prefix`; by default the folder `storage` in the data folder."""
    keyring: Annotated[SecretStr | None, Optional] = None
    """The key ring: the path of its file, or the document itself, which begins with a brace; by default the file
    `keyring.json` in the data folder."""
    keyring_provider: Annotated[str | None, Optional] = None
    """Instead of `keyring`: what makes a key ring over a key management service, `module:factory`. The factory is given
    the settings and returns a `KeyRing` (`sandhold/security/key_ring.py`)."""
    read_plain_histories: Annotated[bool, BlankIsNo] = False
    """Whether payloads of Temporal that are not encrypted are read, which whoever reaches Temporal could have made:
    for the time in which histories from before encryption are still open."""
    database_url: Annotated[SecretStr | None, Optional] = None
    """The vault, `sqlite:////file` or `postgresql://user:password@host/database`; by default the file `vault.db` in
    the data folder."""
    daytona_api_url: Annotated[str | None, Optional] = None
    daytona_api_key: Annotated[SecretStr | None, Optional] = None
    """The provider for owners without a connection of their own."""
    github_url: Annotated[str, BlankIsGitHub] = GITHUB_URL
    """Where repositories of connected owners are: GitHub, or a host of GitHub Enterprise."""
    github_api_url: Annotated[str | None, Optional] = None
    """Its API; by default what belongs to `github_url`."""
    github_app_id: Annotated[str | None, Optional] = None
    """The deployment's GitHub App, whose installations owners connect; without one they connect tokens."""
    github_app_private_key: Annotated[SecretStr | None, Optional] = None
    """The app's private key, in PEM, or the path of its file."""
    github_ca_file: Annotated[Path | None, Optional] = None
    """Certificates, in PEM, by which the API is known beside those of the system: for a host with a CA of its own."""
    build_id: Annotated[str | None, Optional] = None
    """Set in deployments that version their workers."""
    health_address: str = "127.0.0.1:0"
    """host:port of the worker's health endpoint; port 0 takes a free one."""
    metrics_address: Annotated[str | None, Optional] = None
    """host:port where the worker serves Temporal's metrics for Prometheus; by default it does not."""
    console_address: str = "127.0.0.1:8234"
    """host:port of the console, whose codec server shows payloads in the clear; port 0 takes a free one."""
    console_token: Annotated[SecretStr | None, Optional] = None
    """What one has to know for that; by default a random one, kept in the file `console-token` in the data folder."""
    console_ui_origins: Annotated[str | None, Optional] = None
    """Where Temporal's Web UI is, `https://temporal.example.com`; several with commas. By default that of the running
    stack."""
    log_level: str = "info"
    log_format: str = Field("json", pattern="^(json|console)$")
    absence_confirm_s: float = Field(12.0, ge=0)
    """Two answers "not found" this far apart confirm that a sandbox is gone (the provider caches for 10 s)."""
    create_settle_s: float = Field(90.0, ge=0)
    """How long an unanswered create request can still commit at the provider."""
    request_timeout_s: float = Field(30.0, gt=0)
    """Deadline of one ordinary request to the provider."""
    reconnect_s: float = Field(30.0, gt=0)
    """How long a client that waits for something keeps trying while Temporal does not answer."""

    @field_validator("health_address", "metrics_address", "console_address")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        if value is not None:
            host, _, port = value.rpartition(":")
            if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
                raise ValueError("must be host:port")
        return value

    @field_validator("storage_url")
    @classmethod
    def _names_a_storage(cls, value: str | None) -> str | None:
        if value is not None:
            check_storage_url(value)
        return value

    @field_validator("keyring_provider")
    @classmethod
    def _names_a_factory(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value is not None:
            if _FACTORY.fullmatch(value) is None:
                raise ValueError("must be module:factory")
            if others.data.get("keyring") is not None:
                raise ValueError("there is one key ring: set this or SANDHOLD_KEYRING, not both")
        return value

    @field_validator("github_url", "github_api_url")
    @classmethod
    def _is_https(cls, value: str | None, field: ValidationInfo) -> str | None:
        if value is None:
            return None
        value = value.rstrip("/")
        if _HTTPS.fullmatch(value) is None:
            raise ValueError("must be https://host or https://host:port, for the API with a path")
        if field.field_name == "github_url" and value.count("/") != 2:
            raise ValueError("must be https://host or https://host:port, without a path")
        return value

    @field_validator("github_app_id")
    @classmethod
    def _is_an_app(cls, value: str | None) -> str | None:
        if value is not None and _APP_ID.fullmatch(value) is None:
            raise ValueError("must be the app's id, a number, or its client id")
        return value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        level = value.lower()
        if level not in {"debug", "info", "warning", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return level

    @classmethod
    def load(cls, *, running_stack: bool = True) -> Settings:
        """The settings of this process: the environment, then the running stack's addresses, then defaults.

        Whoever starts a stack takes only what the environment says (`running_stack=False`): an address that
        is not set stays None. Raises SettingsError with the names of the variables that are wrong.
        """
        try:
            settings = cls()
            daytona = DaytonaEnvironment()
        except ValidationError as error:
            faults = "; ".join(
                f"SANDHOLD_{'.'.join(str(part) for part in fault['loc']).upper()}: {fault['msg']}"
                for fault in error.errors(include_input=False, include_url=False)
            )
            raise SettingsError(faults) from None
        stack = {"temporal_address": DEFAULT_TEMPORAL_ADDRESS} | read_stack(settings.data_dir) if running_stack else {}
        provider_is_named = bool(settings.daytona_api_key or daytona.api_key)
        return settings.model_copy(
            update={
                "temporal_address": settings.temporal_address or stack.get("temporal_address"),
                "daytona_api_key": settings.daytona_api_key or daytona.api_key,
                "daytona_api_url": settings.daytona_api_url
                or daytona.api_url
                or (None if provider_is_named else stack.get("daytona_api_url")),
            }
        )

    @property
    def key_ring_document(self) -> str | None:
        """The key ring when it is in the environment itself; else it is the file `key_ring_file`."""
        value = "" if self.keyring is None else self.keyring.get_secret_value().strip()
        return value if value.startswith("{") else None

    @property
    def key_ring_file(self) -> Path:
        """Where the file of the key ring is, unless a provider makes another one."""
        if self.keyring is not None and self.key_ring_document is None:
            return Path(self.keyring.get_secret_value()).expanduser()
        return self.data_dir.absolute() / "keyring.json"

    def github_app_pem(self) -> SecretStr | None:
        """The private key of the deployment's GitHub App, in PEM; None where there is no app.

        Raises SettingsError when its file cannot be read, or of app and key only one is set.
        """
        if (self.github_app_id is None) != (self.github_app_private_key is None):
            raise SettingsError("SANDHOLD_GITHUB_APP_ID and SANDHOLD_GITHUB_APP_PRIVATE_KEY: set both, or none")
        if self.github_app_private_key is None:
            return None
        if self.github_app_key_is_inline:
            # One line, as some ways to hand out variables have it.
            return SecretStr(self.github_app_private_key.get_secret_value().replace("\\n", "\n"))
        try:
            return SecretStr(Path(self.github_app_private_key.get_secret_value()).expanduser().read_text())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SettingsError(f"SANDHOLD_GITHUB_APP_PRIVATE_KEY: its file cannot be read: {reason}") from None

    @property
    def github_app_key_is_inline(self) -> bool:
        """Whether the key of the GitHub App is in the environment itself, not in a file."""
        key = self.github_app_private_key
        return key is not None and key.get_secret_value().lstrip().startswith("-----")

    @property
    def storage_location(self) -> str:
        """URL of the session storage."""
        return self.storage_url or (self.data_dir.absolute() / "storage").as_uri()


def read_stack(data_dir: Path) -> dict[str, str]:
    """The addresses that a running `sandhold dev` wrote; empty when there is none. Raises StackError."""
    path = data_dir / STACK_FILE
    try:
        stack = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StackError(f"{path} cannot be read: {error}; remove it or start `sandhold dev` again") from error
    if not isinstance(stack, dict):
        raise StackError(f"{path} does not hold a JSON object; remove it or start `sandhold dev` again")
    return {name: value for name, value in stack.items() if isinstance(value, str)}
