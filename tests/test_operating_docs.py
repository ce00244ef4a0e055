"""`docs/operating.md` is true: its commands are run, and their answers are what an operator asked for."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandhold.cli.stack.temporal_server import temporal_program
from sandhold.client import Session
from sandhold.contracts.names import SEARCH_ATTRIBUTES, SESSION_LABEL
from sandhold.contracts.sandboxes import SandboxState
from sandhold.settings import Settings
from tests.console_process import running_console
from tests.stack import Stack

DOCUMENT = (Path(__file__).resolve().parent.parent / "docs" / "operating.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("temporal ")
]
PATIENCE_S = 60.0


@dataclass
class Operator:
    """Types the documented commands while a session `first` of the owner `acme` runs a command in `build`."""

    stack: Stack
    first: Session
    second: Session
    provider_id: str
    codec: Mapping[str, str]
    """What the page says to export, so that answers are readable."""

    async def types(self, command: str) -> str:
        """What the command prints. It must be one of the document's, and succeed."""
        assert command in COMMANDS, f"{command} is not in docs/operating.md"
        _, *arguments = shlex.split(command.replace("PROVIDER_ID", self.provider_id))
        address = self.stack.temporal.service_client.config.target_host
        process = await asyncio.create_subprocess_exec(
            temporal_program(),
            *arguments,
            env=os.environ | {"TEMPORAL_ADDRESS": address} | self.codec,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def sees(self, command: str, *wanted: str) -> str:
        """Type the command until its answer holds all of `wanted`: visibility may lag behind by a moment."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                answer = await self.types(command)
                if all(each in answer for each in wanted):
                    return answer
                await asyncio.sleep(0.2)


@pytest.fixture(scope="module")
async def operator(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Operator]:
    policy = {"end_grace_s": 0.5}
    first = await shared_stack.sandhold.open_session("first", owner="acme", policy=policy)
    second = await shared_stack.sandhold.open_session("second", owner="globex", policy=policy)
    await asyncio.gather(
        first.create_sandbox("nightly build", sandbox_id="build"),
        second.create_sandbox("experiments", sandbox_id="lab"),
    )
    await first.call("daytona_exec", {"sandbox_id": "build", "command": "sleep 300"}, "long-build", wait=False)
    provider_id = (await first.show()).sandboxes[0].provider_id
    assert provider_id is not None
    async with running_console(tmp_path_factory.mktemp("console")) as codec:
        yield Operator(shared_stack, first, second, provider_id, codec)
    for session in (first, second):
        await session.end()


async def test_what_runs_and_since_when(operator: Operator) -> None:
    everything = "temporal workflow list --query \"ExecutionStatus = 'Running'\""
    await operator.sees(everything, "session/first", "session/second", "sandbox/first/build", "sandbox/second/lab")
    sessions = "temporal workflow list --query \"WorkflowType = 'AgentSession' AND ExecutionStatus = 'Running'\""
    assert "sandbox/" not in await operator.sees(sessions, "session/first", "AgentSession", "StartTime")


async def test_for_whom_it_runs(operator: Operator) -> None:
    command = "temporal workflow list --query \"SandholdOwner = 'acme' AND ExecutionStatus = 'Running'\""
    assert "session/second" not in await operator.sees(command, "session/first", "sandbox/first/build")


async def test_what_belongs_to_a_session(operator: Operator) -> None:
    command = "temporal workflow list --query \"SandholdSession = 'first'\""
    assert "session/second" not in await operator.sees(command, "session/first", "sandbox/first/build")


async def test_which_sandboxes_are_started_and_how_many_there_are(operator: Operator) -> None:
    command = "temporal workflow list --query \"WorkflowType = 'Sandbox' AND SandholdState = 'started'\""
    await operator.sees(command, "sandbox/first/build", "sandbox/second/lab")
    count = await operator.types(
        "temporal workflow count --query \"WorkflowType = 'Sandbox' AND ExecutionStatus = 'Running'\""
    )
    assert int(count.split(":")[1]) >= 2


async def test_whose_a_sandbox_at_the_provider_is(operator: Operator) -> None:
    command = "temporal workflow list --query \"SandholdProviderId = 'PROVIDER_ID'\""
    assert "sandbox/second" not in await operator.sees(command, "sandbox/first/build")


async def test_what_a_sandbox_is_doing(operator: Operator) -> None:
    answer = await operator.sees(
        "temporal workflow describe --workflow-id sandbox/first/build",
        "SandholdOwner",
        "acme",
        operator.provider_id,
        "follow_commands",
    )
    assert "Pending Activities: 1" in answer
    answer = await operator.types("temporal workflow query --workflow-id sandbox/first/build --type status")
    for fact in ('"state":"started"', '"calls":["long-build"]', '"last_used_at"', '"next"'):
        assert fact in answer.replace(": ", ":").replace("\n", "").replace(" [", "["), answer


async def test_what_a_session_holds(operator: Operator) -> None:
    answer = await operator.types("temporal workflow query --workflow-id session/first --type status")
    for fact in ("acme", "open", "build", "ends_at"):
        assert fact in answer


async def test_what_comes_next_is_in_the_metadata_that_the_web_ui_shows(operator: Operator) -> None:
    answer = await operator.types("temporal workflow metadata --workflow-id sandbox/first/build")
    for fact in ("long-build", "started", "|"):
        assert fact in answer


async def test_what_has_happened(operator: Operator) -> None:
    answer = await operator.types("temporal workflow show --workflow-id sandbox/first/build")
    assert "WorkflowExecutionStarted" in answer
    assert "ActivityTaskScheduled" in answer
    history = json.loads(await operator.types("temporal workflow show --workflow-id session/first --output json"))
    assert any(event["eventType"].endswith("UPDATE_ACCEPTED") for event in history["events"])


async def test_cancelling_a_session_deletes_its_sandboxes(operator: Operator) -> None:
    await operator.types("temporal workflow cancel --workflow-id session/first")
    outcome = await operator.first.wait_for_end(timeout=PATIENCE_S)
    assert [(sandbox.sandbox_id, sandbox.outcome) for sandbox in outcome.sandboxes] == [("build", "deleted")]
    assert not await _at_provider(operator.stack, "first")


async def test_terminating_a_session_deletes_its_sandboxes(operator: Operator) -> None:
    await operator.types('temporal workflow terminate --workflow-id session/second --reason "runaway agent"')
    outcome = await operator.second.wait_for_end(timeout=PATIENCE_S)
    assert outcome.reason == "terminated"
    assert [sandbox.outcome for sandbox in outcome.sandboxes] == ["deleted"]
    assert not await _at_provider(operator.stack, "second")


def test_how_to_read_payloads_is_documented_as_it_is_tried_here() -> None:
    assert "export TEMPORAL_CODEC_ENDPOINT=http://127.0.0.1:8234\n" in DOCUMENT
    assert 'export TEMPORAL_CODEC_AUTH="Bearer $(cat .sandhold/console-token)"\n' in DOCUMENT


def test_every_documented_command_is_tried_here() -> None:
    tried = Path(__file__).read_text().replace('\\"', '"').replace("\\'", "'")
    assert len(COMMANDS) >= 14
    for command in COMMANDS:
        assert command in tried, command


def test_every_search_attribute_and_state_is_explained() -> None:
    for name in SEARCH_ATTRIBUTES:
        assert f"`{name}`" in DOCUMENT
    for state in SandboxState:
        assert f"`{state.value}`" in DOCUMENT


def test_the_table_of_settings_is_the_settings_model() -> None:
    rows = dict(re.findall(r"^\| `(SANDHOLD_[A-Z_]+)` \| ([^|]+) \|", DOCUMENT, re.MULTILINE))
    assert set(rows) == {f"SANDHOLD_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        shown = rows[f"SANDHOLD_{name.upper()}"].strip()
        if field.default is not None:
            assert shown.strip("`") == str(field.default), name


async def _at_provider(stack: Stack, session_id: str) -> list[str]:
    from daytona import ListSandboxesQuery

    query = ListSandboxesQuery(labels={SESSION_LABEL: session_id})
    return [sandbox.id async for sandbox in stack.provider.list(query)]
