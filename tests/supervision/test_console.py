"""The console as a process, and Temporal's own command line with it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandhold.cli.stack.temporal_server import temporal_program
from sandhold.client import Sandhold, Session
from sandhold.contracts.names import sandbox_workflow_id, session_workflow_id
from sandhold.security.codec import ENCODING
from sandhold.settings import Settings
from tests.cli.process import plain_environment, sandhold
from tests.dev_process import PATIENCE_S, Dev, clean_environment
from tests.stack import KEY_RING

CANARY = "canary-in-a-command"


def _token(dev: Dev) -> str:
    return (dev.data_dir / "console-token").read_text().strip()


async def _temporal(dev: Dev, *arguments: str, token: str | None) -> tuple[int, str]:
    """Temporal's command line: its exit code, and all it prints with what is base64 in it decoded."""
    stack = dev.stack()
    env = clean_environment() | {"TEMPORAL_ADDRESS": stack["temporal_address"]}
    if token is not None:
        env |= {"TEMPORAL_CODEC_ENDPOINT": stack["console_url"], "TEMPORAL_CODEC_AUTH": f"Bearer {token}"}
    process = await asyncio.create_subprocess_exec(
        temporal_program(),
        *arguments,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE_S):
        out = (await process.communicate())[0].decode()
    assert process.returncode is not None
    decoded = [base64.b64decode(found).decode(errors="replace") for found in re.findall(r'"data": ?"([^"]*)"', out)]
    return process.returncode, out + "".join(decoded)


@pytest.fixture(scope="module")
async def session(dev: Dev) -> AsyncIterator[Session]:
    settings = Settings(data_dir=dev.data_dir, temporal_address=dev.stack()["temporal_address"])
    session = await (await Sandhold.connect(settings)).open_session("console", policy={"end_grace_s": 0.5})
    await session.create_sandbox(sandbox_id="box")
    await session.exec("box", f"echo {CANARY}")
    yield session
    await session.end()


async def test_temporals_command_line_shows_clear_text_to_who_has_the_token_only(dev: Dev, session: Session) -> None:
    show = ("workflow", "show", "--output", "json", "--workflow-id", sandbox_workflow_id(session.session_id, "box"))
    code, out = await _temporal(dev, *show, token=_token(dev))
    assert (code, CANARY in out) == (0, True)
    code, out = await _temporal(dev, *show, token=None)
    assert (code, CANARY in out, base64.b64encode(ENCODING).decode() in out) == (0, False, True)
    # It repeats what it was refused, and gives up: without the wrong token it would show cipher text.
    code, out = await _temporal(dev, "--command-timeout", "2s", *show, token="x" * 43)
    assert (code == 0, CANARY in out) == (False, False)


async def test_summaries_are_shown_and_what_an_operator_sends_is_understood(dev: Dev, session: Session) -> None:
    target = ("--workflow-id", session_workflow_id(session.session_id))
    code, out = await _temporal(dev, "workflow", "describe", *target, token=_token(dev))
    assert (code, "Agent session of default" in out) == (0, True)
    code, out = await _temporal(dev, "workflow", "describe", *target, token=None)
    assert (code, "Agent session of default" in out) == (0, False)
    code, out = await _temporal(dev, "workflow", "query", "--type", "status", *target, token=_token(dev))
    assert (code, '"box"' in out) == (0, True)
    request = {"call_id": "by-an-operator", "tool": "daytona_list_sandboxes", "arguments": {}}
    signal_ = ("workflow", "signal", "--name", "submit", "--input", json.dumps(request))
    code, out = await _temporal(dev, *signal_, *target, token=_token(dev))
    assert code == 0, out
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await session.result("by-an-operator")) is None or answer.status != "done":
            await asyncio.sleep(0.1)
    assert answer.ok


async def test_what_a_session_can_use_is_told_as_the_stack_gave_it_to_its_workers(dev: Dev, session: Session) -> None:
    shown = await sandhold("session", "show", session.session_id, "--json", env=_environment(dev))
    [capability, _git] = shown.document["capabilities"]
    assert (capability["available"], capability["connection"]) == (True, "deployment")
    assert dev.stack()["daytona_api_url"] in capability["reason"]


def _environment(dev: Dev) -> dict[str, str]:
    return plain_environment(SANDHOLD_DATA_DIR=str(dev.data_dir))


def _get(url: str, origin: str | None = None) -> tuple[int, str | None]:
    request = urllib.request.Request(url, data=b"{}", headers={"Origin": origin} if origin else {})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.headers["Access-Control-Allow-Origin"]
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Access-Control-Allow-Origin"]


