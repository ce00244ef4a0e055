"""How each part of the stack is started: command, environment, readiness."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

import sandhold
from sandhold.cli.stack.errors import StackFailed
from sandhold.cli.stack.part import PartPlan
from sandhold.cli.stack.temporal_server import dev_server_arguments, temporal_program
from sandhold.settings import Settings, SettingsError
from sandhold.temporal import TemporalUnreachable, connect

REPOSITORY = Path(sandhold.__file__).resolve().parent.parent
HOSTED_DAYTONA = "https://app.daytona.io/api"

# The local server caches nothing and commits at once, so absence is known sooner than at the hosted provider.
LOCAL_PROVIDER_TIMES = {"SANDHOLD_ABSENCE_CONFIRM_S": "0.2", "SANDHOLD_CREATE_SETTLE_S": "1.0"}

# Variables of ours, the provider's and the client libraries' own: the key ring, tokens, passwords and keys among them.
_KEYS_OF_WORKERS = ("DAYTONA_", "SANDHOLD_DAYTONA_", "SANDHOLD_GITHUB_")
_CREDENTIAL_PREFIXES = ("SANDHOLD_", "DAYTONA_", "AWS_", "PG")

_OF_THE_CONSOLE = (
    "SANDHOLD_TEMPORAL_NAMESPACE",
    "SANDHOLD_CONSOLE_TOKEN",
    "SANDHOLD_CONSOLE_UI_ORIGINS",
    "SANDHOLD_LOG_LEVEL",
    "SANDHOLD_LOG_FORMAT",
)
"""The settings that the console of a stack reads."""


def temporal_plan(
    settings: Settings, *, port: int, ui_port: int, data_dir: Path, codec_endpoint: str | None = None
) -> PartPlan:
    """Temporal's development server, with its database in the data folder."""
    try:
        program = temporal_program()
    except FileNotFoundError as error:
        raise StackFailed(str(error)) from error
    here = settings.model_copy(update={"temporal_address": f"127.0.0.1:{port}"})

    async def answers() -> bool:
        try:
            await connect(here)
        except TemporalUnreachable:
            return False
        return True

    arguments = dev_server_arguments(
        port=port,
        ui_port=ui_port,
        database=data_dir / "temporal.db",
        namespace=settings.temporal_namespace,
        codec_endpoint=codec_endpoint,
    )
    return PartPlan(
        name="temporal",
        command=[str(program), *arguments],
        env=environment_of_servers(),
        cwd=data_dir,
        ready_within_s=30,
        stop_within_s=10,
        restart_after_at_most_s=5,
        probe=answers,
    )


def daytona_plan(*, port: int, data_dir: Path) -> PartPlan:
    """The local Daytona server, with its sandboxes in the data folder."""

    def on_port(number: int) -> list[str]:
        folder = str(data_dir / "daytona")
        return [sys.executable, "-m", "sandhold.local_daytona", "--port", str(number), "--data-dir", folder]

    return PartPlan(
        name="daytona",
        command=on_port(port),
        env=environment_of_servers(),
        cwd=REPOSITORY,
        ready_within_s=60,
        stop_within_s=10,
        restart_after_at_most_s=5,
        restart_command=lambda url: on_port(urlsplit(url).port or port),
    )


def console_plan(settings: Settings, *, port: int, with_web_ui: bool) -> PartPlan:
    """The console, on loopback. It learns from the stack's file where the stack's own Web UI is, if it has one.

    Without one it answers those that the environment names.
    """

    def on_port(number: int) -> list[str]:
        return [sys.executable, "-m", "sandhold.cli", "console", "--port", str(number)]

    env = environment_of_console(settings)
    if with_web_ui:
        env["SANDHOLD_CONSOLE_UI_ORIGINS"] = ""
    return PartPlan(
        name="console",
        command=on_port(port),
        env=env,
        cwd=REPOSITORY,
        ready_within_s=60,
        stop_within_s=10,
        restart_after_at_most_s=5,
        restart_command=lambda url: on_port(urlsplit(url).port or port),
    )


def local_daytona_key(data_dir: Path) -> SecretStr:
    """The key that the local Daytona server keeps in its folder from its first start on."""
    return SecretStr((data_dir / "daytona" / "api-key").read_text().strip())


