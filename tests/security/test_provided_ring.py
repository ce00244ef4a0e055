"""A key ring that a deployment brings: named by a setting, refused clearly, and used by everything."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import SecretStr
from temporalio.client import Client

from sandhold.cli.stack.plans import console_plan, worker_plan
from sandhold.security import KeyRingUnusable, Tampered, open_key_ring, rotation
from sandhold.settings import Settings, SettingsError
from sandhold.temporal import data_converter
from tests.cli.process import Finished, plain_environment
from tests.cli.process import sandhold as run
from tests.local_daytona_server import LocalDaytona
from tests.security.service_ring import SERVICE, ServiceKeyRing, ring_of_the_service
from tests.stack import KEY_RING, Stack, environment_of, running_stack, running_temporal
from tests.workflows.calls import creates, exec_ok

PROVIDER = "tests.security.service_ring:ring_of_the_service"


async def _asynchronous(settings: Settings) -> ServiceKeyRing:
    return ring_of_the_service(settings)


def _failing(settings: Settings) -> ServiceKeyRing:
    raise ConnectionError("no answer for Bearer ghp_" + "a1B2" * 9)


def _refusing(settings: Settings) -> ServiceKeyRing:
    raise Tampered("a typed error is kept")


@pytest.fixture
def bad_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of factories that make no ring."""
    module: Any = ModuleType("bad_rings")
    module.number = 3
    module.asynchronous, module.failing, module.refusing = _asynchronous, _failing, _refusing
    module.empty = lambda settings: object()
    module.half = lambda settings: type("Half", (), {"primary": _asynchronous, "wrap": _asynchronous})()
    module.kind = lambda settings: ServiceKeyRing
    monkeypatch.setitem(sys.modules, "bad_rings", module)


@pytest.mark.parametrize(
    ("provider", "told"),
    [
        ("no_such_module_at_all:ring", "no_such_module_at_all cannot be imported: ModuleNotFoundError"),
        ("bad_rings:missing", "missing is not in bad_rings"),
        ("bad_rings:number", "number is nothing that can be called"),
        ("bad_rings:asynchronous", "coroutine function"),
        ("bad_rings:failing", "it failed: ConnectionError"),
        ("bad_rings:empty", "a object, which is no key ring: primary, wrap, unwrap are missing"),
        ("bad_rings:half", "unwrap is missing"),
        ("bad_rings:kind", "the class ServiceKeyRing, which is no key ring"),
    ],
)
def test_a_provider_that_makes_no_ring_is_told_by_name(bad_rings: None, provider: str, told: str) -> None:
    with pytest.raises(KeyRingUnusable) as refused:
        open_key_ring(Settings(keyring_provider=provider))
    assert str(refused.value).startswith(f"SANDHOLD_KEYRING_PROVIDER={provider}: ")
    assert told in str(refused.value)
    assert "ghp_" not in str(refused.value)


def test_a_typed_error_of_a_provider_is_kept(bad_rings: None) -> None:
    with pytest.raises(Tampered):
        open_key_ring(Settings(keyring_provider="bad_rings:refusing"))


@pytest.mark.parametrize(
    ("provider", "keyring", "told"),
    [("module", None, "module:factory"), ("a b:c", None, "module:factory"), (PROVIDER, KEY_RING, "not both")],
)
def test_a_setting_that_names_no_factory_or_a_second_ring_is_refused(
    monkeypatch: pytest.MonkeyPatch, provider: str, keyring: str | None, told: str
) -> None:
    monkeypatch.setenv("SANDHOLD_KEYRING_PROVIDER", provider)
    monkeypatch.setenv("SANDHOLD_KEYRING", keyring or "")
    with pytest.raises(SettingsError, match="SANDHOLD_KEYRING_PROVIDER") as refused:
        Settings.load(running_stack=False)
    assert told in str(refused.value)


