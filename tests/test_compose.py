"""The container files, checked by parsers: no container engine is needed, and none is used."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandhold.settings import Settings

REPOSITORY = Path(__file__).resolve().parent.parent

# What the Compose Specification allows, as far as our file goes; a misspelt key is otherwise silently ignored.
SERVICE_KEYS = {
    "build", "cap_drop", "command", "configs", "depends_on", "entrypoint", "environment", "healthcheck", "image",
    "ports", "read_only", "restart", "security_opt", "stop_grace_period", "tmpfs", "volumes",
}  # fmt: skip
TOP_KEYS = {"name", "services", "configs", "volumes"}
HEALTHCHECK_KEYS = {"test", "interval", "timeout", "retries", "start_period"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?\Z")
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


def test_the_compose_file_has_only_keys_that_compose_knows(
    compose: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    assert {key for key in compose if not key.startswith("x-")} <= TOP_KEYS
    for name, service in services.items():
        assert set(service) <= SERVICE_KEYS, name
        assert ("image" in service) != ("build" in service), name
        assert set(service.get("healthcheck", {})) <= HEALTHCHECK_KEYS, name


def test_every_dependency_names_a_service_and_a_condition_it_can_meet(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for dependency, wanted in service.get("depends_on", {}).items():
            assert dependency in services, name
            assert wanted["condition"] in CONDITIONS
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in services[dependency], f"{name} waits for the health of {dependency}"
            if wanted["condition"] == "service_completed_successfully":
                assert services[dependency].get("restart") != "unless-stopped", f"{dependency} would never complete"


def test_volumes_and_configs_that_services_use_are_declared(
    compose: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":", 1)[0]
            assert source in compose["volumes"] or source.startswith("."), name
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"], name


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
                assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", value), name
    assert seen >= 4


def test_every_other_variable_of_the_compose_file_has_a_default() -> None:
    code = [line for line in (REPOSITORY / "docker-compose.yml").read_text().splitlines() if not line.startswith("#")]
    for match in VARIABLE.finditer("\n".join(code)):
        assert match["rest"], f"{match[0]} is silently empty when it is not set"
        assert match["rest"].startswith((":?", ":-")), match[0]


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
    assert {"sandhold", "workflows", "activities", "worker.py", "requirements.lock"} <= set(copied)
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
