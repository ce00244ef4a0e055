"""No line of the logs shows a secret, whoever writes it and in whatever shape."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Mapping

import pytest
from pydantic import SecretStr

from sandhold.security.key_document import KeyDocument
from sandhold.security.known_values import KnownValues
from sandhold.security.process_secrets import SecretRegistry
from sandhold.security.shown_urls import password_of, without_password
from sandhold.settings import Settings

VALUE = 'corr"ect-horse\n-battery'
TOKEN = "ghp_" + "a1B2" * 9
SCRIPT = """
import logging, warnings
import structlog
from pydantic import BaseModel
from sandhold.logs import configure_logging, register_settings
from sandhold.security.process_secrets import register_secret
from sandhold.settings import Settings

VALUE, TOKEN = {value!r}, {token!r}
configure_logging("debug", {style!r})
register_secret("HORSE", VALUE)
log = structlog.get_logger("ours")

class Odd:
    def __str__(self):
        return "odd " + VALUE
    __repr__ = __str__

class Wanted(BaseModel):
    number: int

def fail(argument):
    local = "local-of-the-frame"
    try:
        Wanted(number="local-input")
    except ValueError as error:
        raise RuntimeError("failed with " + argument) from error

log.info("said " + VALUE, token=TOKEN, nested={{"a": [VALUE, 1, None, True, Odd()], VALUE: b"bytes"}}, odd=Odd())
logging.getLogger("theirs").warning("theirs %s", VALUE, extra={{"more": TOKEN}})
warnings.warn("warned " + VALUE)
try:
    fail(VALUE)
except RuntimeError:
    log.exception("ours failed")
    logging.getLogger("theirs").exception("theirs failed")
