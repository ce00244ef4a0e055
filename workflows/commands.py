"""The commands of one sandbox that outlast their first request: kept on record, followed to their end, ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows.command_results import interrupted, output_files, row_of
from workflows.interruptions import told_interrupted
from workflows.lifecycle import Lifecycle
from workflows.patches import Patch
from workflows.steps import HEARTBEAT_TIMEOUT, PATIENT, PROMPT, error_of, signal_of
from workflows.waiting import until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import CallOutcome
    from sandhold.contracts.commands import CommandRow
    from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolFailure
    from sandhold.contracts.names import Activity, follow_queue
    from sandhold.contracts.sandboxes import CommandRecord, CommandState, SandboxCarried, SandboxStart
    from sandhold.contracts.steps import (
        CleanCommandsStep,
        CommandPlace,
        CommandProgress,
        FollowCommandsResult,
        FollowCommandsStep,
        StopCommandsStep,
    )

KILL_GRACE_S = 5.0
"""Seconds between TERM and KILL for the commands that we end."""
RECORDS_LIMIT = 100
"""Commands that have ended and are still listed: those that ended last."""
CLEAN_EVERY = 100
"""Commands after which the folders of old ones are removed from the sandbox."""
FOLLOWERS_LIMIT = 3
"""Followers at work at once; a further one takes over the commands of all."""
_GATHER_S = 0.1
"""Commands that come within this time of each other share a follower."""
_DEADLINE_TRUST = timedelta(minutes=5)
"""How long after its deadline a command still counts as use: it should have ended, or been ended, long before."""
_AGAIN_FIRST_S, _AGAIN_MOST_S = 5.0, 300.0
"""Pauses after a follower has failed; each is twice the one before."""


@dataclass(frozen=True)
class _Following:
    """What a follower at work was scheduled with."""

    call_ids: list[str]
    starts: int
    """How often the sandbox had been started by then."""


class Commands:
    """Every command is followed by exactly one follower while it runs; its end is told once."""

    def __init__(self, start: SandboxStart, kept: SandboxCarried, ended: Callable[[str, CallOutcome], None]) -> None:
        """`ended` hears of every command that is over, with its outcome."""
        self._start = start
        self._kept = kept
        self._ended = ended
        self._records = {record.place.call_id: record for record in kept.commands}
        self._asked_to_end: set[str] = set()
        self._interrupting: set[str] = set()
        self._unfollowed: list[str] = []
        self._gathering = False
        self._again_s = _AGAIN_FIRST_S
        self._followers: dict[asyncio.Task[FollowCommandsResult], _Following] = {}
        self._lifecycle: Lifecycle

    def attach(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    # What there is.

    def running(self) -> Iterator[CommandRecord]:
        return (record for record in self._records.values() if record.outcome is None)

    def records(self) -> list[CommandRecord]:
        return list(self._records.values())

    def get(self, call_id: str) -> CommandRecord | None:
        return self._records.get(call_id)

    def asked_to_end(self, call_id: str) -> bool:
        """Whether somebody asked for the end of a command that is not on record yet."""
        return call_id in self._asked_to_end

    def settle(self, call_id: str) -> None:
        """No command comes on record by the call any more."""
        self._asked_to_end.discard(call_id)

    def known(self, call_id: str) -> CommandRecord:
        """The command. Raises ToolFailure when there is none, with some that are."""
        record = self._records.get(call_id)
        if record is None:
            recent = ", ".join(list(self._records)[-5:]) or "none"
            raise ToolFailure(
                ErrorCode.INVALID_ARGUMENTS,
                f"sandbox {self._start.sandbox_id} knows no command {call_id!r}",
                hint=f"call_id is the one that daytona_exec answered with. The latest commands here: {recent}.",
            )
        return record

    def rows(self) -> list[CommandRow]:
        """The commands, those that started last first."""
        return [row_of(record) for record in reversed(self._records.values())]

    def state(self, call_id: str) -> CommandState | None:
        """The answer to the query `command`."""
        record = self._records.get(call_id)
        if record is None:
            return None
        state = CommandState(**row_of(record).model_dump(), output_files=output_files(call_id), outcome=record.outcome)
        if record.outcome is None and not record.place.bounded:
            state.use_s = self._start.policy.background_use_s
            state.use_ends_at = record.read_at + timedelta(seconds=state.use_s)
        return state

    @property
    def bounded_run(self) -> bool:
        """Whether a command runs that has a timeout which nobody knows: that is use of the sandbox while it runs."""
        return any(record.place.bounded and record.place.deadline_at is None for record in self.running())

    def used_until(self) -> datetime | None:
        """When the commands whose use of the sandbox has a known end stop to count as such."""
        return max(filter(None, map(self._use_ends_at, self.running())), default=None)

    def _use_ends_at(self, record: CommandRecord) -> datetime | None:
        if record.place.deadline_at is not None:
            return record.place.deadline_at + _DEADLINE_TRUST
        if record.place.bounded:
            return None
        return record.read_at + timedelta(seconds=self._start.policy.background_use_s)

    # What becomes of them.

    def add(self, progress: CommandProgress, begun_at: datetime, fingerprint: str) -> CommandRecord:
        """Put a command on record that was started; one that runs is followed.

        `begun_at` is when its call began, for one that ended within its first request; `fingerprint` is that call's.
        """
        place = progress.running or CommandPlace(call_id=progress.call_id, output="auto", started_at=begun_at)
        if place.call_id in self._asked_to_end:
            place = place.model_copy(update={"cancelled": "cancelled"})
            self._asked_to_end.discard(place.call_id)
        record = CommandRecord(place=place, read_at=workflow.now(), fingerprint=fingerprint)
        self._records[place.call_id] = record
        if progress.running is None:
            self._note_end(record, progress)
        else:
            self._follow([place.call_id])
        self._make_room()
        return record

    def resume(self) -> None:
        """Go on following after a continue-as-new."""
        self._follow([record.place.call_id for record in self.running()])

    async def interrupt_all(self) -> None:
        """The sandbox stopped: all processes in it are gone.

        When this returns all commands that ran have ended, with what storage holds of their output if it can be read.
        """
        await self._interrupt(list(self.running()))

    async def _interrupt(self, gone: list[CommandRecord]) -> None:
        ids = [record.place.call_id for record in gone]
        new = [record for record in gone if record.place.call_id not in self._interrupting]
        self._interrupting.update(ids)
        told: dict[str, CommandProgress] = {}
        if new and workflow.patched(Patch.TOLD_INTERRUPTIONS):
            told = await told_interrupted(self._lifecycle.ref(), [record.place for record in new])
        for record in new:
            call_id = record.place.call_id
            self._interrupting.discard(call_id)
            self._end(record, told.get(call_id) or CommandProgress(call_id=call_id, outcome=interrupted(call_id)))
        await until(lambda: not any(map(self._runs, ids)))

    def end_all(self, outcome: CallOutcome) -> None:
        for record in list(self.running()):
            self._end(record, CommandProgress(call_id=record.place.call_id, outcome=outcome))

    async def kill(self, call_ids: Collection[str]) -> None:
        """End commands on our side's wish; those who follow them tell their outcomes.

        A command among them that is not on record yet is kept from starting.
        """
        asked = self.ask_to_end(call_ids)
        ids = sorted(call_ids)
        try:
            await workflow.execute_activity(
                Activity.STOP_COMMANDS,
                StopCommandsStep(ref=self._lifecycle.ref(), call_ids=ids, grace_s=KILL_GRACE_S),
                schedule_to_close_timeout=timedelta(seconds=60),
                heartbeat_timeout=HEARTBEAT_TIMEOUT,
                retry_policy=PROMPT,
                summary=f"cancel {', '.join(ids)}"[:200],
            )
        except ActivityError:
            if workflow.patched(Patch.ENDED_BY_THE_STOP):
                self.take_back(asked)
            raise

    def ask_to_end(self, call_ids: Collection[str]) -> set[str]:
        """Note that their end is asked for, so that their outcomes say so; those of which it was not noted before."""
        asked: set[str] = set()
        for call_id in call_ids:
            record = self._records.get(call_id)
            if record is None:
                if call_id not in self._asked_to_end:
                    asked.add(call_id)
                self._asked_to_end.add(call_id)
            elif record.outcome is None:
                if record.place.cancelled is None:
                    asked.add(call_id)
                record.place = record.place.model_copy(update={"cancelled": "cancelled"})
        return asked

    def take_back(self, call_ids: Collection[str]) -> None:
        """They could not be asked to end: those that run are followed on without that note."""
        for call_id in call_ids:
            self._asked_to_end.discard(call_id)
            record = self._records.get(call_id)
            if record is not None and record.outcome is None:
                record.place = record.place.model_copy(update={"cancelled": None})
        for follower, followed in list(self._followers.items()):
            if not set(call_ids).isdisjoint(followed.call_ids):
                follower.cancel()
                del self._followers[follower]
                self._follow(followed.call_ids)

    def count_start(self) -> None:
        """Count a command; now and then the folders of old ones are removed from the sandbox."""
        self._kept.commands_started += 1
        if self._kept.commands_started % CLEAN_EVERY == 0:
            asyncio.create_task(self._clean())  # noqa: RUF006 - the event loop of a workflow keeps its tasks

    async def _clean(self) -> None:
        keep = [record.place.call_id for record in self.running()]
        try:
            await workflow.execute_activity(
                Activity.CLEAN_COMMANDS,
                CleanCommandsStep(ref=self._lifecycle.ref(), keep=keep),
                schedule_to_close_timeout=timedelta(seconds=60),
                retry_policy=PROMPT,
                summary="remove the folders of old commands",
            )
        except ActivityError as failure:
            # The next time will do; the sandbox may have stopped in between.
            workflow.logger.warning("old commands were not cleaned away", extra={"error": error_of(failure).message})

    def _end(self, record: CommandRecord, progress: CommandProgress) -> None:
        if record.outcome is None and progress.outcome is not None:
            self._note_end(record, progress)
            self._ended(record.place.call_id, progress.outcome)

    def _note_end(self, record: CommandRecord, progress: CommandProgress) -> None:
        outcome = progress.outcome or interrupted(progress.call_id)
        record.outcome = outcome.for_ledger()
        record.ended_at = workflow.now()
        record.status = progress.status or "interrupted"
        record.exit_code = progress.exit_code

    def _make_room(self) -> None:
        ended = [record for record in self._records.values() if record.outcome is not None]
        surplus = len(ended) - RECORDS_LIMIT
        if surplus <= 0:
            return
        if workflow.patched(Patch.FORGOTTEN_BY_END):
            ended.sort(key=lambda record: record.ended_at or record.place.started_at)
        for record in ended[:surplus]:
            del self._records[record.place.call_id]

    # Following.

    def _follow(self, call_ids: list[str]) -> None:
        self._unfollowed += call_ids
        if self._unfollowed and not self._gathering:
            self._gathering = True
            asyncio.create_task(self._start_follower())  # noqa: RUF006 - the event loop of a workflow keeps its tasks

    async def _start_follower(self) -> None:
        await until(lambda: False, timeout_s=_GATHER_S)
        self._gathering = False
        if len(self._followers) >= FOLLOWERS_LIMIT:
            for follower, followed in self._followers.items():
                follower.cancel()
                self._unfollowed += followed.call_ids
            self._followers.clear()
        chosen, self._unfollowed = self._unfollowed, []
        places = [
            record.place
            for record in map(self._records.get, dict.fromkeys(chosen))
            if record is not None and record.outcome is None
        ]
        if not places:
            return
        follower = workflow.start_activity(
            Activity.FOLLOW_COMMANDS,
            FollowCommandsStep(ref=self._lifecycle.ref(), commands=places),
            result_type=FollowCommandsResult,
            task_queue=follow_queue(workflow.info().task_queue),
            start_to_close_timeout=timedelta(hours=25),
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            retry_policy=PATIENT,
            summary=f"follow {', '.join(place.call_id for place in places)}"[:200],
        )
        self._followers[follower] = _Following([place.call_id for place in places], self._lifecycle.starts)
        await until(follower.done)
        await self._take_result(follower)

    async def _take_result(self, follower: asyncio.Task[FollowCommandsResult]) -> None:
        try:
            result = follower.result()
        except ActivityError as failure:
            if follower in self._followers:
                await self._follower_failed(failure, self._followers[follower])
                self._follow(self._left_by(follower))
            return
        except asyncio.CancelledError:
            return  # Cancelled before it was scheduled: another has taken over.
        self._again_s = _AGAIN_FIRST_S
        for call_id, stored in result.stored.items():
            record = self._records.get(call_id)
            if record is not None:
                record.place = record.place.model_copy(update={"stored": stored})
        for progress in result.ended:
            record = self._records.get(progress.call_id)
            if record is not None:
                self._end(record, progress)
        self._follow([call_id for call_id in self._left_by(follower) if self._runs(call_id)])

    def _left_by(self, follower: asyncio.Task[FollowCommandsResult]) -> list[str]:
        """What a follower that is done has followed; nothing when another has taken over."""
        followed = self._followers.pop(follower, None)
        return [] if followed is None else followed.call_ids

    def _runs(self, call_id: str) -> bool:
        record = self._records.get(call_id)
        return record is not None and record.outcome is None

    async def _follower_failed(self, failure: ActivityError, followed: _Following) -> None:
        signal = signal_of(failure)
        error = error_of(failure)
        if signal is SandboxSignal.LOST:
            self._lifecycle.lose(error)
            self.end_all(CallOutcome(error=error))
        elif signal is SandboxSignal.NOT_STARTED:
            # All processes of a stopped sandbox are gone: its commands were interrupted, not lost track of.
            if not workflow.patched(Patch.STOPS_BY_FOLLOWER):
                self._lifecycle.noticed_stopped()
                await self.interrupt_all()
            elif followed.starts == self._lifecycle.starts:
                self._lifecycle.noticed_stopped()
                await self._interrupt([each for each in self.running() if each.place.call_id in followed.call_ids])
            # Else the news is of a stop before the last start: the next follower sees what became of them.
        else:
            workflow.logger.warning("follower failed, trying again", extra={"error": error.message})
            pause_s, self._again_s = self._again_s, min(self._again_s * 2, _AGAIN_MOST_S)
            await until(lambda: not any(self.running()), timeout_s=pause_s)
