"""What the stack tells each of its parts: no part gets a secret that it has no use for."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from sandhold.cli.stack.part import PartPlan
from sandhold.cli.stack.plans import console_plan, daytona_plan, temporal_plan, worker_plan
from sandhold.settings import Settings
from tests.dev_process import Dev, dev_process
from tests.stack import KEY_RING

SECRETS = {
    "SANDHOLD_KEYRING": KEY_RING.strip(),
    "SANDHOLD_CONSOLE_TOKEN": "a-token-" + "t" * 32,
    "SANDHOLD_DATABASE_URL": "sqlite:////nowhere/vault.db",
    "SANDHOLD_LOCAL_DAYTONA_API_KEY": "a-key-of-the-local-provider",
    "DAYTONA_API_KEY": "a-key-of-the-provider",
    "SANDHOLD_GITHUB_APP_PRIVATE_KEY": "-----BEGIN a key of the app-----",
    "AWS_SECRET_ACCESS_KEY": "a-key-of-the-store",
    "AWS_SESSION_TOKEN": "a-session-of-the-store",
    "PGPASSWORD": "a-password-of-the-database",
}
OF_THE_CONSOLE = ("SANDHOLD_KEYRING", "SANDHOLD_CONSOLE_TOKEN")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings in an environment that holds every secret there is, and an ordinary variable."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LANG", "C.UTF-8")
    return Settings(data_dir=tmp_path, keyring=SecretStr(KEY_RING))


def _console(settings: Settings, *, with_web_ui: bool) -> PartPlan:
    return console_plan(settings, port=0, with_web_ui=with_web_ui)


def test_servers_that_need_no_secret_are_given_none(settings: Settings, tmp_path: Path) -> None:
    plans = [
        temporal_plan(settings, port=1, ui_port=2, data_dir=tmp_path),
        daytona_plan(port=3, data_dir=tmp_path),
    ]
    for plan in plans:
        assert not set(SECRETS) & set(plan.env), plan.name
        assert not set(SECRETS.values()) & set(plan.env.values()), plan.name
        assert plan.env["LANG"] == "C.UTF-8"
        assert "PATH" in plan.env
    for with_web_ui in (True, False):
        console = _console(settings, with_web_ui=with_web_ui)
        given = {name: console.env.get(name) for name in SECRETS}
        assert given == {name: SECRETS[name] if name in OF_THE_CONSOLE else None for name in SECRETS}
        assert console.env["LANG"] == "C.UTF-8"
    worker = worker_plan(1, settings, local_provider=False, named_ports=True)
    assert {name: worker.env[name] for name in SECRETS} == SECRETS, "who needs them has them"


def test_the_servers_of_a_running_stack_have_none_in_their_environment(tmp_path: Path) -> None:
    # With the provider's key the stack would have no server of its own; the console is given that no more than others.
    secrets = {name: value for name, value in SECRETS.items() if name != "DAYTONA_API_KEY"}
    with dev_process(tmp_path / "data", "--without", "worker", env=secrets) as dev:
        dev.until_ready()
        for part in ("temporal", "daytona"):
            shown = _environment(dev, part)
            assert b"PATH=" in shown
            for name, value in secrets.items():
                assert name.encode() not in shown, part
                assert value.encode() not in shown, part
        shown = _environment(dev, "console")
        for name, value in secrets.items():
            assert ((name.encode() in shown), (value.encode() in shown)) == (name in OF_THE_CONSOLE,) * 2, name


def _environment(dev: Dev, part: str) -> bytes:
    """What a part was started with."""
    return Path(f"/proc/{dev.pid_of(part)}/environ").read_bytes()


def test_an_operators_web_ui_is_allowed_unless_the_stack_has_its_own(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDHOLD_CONSOLE_UI_ORIGINS", "https://temporal.example.com")
    assert _console(settings, with_web_ui=True).env["SANDHOLD_CONSOLE_UI_ORIGINS"] == ""
    assert _console(settings, with_web_ui=False).env["SANDHOLD_CONSOLE_UI_ORIGINS"] == "https://temporal.example.com"


def test_a_stack_without_temporal_keeps_what_an_operator_said_about_the_web_ui(tmp_path: Path) -> None:
    origins = {"SANDHOLD_CONSOLE_UI_ORIGINS": "https://temporal.example.com"}
    with dev_process(tmp_path / "data", "--without", "temporal,daytona,worker", env=origins) as dev:
        dev.until_ready()
        assert b"SANDHOLD_CONSOLE_UI_ORIGINS=https://temporal.example.com\0" in _environment(dev, "console")