logging.getLogger("theirs").info("%d", VALUE)
log.info("the last")
"""


@pytest.fixture(params=["json", "console"])
def lines(request: pytest.FixtureRequest) -> list[str]:
    """What a process logged."""
    script = textwrap.dedent(SCRIPT).format(value=VALUE, token=TOKEN, style=request.param)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    found = ran.stderr.splitlines()
    if request.param == "json":
        for line in found:
            assert json.loads(line) if line.startswith("{") else "could not be logged" in line
    return found


def test_no_line_shows_a_secret_a_variable_or_a_wrong_input(lines: list[str]) -> None:
    text = "\n".join(lines)
    for hidden in ("corr", "battery", TOKEN, TOKEN[4:], "local-input"):
        assert hidden not in text, hidden
    # Source lines are shown, the values of variables are not.
    assert not [line for line in lines if "local-of-the-frame" in line and "local = " not in line]
    assert "said [redacted:HORSE]" in text
    assert "theirs [redacted:HORSE]" in text
    assert "warned [redacted:HORSE]" in text
    assert "[redacted:github-token]" in text
    assert "failed with [redacted:HORSE]" in text
    assert "int_parsing" in text
    assert "a message of theirs could not be logged: TypeError" in text
    assert "the last" in text


def test_a_registry_keeps_the_latest_secrets_and_tells_those_of_one_name_apart() -> None:
    registry = SecretRegistry()
    registry.register("KEY", "value-for-good")
    registry.register_in_use("KEY", "value-one")
    registry.register_in_use("KEY", "value-two")
    registry.register_in_use("KEY", "short")
    secrets = "value-for-good value-one value-two short"
    assert registry.redact(secrets) == "[redacted:KEY] [redacted:KEY-2] [redacted:KEY-3] short"
    for number in range(600):
        registry.register_in_use("OTHER", f"other-value-{number:03}")
        registry.register_in_use("KEY", "value-two")
    assert "value-two" not in registry.redact(secrets), "it was in use all the time"
    known = [
        number for number in range(600) if f"other-value-{number:03}" not in registry.redact(f"other-value-{number:03}")
    ]
    latest = [number for number in known if number > 100]
    assert latest == list(range(600 - len(latest), 600))
    assert 400 < len(latest) <= len(known) <= 512
    registry = SecretRegistry()
    for number in range(600):
        registry.register_in_use("KEY", f"value-{number:03}-of-many")
    assert "value-000-of-many" in registry.redact("value-000-of-many"), "the oldest goes"


def test_large_secrets_in_use_leave_the_lasting_ones_alone_and_take_little_memory() -> None:
    registry = SecretRegistry()
    registry.register("KEY", "value-for-good")
    values = [f"{number:04}" * 15_000 for number in range(9)]
    for number, value in enumerate(values):
        registry.register_in_use(f"LARGE_{number}", value)
    shown = [registry.redact(f"value-for-good {value}") for value in values]
    assert all(text.startswith("[redacted:KEY] ") for text in shown)
    known = [number for number, text in enumerate(shown) if "[redacted:LARGE_" in text]
    assert known == [3, 4, 5, 6, 7, 8], "384 KiB of them"


def test_a_secret_that_comes_new_costs_only_what_is_made_ready_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(secrets: Mapping[str, str]) -> KnownValues:
        made.append(len(secrets))
        return KnownValues(secrets)

    monkeypatch.setattr("sandhold.security.process_secrets.KnownValues", counted)
    registry = SecretRegistry()
    values = [f"the-key-of-owner-{number:03}" for number in range(600)]
    for value in values[:250]:
        registry.register_in_use("daytona-connection", value)
    assert made == []
    for value in values[:250]:
        registry.register_in_use("daytona-connection", value)
        assert value not in registry.redact(f"a line with {value}")
    assert sum(made) == 250
    made.clear()
    # More than are known at once, each used and logged in turn.
    for value in values:
        registry.register_in_use("daytona-connection", value)
        assert value not in registry.redact(f"a line with {value}")
    assert max(made) <= 32
    assert len(made) <= len(values)


def test_settings_show_no_secret_wherever_they_are_printed() -> None:
    ring = KeyDocument.new().dump()
    values = {
        "daytona_api_key": "the-daytona-key",
        "database_url": "postgresql://u:the-password@h/d",
        "keyring": ring,
        "console_token": "the-console-token",
        "github_app_private_key": "-----BEGIN RSA PRIVATE KEY-----the-apps-key",
    }
    settings = Settings(**{name: SecretStr(value) for name, value in values.items()})
    secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert secret == set(values)
    doubtful = ("key", "secret", "token", "password", "database")
    named = {name for name in Settings.model_fields if any(part in name for part in doubtful)}
    assert named - secret == {"keyring_provider"}, "that is the name of a function"
    shown = " ".join(
        (repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json(), f"{settings.__dict__}")
    )
    for value in ("the-daytona-key", "the-password", "the-console-token", KeyDocument.parse(ring, "").keys[0].material):
        assert (value.get_secret_value() if isinstance(value, SecretStr) else str(value)) not in shown


def test_what_is_wrong_with_a_setting_is_told_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEALTH_ADDRESS", "STORAGE_URL", "LOG_LEVEL", "LOG_FORMAT", "REQUEST_TIMEOUT_S"):
        monkeypatch.setenv(f"SANDHOLD_{name}", "s3://user:the-password@x")
    with pytest.raises(ValueError, match="SANDHOLD_STORAGE_URL") as raised:
        Settings.load(running_stack=False)
    assert "the-password" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "shown", "password"),
    [
        (
            "postgresql://me:s%40cret@db.example:5432/vault?password=x",
            "postgresql://me:***@db.example:5432/vault",
            "s@cret",
        ),
        ("postgresql+asyncpg://me@db/vault", "postgresql+asyncpg://me@db/vault", None),
        ("postgresql://:pw@[::1]:1/d", "postgresql://:***@[::1]:1/d", "pw"),
        ("sqlite:////var/vault.db", "sqlite:////var/vault.db", None),
        ("no url, s3cret", "(not a URL)", None),
        ("x://h:port/s3cret", "(not a URL)", None),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str, password: str | None) -> None:
    assert without_password(url) == shown
    assert password_of(url) == password


def test_a_log_below_the_level_is_not_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("theirs").debug("%s", VALUE)
    assert not caplog.records
