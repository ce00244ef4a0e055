"""Following running commands: their output into session storage while they run, their outcome once they are over."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import cast

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.commands import TIMEOUT_GRACE_S, most_telling
from activities.heartbeats import heartbeats
from activities.launcher import (
    UNKILLABLE_S,
    UNWANTED,
    CallReport,
    Position,
    TornAnswer,
    follow_request,
    stop_request,
)
from activities.launcher.access import Launcher, not_kept_from_starting, only_report, torn
from activities.outcomes import progress_of
from activities.output import exec_result, with_files, with_loss
from activities.provider import ProviderAccess
from activities.redactors import Redactors, redacted
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.errors import ErrorCode, ToolError
from sandhold.contracts.names import Activity, call_folder
from sandhold.contracts.steps import (
    CommandPlace,
    CommandProgress,
    FollowCommandsResult,
    FollowCommandsStep,
    SandboxRef,
    StoredOutput,
)
from sandhold.contracts.tools import OutputDetail
from sandhold.security.redaction import Redactor
from sandhold.storage import SegmentReader, SegmentWriter, SessionStorage, Stream
from sandhold.storage.segments import REWRITE_S, SEGMENT_BYTES

FOLLOW_WAIT_S = 8.0
"""How long one request of a follower waits: short enough for proxies on the way, long enough to cost little."""
STORED_PER_ATTEMPT_BYTES = 64 * 1024 * 1024
"""After so much a follower returns, so that the workflow knows how far it has come."""
OVERDUE_S = TIMEOUT_GRACE_S + UNKILLABLE_S + 5.0
"""How long after its deadline a command is ended from here: its watcher in the sandbox would have done it by then, and
the clocks of two workers may differ a little."""
END_AGAIN_S = 60.0
LISTS_AT_ONCE = 16
LEAST_ANSWER_BYTES, FIRST_ANSWER_BYTES, MOST_ANSWER_BYTES = 64 * 1024, 1024 * 1024, 4 * 1024 * 1024
"""How much output one answer carries: more while much comes, less after a request that was not answered."""
FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_ASKED_PAUSE_S = 0.1, 5.0, 30.0
"""Between two requests that were not answered; the last bounds what the provider may ask for."""
ENDED_AT_ONCE = 16
BEYOND_CAP_BYTES = 1024 * 1024
"""What is stored of a command beyond its cap, as its watcher in the sandbox looks only now and then."""

_NEVER_STARTED = ToolError(
    code=ErrorCode.CANCELLED,
    message="the command was never started, and will not be any more",
    hint="Call again under a new call id to run it.",
)


class FollowingActivities:
    """Follows commands by the launcher: one follower for all commands of a sandbox that run."""

    def __init__(self, access: ProviderAccess, storage: SessionStorage, redactors: Redactors) -> None:
        self._launcher = Launcher(access)
        self._storage = storage
        self._stored = SegmentReader(storage)
        self._redactors = redactors

    @activity.defn(name=Activity.FOLLOW_COMMANDS)
    async def follow_commands(self, step: FollowCommandsStep) -> FollowCommandsResult:
        """Store what the commands write until at least one is over; return the outcomes of those that are.

        The whole output of a command is in storage before its outcome is told. Returns without an outcome once
        STORED_PER_ATTEMPT_BYTES were stored, and once a command has emptied its output: whoever follows it from then
        on has to know. Goes on from what is known to be in storage: by the places, by the heartbeats of the attempt
        before, and by storage itself. Requests that fail are repeated: no fault on the way to the sandbox ends a
        command or the following; after one that was not answered the next asks about fewer commands. A command whose
        deadline has long passed is ended. Of one that wrote far more than its cap the beginning is stored. What becomes
        known as a secret meanwhile is redacted from then on. Cancelling this ends nothing but the following. Raises
        what the provider says about the sandbox itself.
        """
        redactor = await self._redactors.of(step.ref, fresh=True)
        commands = {
            call_folder(place.call_id): _Followed(self._storage, step.ref, place, redactor) for place in step.commands
        }
        _take_up_heartbeat(commands.values())
        turn = deque(commands)
        at_once = len(commands)
        answer_bytes = FIRST_ANSWER_BYTES
        pause_s = FIRST_PAUSE_S
        async with heartbeats(lambda: {each.call_id: each.stored.model_dump() for each in commands.values()}):
            await self._take_up_storage(step.ref, commands.values())
            while True:
                asked = {folder: commands[folder] for folder in islice(turn, at_once)}
                turn.rotate(-at_once)  # One that spoils the answer is in the way of no other for long.
                try:
                    await self._end_overdue(step.ref, commands.values())
                    redactor = await self._redactors.of(step.ref)
                    for command in commands.values():
                        await command.use(redactor)
                    # The others' turn comes at once.
                    wait_s = FOLLOW_WAIT_S if len(asked) == len(commands) else 0.0
                    taken = await self._take_news(step.ref, asked, answer_bytes, wait_s)
                except ApplicationError as error:
                    if error.non_retryable:
                        raise
                    activity.logger.warning(
                        "following goes on after a failed request",
                        extra={
                            "error": redactor.redact_text(str(error)),
                            "asked_about": len(asked),
                            "commands": len(commands),
                        },
                    )
                    await asyncio.sleep(max(pause_s, _asked_pause_s(error)))
                    pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                    answer_bytes = max(answer_bytes // 4, LEAST_ANSWER_BYTES)
                    at_once = max(at_once // 2, 1)
                    continue
                pause_s = FIRST_PAUSE_S
                at_once = min(at_once * 2, len(commands))
                if taken >= answer_bytes // 2:
                    answer_bytes = min(answer_bytes * 2, MOST_ANSWER_BYTES)
                ended = [each for each in commands.values() if each.complete]
                newly_stored = sum(each.newly_stored for each in commands.values())
                newly_emptied = any(each.newly_emptied for each in commands.values())
                if ended or newly_emptied or newly_stored >= STORED_PER_ATTEMPT_BYTES:
                    return FollowCommandsResult(
                        ended=[await self._ended(step.ref, each, redactor) for each in ended],
                        stored={each.call_id: each.stored for each in commands.values()},
                    )

    async def _take_up_storage(self, ref: SandboxRef, commands: Collection[_Followed]) -> None:
        """Go on from what lies in storage: a follower that was cut off may have stored more than it has told."""
        places = asyncio.Semaphore(LISTS_AT_ONCE)

        async def take_up(command: _Followed) -> None:
            async with places:
                await command.take_up(self._stored)

        await asyncio.gather(*map(take_up, commands))

    async def _end_overdue(self, ref: SandboxRef, commands: Collection[_Followed]) -> None:
        """End the commands that their watchers in the sandbox should have ended long ago: something killed those."""
        places = asyncio.Semaphore(ENDED_AT_ONCE)

        async def end(command: _Followed) -> None:
            async with places:
                command.note_ending()
                activity.logger.warning("ending a command whose time is up", extra={"call_id": command.call_id})
                order = stop_request(command.call_id, grace_s=TIMEOUT_GRACE_S, reason="timed_out")
                await self._launcher.ask(ref, order)

        overdue = [command for command in commands if command.overdue]
        failures = [each for each in await asyncio.gather(*map(end, overdue), return_exceptions=True) if each]
        if failures:
            raise most_telling(failures)

    async def _take_news(
        self, ref: SandboxRef, commands: dict[str, _Followed], answer_bytes: int, wait_s: float
    ) -> int:
        """One request, and what it tells into storage; how many bytes that were."""
        order = follow_request(
            [each.position for each in commands.values()],
            # What readers do not see yet waits no longer than it must.
            wait_s=min(wait_s, REWRITE_S) if any(each.unseen for each in commands.values()) else wait_s,
            budget_bytes=answer_bytes,
        )
        answer = await self._launcher.ask(ref, order, answer_bytes=answer_bytes)
        taken = 0
        for report in answer.reports:
            if report.folder not in commands:
                continue
            command = commands[report.folder]
            if report.state == "absent" and command.place.unsure:
                await self._keep_from_starting(ref, command)  # The next request tells that it is over.
            else:
                taken += await command.take(report)
        for each in commands.values():
            await each.flush()
        return taken

    async def _keep_from_starting(self, ref: SandboxRef, command: _Followed) -> None:
        """When this returns the command of which nobody knew whether it was started is over, or being ended."""
        report = only_report(await self._launcher.ask(ref, stop_request(command.call_id, grace_s=0.0)))
        if report.state == "absent":
            raise not_kept_from_starting()

    async def _ended(self, ref: SandboxRef, command: _Followed, redactor: Redactor) -> CommandProgress:
        await command.finish()
        assert command.end is not None
        if command.place.unsure and command.end.state == "ended" and command.end.ended is None:
            return CommandProgress(
                call_id=command.call_id, outcome=CallOutcome(error=_NEVER_STARTED), status="cancelled"
            )
        detail = cast("OutputDetail", command.place.output)
        asked_to_end = command.place.cancelled is not None
        result = exec_result(
            command.call_id,
            redacted(command.end, redactor),
            detail,
            asked_to_end=asked_to_end,
            time_is_up=command.time_is_up,
            redactions=command.redactions,
        )
        if command.position.stdout or command.position.stderr:
            result = with_files(result, whole=command.whole, cut_at=command.cut_at)
        result = with_loss(result, command.emptied_at)
        return await progress_of(self._storage, ref.session_id, result)


class _Followed:
    """One command: what of its output is in storage, and its end."""

    def __init__(self, storage: SessionStorage, ref: SandboxRef, place: CommandPlace, redactor: Redactor) -> None:
        self.place = place
        self.call_id = place.call_id
        self.end: CallReport | None = None
        self.time_is_up = False
        """Whether we have asked to end it for its deadline."""
        self.emptied_at: dict[Stream, int] = {}
        """The streams whose file became shorter than what it had been, and how much is stored of them. From then on
        its offsets mean other bytes: nothing more is stored of it."""
        self._end_again_at = 0.0
        self._told: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        """The most that there has been of each stream, by what was told of it."""
        self._storage, self._ref, self._redactor = storage, ref, redactor
        self._began = StoredOutput()
        self._begin()
        self.go_on_from(place.stored)

    def go_on_from(self, stored: StoredOutput) -> None:
        """Begin at what is stored, where that is further. Only before anything was taken."""
        self._began = StoredOutput(
            stdout_bytes=max(self._began.stdout_bytes, _segments(stored.stdout_bytes)),
            stderr_bytes=max(self._began.stderr_bytes, _segments(stored.stderr_bytes)),
        )
        self.emptied_at = {**stored.emptied_at, **self.emptied_at}
        self._begin()

    async def take_up(self, stored: SegmentReader) -> None:
        """Go on from all that lies in storage. Only before anything was taken."""
        segments = await stored.segments(self._ref.session_id, self.call_id)
        full = {stream: max(0, found - 1) * SEGMENT_BYTES for stream, found in segments.items()}
        self.go_on_from(StoredOutput(stdout_bytes=full["stdout"], stderr_bytes=full["stderr"]))
        for stream, writer in self._growing:
            if segments[stream] or writer.full_bytes:
                await writer.go_on()

    def _begin(self) -> None:
        at = (self._storage, self._ref.session_id, self.call_id)
        redactor, quota = self._redactor, self._ref.storage_quota_bytes
        self._stdout = SegmentWriter(*at, "stdout", self._began.stdout_bytes, redactor=redactor, quota=quota)
        self._stderr = SegmentWriter(*at, "stderr", self._began.stderr_bytes, redactor=redactor, quota=quota)

    @property
    def position(self) -> Position:
        """From where on the output is asked for."""
        known = {stream: writer.offset for stream, writer in self._writers}
        if self._room == 0:
            # Nothing more is taken: only its end, and that it grows, is news.
            known = {stream: max(offset, self._told[stream]) for stream, offset in known.items()}
        known.update(dict.fromkeys(self.emptied_at, UNWANTED))
        return Position(self.call_id, known["stdout"], known["stderr"])

    @property
    def _writers(self) -> tuple[tuple[Stream, SegmentWriter], ...]:
        return (("stdout", self._stdout), ("stderr", self._stderr))

    @property
    def _growing(self) -> list[tuple[Stream, SegmentWriter]]:
        """The writers of the streams that are stored on."""
        return [each for each in self._writers if each[0] not in self.emptied_at]

    @property
    def _taken(self) -> int:
        return self._stdout.offset + self._stderr.offset

    @property
    def _room(self) -> int | None:
        """How many bytes may still be taken; None for any number."""
        cap = self.place.cap_bytes
        return None if cap is None else max(0, cap + BEYOND_CAP_BYTES - self._taken)

    @property
    def cut_at(self) -> int | None:
        """How many bytes were taken, if there was more than may be; else None."""
        more = any(writer.offset < self._told[stream] for stream, writer in self._writers)
        return self._taken if more and self._room == 0 else None

    @property
    def stored(self) -> StoredOutput:
        """How much of it lies in full segments, and what was emptied."""
        return StoredOutput(
            stdout_bytes=self._stdout.full_bytes,
            stderr_bytes=self._stderr.full_bytes,
            emptied_at=dict(self.emptied_at),
        )

    @property
    def newly_stored(self) -> int:
        stored, began = self.stored, self._began
        return stored.stdout_bytes - began.stdout_bytes + stored.stderr_bytes - began.stderr_bytes

    @property
    def newly_emptied(self) -> bool:
        """Whether it has emptied output that is not on record as emptied."""
        return self.emptied_at.keys() != self.place.stored.emptied_at.keys()

    @property
    def complete(self) -> bool:
        """Whether the command is over and all that it had written by then is known.

        A process that it left behind may write on; that is not waited for. Nor is what may not be taken.
        """
        end = self.end
        if end is None or self._room == 0:
            return end is not None
        known = self.position
        return known.stdout >= end.stdout.size and known.stderr >= end.stderr.size

    @property
    def redactions(self) -> int:
        """How many secrets were replaced in all that was taken."""
        return self._stdout.redactions + self._stderr.redactions

    @property
    def whole(self) -> bool:
        """Whether the session's storage had room for all of the output."""
        return self._stdout.whole and self._stderr.whole

    @property
    def overdue(self) -> bool:
        """Whether it should have been ended in the sandbox for some time, and is to be ended from here now."""
        deadline = self.place.deadline_at
        if deadline is None or self.end is not None or time.monotonic() < self._end_again_at:
            return False
        return datetime.now(UTC) > deadline + timedelta(seconds=OVERDUE_S)

    def note_ending(self) -> None:
        """It is ended for its deadline now; not again before a while."""
        self.time_is_up = True
        self._end_again_at = time.monotonic() + END_AGAIN_S

    @property
    def unseen(self) -> bool:
        """Whether there is output that readers cannot see yet."""
        return any(writer.unseen for _, writer in self._growing)

    async def take(self, report: CallReport) -> int:
        """Take the news, as far as may be; how many bytes that is. Raises ApplicationError when some are missing
        before them."""
        pieces = {"stdout": report.stdout_slice, "stderr": report.stderr_slice}
        taken = 0
        for stream, writer in self._growing:
            piece = pieces[stream]
            if piece is None:
                continue
            if piece.size < max(writer.offset, self._told[stream]):
                await self._give_up(stream, writer)
                continue
            self._told[stream] = max(self._told[stream], piece.size)
            if self._room == 0:
                continue
            try:
                data = piece.beyond(writer.offset)[: self._room]
            except TornAnswer as error:
                raise torn(str(error)) from error
            await writer.take(data)
            taken += len(data)
        if report.state != "running" and self.end is None:
            self.end = report
            # Measured after the pieces: only the next can be shorter.
            self._told["stdout"] = max(self._told["stdout"], report.stdout.size)
            self._told["stderr"] = max(self._told["stderr"], report.stderr.size)
        return taken

    async def use(self, redactor: Redactor) -> None:
        """Redact by this one from here on."""
        for _, writer in self._growing:
            await writer.use(redactor)

    async def _give_up(self, stream: Stream, writer: SegmentWriter) -> None:
        """The stream was emptied: what was taken of it is in storage when this returns, and nothing else will be."""
        await writer.finish(cut=True)
        self.emptied_at[stream] = writer.offset

    async def flush(self) -> None:
        """Let readers see what was taken, unless they did a moment ago."""
        for _, writer in self._growing:
            await writer.flush()

    async def finish(self) -> None:
        """The output is whole, or all of it that may be taken."""
        for stream, writer in self._growing:
            await writer.finish(cut=writer.offset < self._told[stream])


def _take_up_heartbeat(commands: Iterable[_Followed]) -> None:
    """Go on from where the attempt before had come."""
    details = activity.info().heartbeat_details
    if details and isinstance(details[0], dict):
        for command in commands:
            if command.call_id in details[0]:
                command.go_on_from(StoredOutput.model_validate(details[0][command.call_id]))


def _segments(size: int) -> int:
    """The bytes of the full segments among `size` bytes."""
    return size - size % SEGMENT_BYTES


def _asked_pause_s(error: ApplicationError) -> float:
    """How long the provider asked to wait (429)."""
    asked = error.next_retry_delay
    return 0.0 if asked is None else min(asked.total_seconds(), LONGEST_ASKED_PAUSE_S)
