"""Commands in a sandbox: started once, found again, followed to their end, and ended on request.

The launcher inside the sandbox makes every request here safe to repeat: whoever asks for a call id starts its
command if nobody has, and else attaches to it. So a lost answer is never interpreted, only asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import posixpath
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import cast

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.deadlines import time_left_s
from activities.heartbeats import heartbeats
from activities.launcher import (
    INLINE_SCRIPT_BYTES,
    Answer,
    CallReport,
    LauncherRequest,
    Refusal,
    Script,
    TornAnswer,
    follow_request,
    parse_answer,
    start_request,
    stop_request,
)
from activities.outcomes import arguments_of, failed_outcome, outcome_of
from activities.output import exec_result
from activities.provider import ProviderAccess
from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolError, ToolFailure, as_application_error
from sandhold.contracts.names import WORKSPACE_PATH, Activity, ToolName, call_folder
from sandhold.contracts.steps import (
    CommandPlace,
    CommandProgress,
    CommandStep,
    FollowCommandsResult,
    FollowCommandsStep,
    SandboxRef,
    StopCommandsStep,
)
from sandhold.contracts.tools import ExecArguments, OutputDetail
from sandhold.storage import SessionStorage

FIRST_WAIT_S = 8.0
"""How long the request that starts a command waits for its end."""
FOLLOW_WAIT_S = 8.0
"""How long one request of a follower waits: short enough for proxies on the way, long enough to cost little."""
TIMEOUT_GRACE_S = 2.0
"""Between TERM and KILL for a command whose time is up."""
ANSWER_MARGIN_S = 0.8
"""Kept back from the activity's time, so that its answer is heard before Temporal gives up on it."""
LAUNCHER_MARGIN_S = 5.0
"""How much longer than its wait a launcher's request may take; a busy sandbox is slow to start processes."""
STOPS_AT_ONCE = 16
_NOTHING_RUNS = frozenset({SandboxSignal.NOT_STARTED.value, SandboxSignal.LOST.value})
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Between two requests of a follower that were not answered."""


class CommandActivities:
    """Runs commands by the launcher."""

    def __init__(self, access: ProviderAccess, storage: SessionStorage) -> None:
        self._access = access
        self._storage = storage

    @activity.defn(name=Activity.RUN_COMMAND)
    async def run_command(self, step: CommandStep) -> CommandProgress:
        """Start the command, or find it, and wait a few seconds for its end.

        When this returns the command has ended and its outcome is here, or it runs on by itself. A request
        without a whole answer is raised to be repeated: the command may run, and the repetition attaches. What
        the caller did wrong is an outcome. A short command costs one provider request.
        """
        async with _heartbeats_if_wanted():
            try:
                arguments = await arguments_of(self._storage, step, ToolName.EXEC, ExecArguments)
                script = _script(arguments)
                report, clock = await self._start(step, script, _timeout_ms(step, arguments) / 1000)
            except ToolFailure as failure:
                return CommandProgress(call_id=step.call_id, outcome=failed_outcome(failure))
            if report.state != "running":
                result = exec_result(step.call_id, report, arguments.output)
                outcome = await outcome_of(self._storage, step.ref.session_id, step.call_id, result)
                return CommandProgress(call_id=step.call_id, outcome=outcome)
            running_s = 0.0 if report.began is None else max(0, clock - report.began) / 100
            place = CommandPlace(
                call_id=step.call_id,
                output=arguments.output,
                started_at=datetime.now(UTC) - timedelta(seconds=running_s),
            )
            return CommandProgress(call_id=step.call_id, running=place)

    @activity.defn(name=Activity.FOLLOW_COMMANDS)
    async def follow_commands(self, step: FollowCommandsStep) -> FollowCommandsResult:
        """Wait until at least one of the commands is over; return the outcomes of those that are.

        Requests that fail are repeated: no fault on the way to the sandbox ends a command or the following.
        Cancelling this ends nothing but the following. Raises what the provider says about the sandbox itself.
        """
        places = {call_folder(place.call_id): place for place in step.commands}
        call_ids = [place.call_id for place in step.commands]
        pause_s = FIRST_PAUSE_S
        async with heartbeats():
            while True:
                try:
                    answer = await self._ask(step.ref, follow_request(call_ids, wait_s=FOLLOW_WAIT_S))
                except ApplicationError as error:
                    if error.non_retryable:
                        raise
                    activity.logger.warning("following goes on after a failed request", extra={"error": str(error)})
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                    continue
                pause_s = FIRST_PAUSE_S
                if answer.reports:
                    ended = [
                        await self._ended(step.ref, places[report.folder], report)
                        for report in answer.reports
                        if report.folder in places
                    ]
                    return FollowCommandsResult(ended=ended)

    @activity.defn(name=Activity.STOP_COMMANDS)
    async def stop_commands(self, step: StopCommandsStep) -> None:
        """End the commands and everything they started: TERM, grace, KILL.

        When this returns none of them runs, and one that had not been started will not start later. Their
        outcomes are told by whoever follows them. Safe to repeat.
        """
        places = asyncio.Semaphore(STOPS_AT_ONCE)

        async def stop(call_id: str) -> None:
            async with places:
                await self._ask(step.ref, stop_request(call_id, grace_s=step.grace_s))

        async with heartbeats():
            try:
                async with asyncio.TaskGroup() as stopping:
                    for call_id in step.call_ids:
                        stopping.create_task(stop(call_id))
            except ExceptionGroup as failures:
                failure = _most_telling(failures)
                if isinstance(failure, ApplicationError) and failure.type in _NOTHING_RUNS:
                    return
                raise failure from failures

    async def _start(self, step: CommandStep, script: Script, timeout_s: float) -> tuple[CallReport, int]:
        """What became of the command by the end of this request, and the sandbox's clock at its beginning.

        Raises ToolFailure when nothing was started and nothing ever will be under this call id.
        """
        upload_path = await self._uploaded(step.ref, script)
        left_s = time_left_s()
        answer = await self._ask(
            step.ref,
            start_request(
                step.call_id,
                script,
                wait_s=min(FIRST_WAIT_S, max(0.0, left_s - ANSWER_MARGIN_S)),
                timeout_s=timeout_s,
                grace_s=TIMEOUT_GRACE_S,
                again=_may_have_been_started(),
                upload_path=upload_path,
            ),
        )
        if answer.refusal is not None:
            raise _refused(answer.refusal, script)
        if len(answer.reports) != 1:
            raise _torn(f"the launcher told of {len(answer.reports)} commands instead of one")
        report = answer.reports[0]
        if report.fingerprint not in {None, script.fingerprint}:
            raise ToolFailure(
                ErrorCode.CALL_ID_CONFLICT,
                "another command was run in this sandbox under the same call id",
                hint="Call again under a new call id.",
            )
        return report, answer.clock

    async def _uploaded(self, ref: SandboxRef, script: Script) -> str | None:
        """Where a script that is too large for the request now is; None for one that is not."""
        data = script.text.encode()
        if len(data) <= INLINE_SCRIPT_BYTES:
            return None
        path = f"/tmp/sandhold-script-{secrets.token_hex(8)}"  # noqa: S108 - the launcher moves it from there
        within_s = min(self._access.request_timeout_s, max(1.0, time_left_s() - ANSWER_MARGIN_S))
        await self._access.toolbox(ref, lambda sandbox: sandbox.fs.upload_file(data, path), within_s)
        return path

    async def _ask(self, ref: SandboxRef, order: LauncherRequest) -> Answer:
        """Make one request to the launcher. Raises ApplicationError, to be repeated unless it says otherwise."""
        within_s = order.wait_s + LAUNCHER_MARGIN_S
        response = await self._access.toolbox(
            ref,
            # In the root, as a command may have removed the directory that requests run in by default.
            lambda sandbox: sandbox.process.exec(order.command, "/", order.env, math.ceil(within_s)),
            min(within_s, max(1.0, time_left_s())),
        )
        try:
            return parse_answer(order.nonce, response.result)
        except TornAnswer as error:
            raise _torn(str(error)) from error

    async def _ended(self, ref: SandboxRef, place: CommandPlace, report: CallReport) -> CommandProgress:
        detail = cast("OutputDetail", place.output)
        result = exec_result(place.call_id, report, detail, asked_to_end=place.cancelled is not None)
        outcome = await outcome_of(self._storage, ref.session_id, place.call_id, result)
        return CommandProgress(call_id=place.call_id, outcome=outcome)


@contextlib.asynccontextmanager
async def _heartbeats_if_wanted() -> AsyncIterator[None]:
    """Heartbeats when the attempt has to send them: a short command is spared the message."""
    if activity.info().heartbeat_timeout is None:
        yield
        return
    async with heartbeats():
        yield


def _may_have_been_started() -> bool:
    """Whether an earlier request may have started the command: this is a retry, or the patient second try of a call,
    which is the one that has to send heartbeats."""
    info = activity.info()
    return info.attempt > 1 or info.heartbeat_timeout is not None


def _script(arguments: ExecArguments) -> Script:
    try:
        arguments.command.encode()
    except UnicodeEncodeError as error:
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, "daytona_exec: command: must be valid Unicode") from error
    return Script(arguments.command, posixpath.join(WORKSPACE_PATH, arguments.cwd))


def _timeout_ms(step: CommandStep, arguments: ExecArguments) -> int:
    return arguments.timeout if "timeout" in arguments.model_fields_set else step.default_timeout_ms


def _refused(refusal: Refusal, script: Script) -> Exception:
    """What it means that the launcher started nothing."""
    match refusal.kind:
        case "cwd_missing":
            return ToolFailure(
                ErrorCode.PATH_NOT_FOUND,
                f"the directory {script.cwd} does not exist; nothing was run",
                hint="Create the directory first, or give another cwd.",
            )
        case "cwd_not_a_directory":
            return ToolFailure(ErrorCode.PATH_NOT_FOUND, f"{script.cwd} is not a directory; nothing was run")
        case "cwd_denied":
            return ToolFailure(ErrorCode.PERMISSION_DENIED, f"{script.cwd} may not be entered; nothing was run")
        case "folder" | "script" if "space left" in refusal.detail or "quota" in refusal.detail.lower():
            return ToolFailure(
                ErrorCode.STORAGE_FULL,
                "the sandbox's disk is full; nothing was run",
                hint="Delete what is not needed with a short command, or create a sandbox of a larger size.",
            )
        case "folder":
            return ToolFailure(
                ErrorCode.PERMISSION_DENIED,
                f"the folder for commands cannot be made: {refusal.detail[:300]}",
                hint="~/.sandhold must be a directory that the sandbox's user can write to.",
            )
        case kind:
            # The upload was lost, or no process could be started. Another attempt may do.
            return _torn(f"the command was not started ({kind}) {refusal.detail[:300]}".rstrip())


def _torn(why: str) -> ApplicationError:
    """The failure for an answer that tells nothing: to be asked for again."""
    return as_application_error(
        ToolError(code=ErrorCode.PROVIDER_UNAVAILABLE, message=why[:500], retryable=True, ambiguous=True),
        non_retryable=False,
    )


def _most_telling(failures: ExceptionGroup[Exception]) -> Exception:
    """The failure to raise for several: one that says something about the sandbox itself before any other."""
    for failure in failures.exceptions:
        if isinstance(failure, ApplicationError) and failure.non_retryable:
            return failure
    return failures.exceptions[0]
