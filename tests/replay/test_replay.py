"""What has run must replay: recorded histories against the workflow code as it is now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory

from sandhold.temporal import PLAIN_CONVERTER
from tests.replay.fingerprints import FILE, fingerprint, fingerprints
from tests.replay.plain_text import SecretRecorded, check_nothing_secret, in_plain_text
from tests.replay.scenarios import SCENARIOS
from tests.stack import CONVERTER, KEY_RING, Stack, histories, replayer
from tests.workflows.calls import creates, error_of_call

RECORDED = sorted((Path(__file__).parent / "histories").glob("*.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
async def test_recorded_histories_replay(path: Path) -> None:
    document = json.loads(path.read_text())
    await replayer(PLAIN_CONVERTER).replay_workflow(
        WorkflowHistory.from_json(document["workflow_id"], document["history"])
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_is_recorded(scenario: str) -> None:
    name = scenario.replace("_", "-")
    assert [path for path in RECORDED if f"-{name}-" in path.name], f"make histories NAME=... has not run {scenario}"


async def test_an_encrypted_history_is_kept_as_plain_text_and_replays_without_a_key(stack: Stack) -> None:
    """What `make histories` writes; and it would notice what may not be in it."""
    session = await stack.open()
    box = await creates(session)
    await error_of_call(session, "daytona_read_file", {"sandbox_id": box, "path": "nowhere"})
    await session.end()
    found = [history async for history in histories(stack.temporal, f"SandholdSession = '{session.session_id}'")]
    assert len(found) == 2
    for encrypted in found:
        with pytest.raises(SecretRecorded, match="encrypted"):
            check_nothing_secret(encrypted.to_json(), [])
        plain = (await in_plain_text(encrypted, CONVERTER, "default")).to_json()
        check_nothing_secret(plain, [KEY_RING, stack.daytona.api_key])
        assert "Encoded failure" not in plain
        with pytest.raises(SecretRecorded, match="number 1"):
            check_nothing_secret(plain, ["not there", session.session_id])
        await replayer(PLAIN_CONVERTER).replay_workflow(WorkflowHistory.from_json(encrypted.workflow_id, plain))


async def test_a_changed_order_of_commands_would_be_noticed() -> None:
    """The replay can fail: a history whose first activity is another's does not replay."""
    path = next(path for path in RECORDED if path.name.endswith("-sandbox.json"))
    text = (
        path.read_text()
        .replace('"create_sandbox"', '"delete_sandbox"')
        .replace('"' + "Y3JlYXRlX3NhbmRib3g=" + '"', '"' + "ZGVsZXRlX3NhbmRib3g=" + '"')
    )
    document = json.loads(text)
    with pytest.raises(Exception, match=r"(?i)nondeterminism"):
        await replayer(PLAIN_CONVERTER).replay_workflow(
            WorkflowHistory.from_json(document["workflow_id"], document["history"])
        )


def test_the_workflow_code_is_the_one_that_was_reviewed_with_its_histories() -> None:
    assert fingerprints() == json.loads(FILE.read_text()), (
        "Workflow code has changed. What has run anywhere must replay: guard the change with workflow.patched (or "
        "see that it changes no command), record new histories (`make histories NAME=...`) if it adds a path, and "
        "then note the new code with `.venv/bin/python -m tests.replay.fingerprints`."
    )


def test_a_fingerprint_is_that_of_the_code_alone() -> None:
    """The same on every version of Python: 3.12 gave functions a field more, 3.13 shows no empty ones."""
    code = "def f(a, *, b=None):\n    return {**a, 'x': f'{b!r:>4}'}\n"
    same = '"""A module."""\ndef f(a,*,b = None): # a comment\n  """A function."""\n  return {**a, "x": f"{b!r:>4}"}\n'
    assert fingerprint(code) == fingerprint(same) == "95d8b00673d7e332b6546c5b4f11d806913f2a778054b43a59f0ec2ecb147404"
    assert fingerprint(code) != fingerprint(code.replace("None", "0"))