def test_dev_tells_how_to_read_payloads_and_keeps_the_token_to_itself(dev: Dev) -> None:
    stack = dev.stack()
    token = _token(dev)
    assert stat.S_IMODE((dev.data_dir / "console-token").stat().st_mode) == 0o600
    assert f"{stack['console_url']}/TOKEN" in dev.text()
    assert str(dev.data_dir / "console-token") in dev.text()
    for path in [dev.output, dev.data_dir / "stack.json", *(dev.data_dir / "logs").iterdir()]:
        assert token not in path.read_text(errors="replace"), path
    # What the running stack's Web UI sends is answered, and it was told the address without the token.
    assert _get(f"{stack['console_url']}/{token}/decode", stack["ui_url"]) == (200, stack["ui_url"])
    assert _get(f"{stack['console_url']}/decode", stack["ui_url"]) == (401, stack["ui_url"])
    assert _get(f"{stack['console_url']}/{token}/decode", "http://127.0.0.1:1") == (403, None)
    with urllib.request.urlopen(f"{stack['ui_url']}/api/v1/settings", timeout=PATIENCE_S) as answer:
        assert json.load(answer)["Codec"]["Endpoint"] == stack["console_url"]


def _console(data_dir: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sandhold.cli", "console", *arguments],
        env=clean_environment() | {"SANDHOLD_DATA_DIR": str(data_dir)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_the_console_says_ready_once_logs_no_request_and_ends_as_asked(tmp_path: Path, name: signal.Signals) -> None:
    with _console(tmp_path, "--port", "0", SANDHOLD_KEYRING=KEY_RING) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("ready ").strip()
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(f"{url}/healthz", timeout=PATIENCE_S) as answer:
                assert json.load(answer) == {"status": "ok"}
            token = (tmp_path / "console-token").read_text().strip()
            assert _get(f"{url}/{token}/decode")[0] == 200
            assert _get(f"{url}/guess/decode")[0] == 401
            process.send_signal(name)
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["ready", "stopped"]
    assert token not in err


def test_what_keeps_the_console_from_starting_is_named(tmp_path: Path) -> None:
    cases = [
        ({}, 2, f"there is no key ring at {tmp_path / 'keyring.json'}"),
        ({"SANDHOLD_KEYRING": KEY_RING, "SANDHOLD_CONSOLE_TOKEN": "short"}, 2, "SANDHOLD_CONSOLE_TOKEN"),
        ({"SANDHOLD_KEYRING": KEY_RING, "SANDHOLD_CONSOLE_ADDRESS": "nowhere"}, 2, "SANDHOLD_CONSOLE_ADDRESS"),
        ({"SANDHOLD_KEYRING": KEY_RING, "SANDHOLD_CONSOLE_ADDRESS": "192.0.2.1:80"}, 1, "192.0.2.1:80"),
    ]
    running = [(_console(tmp_path, **env), code, named) for env, code, named in cases]
    for process, code, named in running:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out) == (code, "")
        assert named in err
    assert not os.path.exists(tmp_path / "keyring.json"), "nobody makes a key ring by the way"


def test_no_log_of_the_console_shows_its_token_or_another_secret_that_it_was_given(tmp_path: Path) -> None:
    chosen, kept, other = "chosen-" + "c" * 32, "kept-" + "k" * 32, "other-" + "o" * 32
    token_file = tmp_path / "console-token"
    token_file.write_text(kept)
    token_file.chmod(0o600)
    # Each stands where an error quotes it: in an address that cannot be listened on.
    cases = [
        ({"SANDHOLD_CONSOLE_TOKEN": chosen}, chosen, "SANDHOLD_CONSOLE_TOKEN"),
        ({}, kept, "SANDHOLD_CONSOLE_TOKEN"),
        ({"DAYTONA_API_KEY": other}, other, "SANDHOLD_DAYTONA_API_KEY"),
        ({"AWS_SECRET_ACCESS_KEY": other}, other, "AWS_SECRET_ACCESS_KEY"),
    ]
    for env, secret, name in cases:
        address = {"SANDHOLD_KEYRING": KEY_RING, "SANDHOLD_CONSOLE_ADDRESS": f"[::1%{secret}]:80"}
        process = _console(tmp_path, **env, **address)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1, err
        assert secret not in err
        assert f"[redacted:{name}]" in err


def test_a_key_ring_document_that_is_none_keeps_the_console_from_starting(tmp_path: Path) -> None:
    process = _console(tmp_path, SANDHOLD_KEYRING="{not a document")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (2, "")
    assert "SANDHOLD_KEYRING" in err
    assert "Traceback" not in err