def test_a_stack_hands_the_provider_to_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDHOLD_KEYRING_PROVIDER", PROVIDER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "for-the-service")
    monkeypatch.setenv("DAYTONA_API_KEY", "for-the-provider")
    settings = Settings.load(running_stack=False)
    worker = worker_plan(1, settings, local_provider=False, named_ports=True)
    console = console_plan(settings, port=0, with_web_ui=True)
    for plan in (worker, console):
        assert plan.env["SANDHOLD_KEYRING_PROVIDER"] == PROVIDER
        assert plan.env["SANDHOLD_KEYRING"] == ""
        assert plan.env["AWS_SECRET_ACCESS_KEY"] == "for-the-service"
    assert "DAYTONA_API_KEY" not in console.env


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return plain_environment(SANDHOLD_DATA_DIR=str(tmp_path), SANDHOLD_KEYRING_PROVIDER=PROVIDER)


async def test_commands_that_would_change_a_services_keys_say_where_to_do_it(environment: dict[str, str]) -> None:
    for command in (["create"], ["add"], ["promote", "k"], ["remove", "k"], ["rotate", "--new-key"]):
        refused = await run("--json", "keys", *command, env=environment)
        assert (refused.code, refused.document["error"]["code"]) == (1, "key_ring_fixed"), command
        assert "SANDHOLD_KEYRING_PROVIDER" in refused.err
    environment["SANDHOLD_KEYRING_PROVIDER"] = "no_such_module_at_all:ring"
    for command in (["list"], ["verify"], ["rotate"]):
        refused = await run("--json", "keys", *command, env=environment)
        assert (refused.code, refused.document["error"]["code"]) == (2, "key_ring_unusable"), command


@pytest.fixture
async def deployment(
    stack_daytona: LocalDaytona, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Stack, dict[str, str]]]:
    """A whole deployment whose keys are the service's, and the environment of its command line."""
    monkeypatch.setattr(rotation, "SETTLES_S", 0.1)
    async with running_temporal() as server:
        config = server.client.config()
        config["data_converter"] = data_converter(ServiceKeyRing(SERVICE))
        async with running_stack(
            Client(**config), stack_daytona, tmp_path / "data", task_queue="provided", keyring_provider=PROVIDER
        ) as stack:
            environment = {**environment_of(stack, tmp_path / "data"), "SANDHOLD_KEYRING_PROVIDER": PROVIDER}
            del environment["SANDHOLD_KEYRING"]
            yield stack, environment


async def test_a_session_runs_under_a_services_keys_from_its_first_to_its_last_command(
    deployment: tuple[Stack, dict[str, str]],
) -> None:
    stack, environment = deployment

    async def keys(*arguments: str) -> Finished:
        return await run("--json", "keys", *arguments, env=environment)

    await stack.vault.put_connection("alice", "daytona", SecretStr("dtn_" + "a" * 40), replaces=0)
    session = await stack.open()
    box = await creates(session)
    await session.files.write("note.txt", b"kept")
    before = SERVICE.primary
    assert [(row["id"], row["state"]) for row in (await keys("list")).document["keys"]] == [(before, "primary")]
    assert (await run("keys", "list", "--used", env=environment)).code == 0
    verified = await keys("verify", "--deep")
    assert (verified.code, verified.document["ok"]) == (0, True)

    SERVICE.turn()
    assert (await exec_ok(session, box, "echo on", output="normal"))["stdout"] == "on\n"
    listed = (await keys("list", "--used")).document["keys"]
    assert [(row["id"], row["state"]) for row in listed] == [(SERVICE.primary, "primary"), (before, None)]
    assert listed[1]["used"]["vault"] == 1
    rotated = await keys("rotate")
    assert (rotated.code, rotated.document["primary"], rotated.document["added"]) == (0, SERVICE.primary, False)
    assert {each["name"]: each["rewrapped"] for each in rotated.document["holders"]}["vault"] == 1
    assert [row["id"] for row in (await keys("list", "--used")).document["keys"]] == [SERVICE.primary]
    shown = await run("session", "show", session.session_id, "--json", env=environment)
    assert shown.document["state"] == "open"
    assert await session.files.read("note.txt") == b"kept"
    await session.end()
