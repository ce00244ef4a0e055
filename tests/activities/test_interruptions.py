"""What is told of commands that were interrupted with their sandbox: what session storage holds, and nothing else."""

from __future__ import annotations

import itertools
import os
from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from activities.interruptions import InterruptionActivities
from activities.output import AUTO_FAILURE_BYTES
from activities.redactors import Redactors
from sandhold.contracts.calls import LEDGER_RESULT_LIMIT_BYTES, json_bytes
from sandhold.contracts.steps import CommandPlace, CommandProgress, SandboxRef, StoredOutput, TellInterruptedStep
from sandhold.contracts.tools import ExecResult
from sandhold.storage import SegmentWriter, SessionStorage, Stream
from sandhold.storage.segments import SEGMENT_BYTES
from tests.activities.commands_under_test import SecretsUnderTest

pytestmark = pytest.mark.storage("folder", "s3")

REF = SandboxRef(session_id=f"s-{os.getpid()}", sandbox_id="box", owner="me", generation=1)
_numbers = itertools.count(1)


@pytest.fixture
def storage(storage_url: str) -> SessionStorage:
    return SessionStorage.open(storage_url)


def place(**changes: Any) -> CommandPlace:
    fields = {"call_id": f"c-{next(_numbers)}", "output": "auto", "started_at": datetime.now(UTC), **changes}
    return CommandPlace(**fields)


async def store(storage: SessionStorage, of: CommandPlace, stream: Stream, *pieces: bytes) -> None:
    """As a follower does that is cut off: the last bytes lie in a part."""
    writer = SegmentWriter(storage, REF.session_id, of.call_id, stream)
    for piece in pieces:
        await writer.take(piece)
    await writer.flush()


async def tell(storage: SessionStorage, *places: CommandPlace) -> list[CommandProgress]:
    step = TellInterruptedStep(ref=REF, commands=list(places))
    return (
        await ActivityEnvironment().run(
            InterruptionActivities(storage, Redactors(SecretsUnderTest())).tell_interrupted, step
        )
    ).ended


async def result_of(storage: SessionStorage, progress: CommandProgress) -> ExecResult:
    assert progress.outcome is not None
    value = progress.outcome.result
    if progress.outcome.result_ref is not None:
        value = await storage.get_json(REF.session_id, progress.outcome.result_ref)
    return ExecResult.model_validate(value)


async def test_what_was_stored_is_told_and_counted(storage: SessionStorage) -> None:
    command = place()
    await store(storage, command, "stdout", b"one\ntwo\n")
    await store(storage, command, "stderr", b"careful\n")
    (progress,) = await tell(storage, command)
    assert (progress.call_id, progress.status, progress.exit_code) == (command.call_id, "interrupted", None)
    result = await result_of(storage, progress)
    assert (result.status, result.stdout, result.stderr) == ("interrupted", "one\ntwo\n", "careful\n")
    assert (result.stdout_bytes, result.stderr_bytes, result.truncated) == (8, 8, False)
    assert result.output_files is not None
    assert result.output_files.stdout == f"calls/{command.call_id}/stdout"
    assert "not run again" in (result.hint or "")


async def test_output_that_the_command_had_emptied_is_told_as_cut(storage: SessionStorage) -> None:
    command = place(stored=StoredOutput(emptied_at={"stdout": 8}))
    await store(storage, command, "stdout", b"one\ntwo\n")
    result = await result_of(storage, (await tell(storage, command))[0])
    assert result.output_files is not None
    assert not result.output_files.whole
    assert "emptied its own stdout: only the first 8 bytes" in (result.hint or "")


async def test_a_command_of_which_nothing_was_stored_is_told_as_well(storage: SessionStorage) -> None:
    silent, asked_to_end = place(), place(cancelled="cancelled")
    told = await tell(storage, silent, asked_to_end)
    assert [progress.status for progress in told] == ["interrupted", "cancelled"]
    result = await result_of(storage, told[0])
    assert (result.stdout, result.stdout_bytes, result.output_files) == ("", 0, None)


async def test_much_output_is_told_within_the_budget_errors_first_with_exact_counts_and_little_reading(
    storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = place()
    lines = b"".join(b"line %d\n" % n for n in range(700_000))
    output = b"begun\nfatal: no such branch\n" + lines + b"last words\n"
    await store(storage, command, "stdout", *(output[n : n + 400_000] for n in range(0, len(output), 400_000)))
    read: list[int] = []
    get = storage.get_bytes

    async def noted(session_id: str, path: str) -> bytes | None:
        data = await get(session_id, path)
        read.append(len(data or b""))
        return data

    monkeypatch.setattr(storage, "get_bytes", noted)
    (progress,) = await tell(storage, command)
    result = await result_of(storage, progress)
    assert len(output) > 7 * SEGMENT_BYTES
    assert sum(read) <= 3 * SEGMENT_BYTES, "a segment for the beginning, at most two for the end"
    assert (result.stdout_bytes, result.truncated) == (len(output), True)
    assert len(result.stdout.encode()) <= AUTO_FAILURE_BYTES
    assert result.stdout.startswith("begun\nfatal: no such branch\n")
    assert result.stdout.endswith("last words\n")


async def test_many_large_results_fit_into_one_message(storage: SessionStorage) -> None:
    commands = [place(output="full") for _ in range(3)]
    for command in commands:
        await store(storage, command, "stdout", b"o" * 40_000)
    for progress in await tell(storage, *commands):
        assert progress.outcome is not None
        assert len(json_bytes(progress.outcome.result)) <= LEDGER_RESULT_LIMIT_BYTES
        assert (await result_of(storage, progress)).stdout == "o" * 40_000
