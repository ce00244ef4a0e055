"""Secrets through every entrance, and then a search of every place where something rests: nothing is found.

What lies on the sandbox's own disk is the sandbox's, and what the provider keeps of a sandbox (its `env`) is the
provider's: both are documented, and left out.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from google.protobuf.json_format import MessageToJson, ParseDict
from temporalio.api.common.v1 import Payloads, WorkflowExecution
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
    ListWorkflowExecutionsRequest,
)
from temporalio.client import Client

from sandhold.client import Sandhold
from sandhold.contracts.errors import ToolFailure
from sandhold.settings import Settings
from tests.cli.process import sandhold as sandhold_here
from tests.dev_process import SANDHOLD, Dev, clean_environment, dev_process
from tests.local_daytona_server import LocalDaytona, running_local_daytona
from tests.security.canaries import Canaries, ProcessWatch, Search

OWNER = "tests"


@pytest.fixture
def canaries() -> Canaries:
    return Canaries()


@pytest.fixture
async def provider(tmp_path: Path, canaries: Canaries) -> AsyncIterator[LocalDaytona]:
    """A provider whose key is a canary."""
    async with running_local_daytona(tmp_path / "provider", api_key=canaries.plain("API key")) as server:
        yield server


async def test_nothing_that_was_secret_is_readable_anywhere(
    tmp_path: Path, canaries: Canaries, provider: LocalDaytona
) -> None:
    environment = {
        "SANDHOLD_DAYTONA_API_URL": provider.url,
        "SANDHOLD_DAYTONA_API_KEY": provider.api_key,
        "SANDHOLD_CONSOLE_TOKEN": canaries.plain("console token"),
    }
    with dev_process(tmp_path / "data", env=environment) as dev:
        dev.until_ready()
        text = {name: canaries.new(name) for name in ("env", "command", "file", "file name", "stdin", "error text")}
        text |= {name: canaries.new(name) for name in ("session secret", "session secret, replaced")}
        text |= {name: canaries.plain(name) for name in ("API key, refused", "console token, refused")}
        watch = ProcessWatch(canaries.search())
        watch.start()
        try:
            answers = await _session(dev, provider, text)
            await _read_by_the_console(dev, environment["SANDHOLD_CONSOLE_TOKEN"], text)
        finally:
            watch.stop()
        assert watch.looks > 50
        assert not watch.found, "command lines"

        search = canaries.search()
        histories = await _histories(dev, search)
        assert not histories, "histories"
    left_out = [dev.data_dir / "daytona"]
    assert not search.in_folder(dev.data_dir, left_out), "the data folder: database, vault, storage, logs"
    assert not search.in_file(dev.output), "what `sandhold dev` said"
    assert not search.in_file(provider.data_dir.with_name("provider.log")), "the provider's log"
    # Secrets that the session knows are in no answer either; what was only a command's or a file's text is.
    assert not {each for each in search.in_bytes(answers.encode()) if each.startswith(("API key", "session secret"))}


async def _session(dev: Dev, provider: LocalDaytona, text: dict[str, str]) -> str:
    """A session with failures on its way; everything that it answered."""
    connect = ("connect", "daytona", "--owner", OWNER, "--api-url", provider.url)
    told = [_sandhold(dev, *connect, stdin=provider.api_key)]
    refused = await sandhold_here(*connect, env=_environment(dev), stdin=text["API key, refused"])
    assert refused.code == 1
    told.append(str(refused))
    sandhold = await Sandhold.connect(Settings(data_dir=dev.data_dir, temporal_address=dev.stack()["temporal_address"]))
    session = await sandhold.open_session("canaries", owner=OWNER, policy={"on_end": "download", "end_grace_s": 1.0})
    set_secret = ("secrets", "set", session.session_id, "TOKEN")
    told.append(_sandhold(dev, *set_secret, stdin=text["session secret, replaced"]))
    box = await session.create_sandbox(env={"PLAIN": text["env"]}, secret_env=["TOKEN"])
    at = box.sandbox_id

    def keep(answer: object) -> None:
        told.append(str(answer))

    keep(await session.exec(at, 'printf %s "$TOKEN"; printf %s "$PLAIN" >&2'))
    # Another value, and the same key once more: what was stored before is replaced.
    for arguments, value in ((set_secret, text["session secret"]), (connect, provider.api_key)):
        replaced = await sandhold_here(*arguments, env=_environment(dev), stdin=value)
        assert replaced.code == 0, replaced
        keep(replaced)
    keep(await session.exec(at, "env; exit 3"))
    keep(await session.exec(at, f": {_quoted(text['command'])}; cd /nowhere/{_quoted(text['error text'])}"))
    keep(await session.write_file(at, f"/home/daytona/{_name(text['file name'])}", text["file"]))
    keep(await session.read_file(at, f"/home/daytona/{_name(text['file name'])}"))
    for path in (f"/home/daytona/missing-{_name(text['error text'])}", "/etc/shadow"):
        with pytest.raises(ToolFailure) as failed:
            await session.read_file(at, path)
        keep(failed.value)
    # A provider that sends back what it was given.
    body = {"statusCode": 400, "message": f"{provider.api_key} {text['session secret']} are refused"}
    fault = {"effect": "status", "status": 400, "body": body, "times": 1}
    await provider.faults.add(method="POST", route="/api/sandbox/{id}/stop", **fault)
    keep(await session.call("daytona_manage_sandbox", {"sandbox_id": at, "action": "stop"}))
    command = await session.start(
        at, 'read -r it; for n in 1 2 3 4 5 6; do echo "$TOKEN $it"; sleep 0.3; done', stdin=True
    )
    keep(await command.write(f"{text['stdin']}\n".encode(), close=True))
    os.kill(dev.pid_of("worker") or 0, signal.SIGKILL)
    keep(await command.wait())
    async for chunk in command.output(follow=False):
        keep(chunk.data.decode())
    large = (text["file"] * 4000).encode()
    await session.files.write("notes.txt", large)
    keep(await session.push_files(at, [("notes.txt", "/home/daytona/notes.txt")]))
    keep(await session.exec(at, "sed 's/^/x/' notes.txt >&2; echo $TOKEN | base64; exit 7", timeout_ms=20_000))
    keep(await session.download_workspace(at, session_path="saved", format="archive"))
    # The worker dies under a create, whose second attempt adopts, and while it gives a secret to commands.
    creating = asyncio.create_task(session.create_sandbox(env={"PLAIN": text["env"]}))
    giving = [asyncio.create_task(session.call("daytona_exec", _given(at, number))) for number in range(8)]
    await asyncio.sleep(0.1)
    os.kill(dev.pid_of("worker") or 0, signal.SIGKILL)
    for task in (creating, *giving):
        keep(await task)
    keep(await session.show())
    for arguments in (
        ("connections", "--owner", OWNER),
        ("secrets", "list", session.session_id),
        ("session", "show", session.session_id),
    ):
        keep(await sandhold_here(*arguments, env=_environment(dev)))
    keep(await session.end())
    return "\n".join(told)


def _given(sandbox_id: str, number: int) -> dict[str, str]:
    return {"sandbox_id": sandbox_id, "command": f'echo "{number} $TOKEN"; sleep 0.1; env >&2'}


async def _read_by_the_console(dev: Dev, token: str, text: dict[str, str]) -> None:
    """Have the codec server show a history to who has its token, and refuse it to who has not."""
    stack = dev.stack()
    client = await Client.connect(stack["temporal_address"])
    payloads = []
    async for listed in client.list_workflows("WorkflowType = 'Sandbox'"):
        handle = client.get_workflow_handle(listed.id, run_id=listed.run_id)
        async for event in handle.fetch_history_events():
            payloads += event.activity_task_scheduled_event_attributes.input.payloads
    sent = MessageToJson(Payloads(payloads=payloads))
    async with httpx.AsyncClient(base_url=stack["console_url"], timeout=60) as console:
        shown = await console.post(f"/{token}/decode", content=sent)
        refused = await console.post(f"/{text['console token, refused']}/decode", content=sent)
    assert (shown.status_code, refused.status_code) == (200, 401)
    clear = b"".join(payload.data for payload in ParseDict(shown.json(), Payloads()).payloads)
    assert text["command"].partition("/")[0].encode() in clear


def _environment(dev: Dev) -> dict[str, str]:
    return clean_environment() | {"SANDHOLD_DATA_DIR": str(dev.data_dir)}


def _sandhold(dev: Dev, *arguments: str, stdin: str = "") -> str:
    """What the command line says, as a process of its own; its secrets come by standard input."""
    done = subprocess.run(
        [SANDHOLD, *arguments],
        env=_environment(dev),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


async def _histories(dev: Dev, search: Search) -> dict[str, set[str]]:
    """What is found in what Temporal tells of every execution to those who have no key."""
    client = await Client.connect(dev.stack()["temporal_address"])
    service, namespace = client.workflow_service, client.namespace
    found: dict[str, set[str]] = {}
    listed = await service.list_workflow_executions(ListWorkflowExecutionsRequest(namespace=namespace))
    assert len(listed.executions) >= 3
    for each in listed.executions:
        at = WorkflowExecution(workflow_id=each.execution.workflow_id, run_id=each.execution.run_id)
        described = await service.describe_workflow_execution(
            DescribeWorkflowExecutionRequest(namespace=namespace, execution=at)
        )
        told, token = [MessageToJson(each, ensure_ascii=False), MessageToJson(described, ensure_ascii=False)], b""
        while True:
            page = await service.get_workflow_execution_history(
                GetWorkflowExecutionHistoryRequest(namespace=namespace, execution=at, next_page_token=token)
            )
            told.append(MessageToJson(page.history, ensure_ascii=False))
            token = page.next_page_token
            if not token:
                break
        if here := search.in_bytes("\n".join(told).encode()):
            found[f"{at.workflow_id} {at.run_id}"] = here
    return found


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _name(text: str) -> str:
    return text.replace("/", "_")
