"""How long running commands count as use of their sandbox, by what is on record of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.policy import Policy
from sandhold.contracts.sandboxes import CommandRecord, SandboxCarried, SandboxStart, SandboxState
from sandhold.contracts.steps import CommandPlace
from sandhold.contracts.tools import CreateSandboxArguments
from workflows.commands import Commands

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DEADLINE = NOW + timedelta(hours=2)


def commands(*records: CommandRecord) -> Commands:
    start = SandboxStart(
        session_id="s",
        sandbox_id="b",
        owner="o",
        generation=1,
        policy=Policy(background_use_s=1800),
        created_at=NOW,
        arguments=CreateSandboxArguments(),
        idle_stop_s=300,
    )
    kept = SandboxCarried(state=SandboxState.STARTED, last_used_at=NOW, commands=list(records))
    return Commands(start, kept, lambda *_: None)


def record(
    call_id: str, *, bounded: bool = True, deadline_at: datetime | None = None, over: bool = False
) -> CommandRecord:
    place = CommandPlace(
        call_id=call_id, output="auto", started_at=NOW, background=True, bounded=bounded, deadline_at=deadline_at
    )
    return CommandRecord(place=place, read_at=NOW, outcome=CallOutcome(result={}) if over else None)


def test_a_deadline_is_trusted_for_a_while_and_no_longer() -> None:
    seen = commands(record("a", deadline_at=DEADLINE), record("b", bounded=False))
    assert not seen.bounded_run
    assert seen.used_until() == DEADLINE + timedelta(minutes=5)


def test_a_command_without_a_timeout_counts_until_it_was_not_read_for_long() -> None:
    seen = commands(record("a", bounded=False))
    assert not seen.bounded_run
    assert seen.used_until() == NOW + timedelta(seconds=1800)


def test_a_timeout_of_which_the_deadline_was_not_told_counts_while_the_command_runs() -> None:
    seen = commands(record("a"))
    assert seen.bounded_run
    assert seen.used_until() is None


def test_commands_that_are_over_are_no_use() -> None:
    seen = commands(record("a", over=True), record("b", deadline_at=DEADLINE, over=True), record("c", bounded=False))
    assert not seen.bounded_run
    assert seen.used_until() == NOW + timedelta(seconds=1800)