def worker_plan(number: int, settings: Settings, *, local_provider: bool, named_ports: bool) -> PartPlan:
    """A worker, told where everything is by its environment. `settings` holds addresses and the provider's key.

    Without `named_ports` it takes free ports for its health endpoint, and serves no metrics.
    """
    program = REPOSITORY / "worker.py"
    if not program.exists():
        raise StackFailed(f"{program} is missing: the worker runs from a checkout of the repository, or from the image")
    env = dict(os.environ)
    env["SANDHOLD_DATA_DIR"] = str(settings.data_dir)
    env |= key_ring_for_parts(settings)
    env |= github_files_for_parts(settings)
    env["SANDHOLD_TEMPORAL_ADDRESS"] = settings.temporal_address or ""
    if settings.daytona_api_key is not None:
        env["SANDHOLD_DAYTONA_API_KEY"] = settings.daytona_api_key.get_secret_value()
    env["SANDHOLD_DAYTONA_API_URL"] = settings.daytona_api_url or ""
    if local_provider:
        env = {**LOCAL_PROVIDER_TIMES, **env, **without_proxy_on_loopback(env)}
    env["SANDHOLD_STORAGE_URL"] = settings.storage_url or ""
    # A versioned worker with no current version runs nothing, and on one machine there is one version.
    env["SANDHOLD_BUILD_ID"] = ""
    if not named_ports:
        env["SANDHOLD_HEALTH_ADDRESS"] = "127.0.0.1:0"
        env["SANDHOLD_METRICS_ADDRESS"] = ""
    return PartPlan(
        name="worker" if number == 1 else f"worker-{number}",
        command=[sys.executable, str(program)],
        env=env,
        cwd=REPOSITORY,
        ready_within_s=120,
        stop_within_s=25,
        restart_after_at_most_s=1,
    )


def environment_of_servers() -> dict[str, str]:
    """This environment for servers that are told everything by arguments, and need none of our secrets."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_CREDENTIAL_PREFIXES)}


def environment_of_console(settings: Settings) -> dict[str, str]:
    """This environment for the console, which decrypts payloads: with the key ring and its own settings, no more.

    What a key service's ring reads nobody here knows: with one the console has everything but keys of other services.
    """
    with_service = settings.keyring_provider is not None
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(_KEYS_OF_WORKERS)}
    return {
        **(theirs if with_service else environment_of_servers()),
        **{name: os.environ[name] for name in _OF_THE_CONSOLE if name in os.environ},
        **key_ring_for_parts(settings),
        "SANDHOLD_DATA_DIR": str(settings.data_dir),
        "SANDHOLD_CONSOLE_ADDRESS": "127.0.0.1:0",
    }


def key_ring_for_parts(settings: Settings) -> dict[str, str]:
    """The variables that name the key ring to a part, which runs in another folder."""
    if settings.keyring_provider is not None:
        return {"SANDHOLD_KEYRING": "", "SANDHOLD_KEYRING_PROVIDER": settings.keyring_provider}
    return {"SANDHOLD_KEYRING": settings.key_ring_document or str(settings.key_ring_file.absolute())}


def github_files_for_parts(settings: Settings) -> dict[str, str]:
    """The variables that name files of the GitHub connection to a part, which runs in another folder."""
    env = {}
    if settings.github_ca_file is not None:
        env["SANDHOLD_GITHUB_CA_FILE"] = str(settings.github_ca_file.expanduser().absolute())
    if settings.github_app_private_key is not None and not settings.github_app_key_is_inline:
        file = Path(settings.github_app_private_key.get_secret_value()).expanduser()
        env["SANDHOLD_GITHUB_APP_PRIVATE_KEY"] = str(file.absolute())
    return env


def vault_location(settings: Settings) -> str:
    """Where the vault of the parts is, without a password. Raises StackFailed."""
    from sandhold.vault.database import open_database

    try:
        return open_database(settings).shown
    except SettingsError as error:
        raise StackFailed(str(error)) from error


def without_proxy_on_loopback(env: Mapping[str, str]) -> dict[str, str]:
    """Proxy variables for `env` by which loopback is reached directly: the provider's client heeds them."""
    exempt = {host for name in ("NO_PROXY", "no_proxy") for host in env.get(name, "").split(",") if host}
    value = ",".join(sorted(exempt | {"127.0.0.1", "localhost"}))
    return {"NO_PROXY": value, "no_proxy": value}
