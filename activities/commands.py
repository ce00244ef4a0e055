"""Commands in a sandbox: started once, found again, and ended on request.

The launcher inside the sandbox makes every request here safe to repeat: whoever asks for a call id starts its
command if nobody has, and else attaches to it. So a lost answer is never interpreted, only asked for again.
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.deadlines import time_left_s
from activities.faults import ProviderError
from activities.heartbeats import heartbeats, heartbeats_if_wanted
from activities.launcher import (
    INLINE_SCRIPT_BYTES,
    UNWANTED,
    CallReport,
    Captured,
    Position,
    Script,
    read_request,
    start_request,
    stop_request,
)
from activities.launcher.access import ANSWER_MARGIN_S, Launcher, not_kept_from_starting, only_report
from activities.outcomes import arguments_of, failed_outcome, progress_of
from activities.output import exec_result, with_files
from activities.provider import ProviderAccess
from activities.redactors import Redactors, redacted
from activities.refusals import start_refused
from activities.session_secrets import SessionSecrets
from activities.vault_faults import VaultFailure
from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolError, ToolFailure, as_application_error
from sandhold.contracts.names import WORKSPACE_PATH, Activity, ToolName
from sandhold.contracts.steps import CommandPlace, CommandProgress, CommandStep, SandboxRef, StopCommandsStep
from sandhold.contracts.tools import ExecArguments, ExecResult, OutputDetail
from sandhold.security import SecurityError
from sandhold.security.redaction import Redactor
from sandhold.storage import SegmentWriter, SessionStorage, Stream
from sandhold.vault import VaultError

FIRST_WAIT_S = 8.0
"""How long the request that starts a command waits for its end."""
TIMEOUT_GRACE_S = 2.0
"""Between TERM and KILL for a command whose time is up, or that wrote too much."""
STOPS_AT_ONCE = 16
_NOTHING_RUNS = frozenset({SandboxSignal.NOT_STARTED.value, SandboxSignal.LOST.value})


@dataclass(frozen=True)
class Order:
    """What to run, and how."""

    script: Script
    output: OutputDetail
    timeout_s: float | None
    background: bool = False
    stdin: bool = False


class CommandActivities:
    """Starts and ends commands by the launcher."""

    def __init__(
        self, access: ProviderAccess, storage: SessionStorage, redactors: Redactors, secrets: SessionSecrets
    ) -> None:
        self._launcher = Launcher(access)
        self._storage = storage
        self._redactors = redactors
        self._secrets = secrets

    @activity.defn(name=Activity.RUN_COMMAND)
    async def run_command(self, step: CommandStep) -> CommandProgress:
        """Start the command, or find it, and wait a few seconds for its end; not at all for one in the background.

        When this returns the command has ended and its outcome is here, or it is left to a follower: because it
        runs on by itself, or because it wrote so much that only a part was seen here. A request without a whole
        answer is raised to be repeated: the command may run, and the repetition attaches. What is not to be repeated
        is raised as ambiguous when an earlier request may have started the command. What the caller did wrong is an
        outcome. A short command costs one provider request. A command that was started before is found also while its
        secrets cannot be read, and is left to a follower.
        """

        async def order() -> Order:
            arguments = await arguments_of(self._storage, step, ToolName.EXEC, ExecArguments)
            return Order(
                _script(arguments),
                arguments.output,
                _timeout_s(step, arguments),
                background=arguments.background,
                stdin=arguments.stdin,
            )

        async def environment() -> tuple[Redactor, Mapping[str, str]]:
            # Both before the command: what cannot be shown is not run. To the second, what was replaced between the two
            # is known as an earlier value.
            variables = await self._secrets.environment(step.ref, step.secret_env)
            return await self._redactors.of(step.ref, fresh=bool(step.secret_env)), variables

        return await self.start(step, order, environment)

    async def start(
        self,
        step: CommandStep,
        order_of: Callable[[], Awaitable[Order]],
        environment_of: Callable[[], Awaitable[tuple[Redactor, Mapping[str, str]]]],
    ) -> CommandProgress:
        """Start what is ordered, or find it: what `run_command` promises, for any command.

        `environment_of` gives what it gets besides the sandbox's own environment, and the redactor for what it prints.
        """
        async with heartbeats_if_wanted():
            try:
                order = await order_of()
                script = order.script
                redactor: Redactor | None = None
                try:
                    redactor, environment = await environment_of()
                except (VaultError, SecurityError, ApplicationError):
                    if not _may_have_been_started() or (found := await self._found(step, script)) is None:
                        raise
                    redactor, (report, clock) = None, found
                else:
                    report, clock = await self._start(step, order, environment)
            except ToolFailure as failure:
                return CommandProgress(call_id=step.call_id, outcome=failed_outcome(failure))
            except (VaultError, SecurityError) as error:
                if not _is_unsure(error):
                    raise
                raise VaultFailure(error, ambiguous=True) from error
            except ApplicationError as error:
                if (unsure := _unsure(error)) is None:
                    raise
                raise unsure from error
            if report.state != "running" and redactor is not None:
                result = exec_result(step.call_id, redacted(report, redactor), order.output)
                if not result.truncated or not (report.stdout.unseen or report.stderr.unseen):
                    return await self._ended(step, report, result, redactor)
            running_s = 0.0 if report.began is None else max(0, clock - report.began) / 100
            started_at = datetime.now(UTC) - timedelta(seconds=running_s)
            place = CommandPlace(
                call_id=step.call_id,
                output=order.output,
                started_at=started_at,
                background=order.background,
                bounded=order.timeout_s is not None,
                deadline_at=None if order.timeout_s is None else started_at + timedelta(seconds=order.timeout_s),
                cap_bytes=step.output_cap_bytes,
            )
            return CommandProgress(call_id=step.call_id, running=place)

    @activity.defn(name=Activity.STOP_COMMANDS)
    async def stop_commands(self, step: StopCommandsStep) -> None:
        """End the commands and everything they started: TERM, grace, KILL.

        When this returns none of them runs, and one that had not been started will not start later. Their
        outcomes are told by whoever follows them. Safe to repeat. When it raises, every one of them was tried.
        """
        places = asyncio.Semaphore(STOPS_AT_ONCE)

        async def stop(call_id: str) -> None:
            async with places:
                report = only_report(await self._launcher.ask(step.ref, stop_request(call_id, grace_s=step.grace_s)))
            if report.state == "absent":
                raise not_kept_from_starting()

        async with heartbeats():
            tried = await asyncio.gather(*map(stop, step.call_ids), return_exceptions=True)
        failures = [each for each in tried if each is not None]
        if failures:
            failure = most_telling(failures)
            if isinstance(failure, ApplicationError) and failure.type in _NOTHING_RUNS:
                return
            raise failure

    async def _found(self, step: CommandStep, script: Script) -> tuple[CallReport, int] | None:
        """The command without its output, and the sandbox's clock; None while it has not been started.

        Raises ToolFailure as `_start`.
        """
        nothing = Position(step.call_id, UNWANTED, UNWANTED)
        order = read_request(nothing, nothing, wait_s=0, budget_bytes=0)
        answer = await self._launcher.ask(step.ref, order, sure=False)  # as in `_start`
        report = only_report(answer)
        return None if report.state == "absent" else (_of_this_call(report, script), answer.clock)

    async def _start(
        self,
        step: CommandStep,
        order: Order,
        environment: Mapping[str, str],
    ) -> tuple[CallReport, int]:
        """What became of the command by the end of this request, and the sandbox's clock at its beginning.

        Raises ToolFailure when nothing was started and nothing ever will be under this call id.
        """
        script = order.script
        upload_path = await self._uploaded(step.ref, script)
        answer = await self._launcher.ask(
            step.ref,
            start_request(
                step.call_id,
                script,
                wait_s=0.0 if order.background else min(FIRST_WAIT_S, max(0.0, time_left_s() - ANSWER_MARGIN_S)),
                timeout_s=order.timeout_s,
                grace_s=TIMEOUT_GRACE_S,
                again=_may_have_been_started(),
                cap_bytes=step.output_cap_bytes,
                keep_stdin=order.stdin,
                upload_path=upload_path,
                environment=environment,
            ),
            sure=False,  # the sandbox is started then, and the command called again
        )
        if answer.refusal is not None:
            raise start_refused(answer.refusal, script)
        return _of_this_call(only_report(answer), script), answer.clock

    async def _uploaded(self, ref: SandboxRef, script: Script) -> str | None:
        """Where a script that is too large for the request now is; None for one that is not."""
        data = script.text.encode()
        if len(data) <= INLINE_SCRIPT_BYTES:
            return None
        return await self._launcher.upload(ref, data, "script", sure=False)

    async def _ended(
        self, step: CommandStep, report: CallReport, result: ExecResult, redactor: Redactor
    ) -> CommandProgress:
        """The outcome of a command that is over and was seen whole; output that the result has not byte for byte is
        stored, redacted."""
        streams: tuple[tuple[Stream, Captured], ...] = (("stdout", report.stdout), ("stderr", report.stderr))
        shown = (result.stdout, result.stderr)
        if [text.encode() for text in shown] != [captured.head + captured.tail for _, captured in streams]:
            whole = True
            for stream, captured in streams:
                quota = step.ref.storage_quota_bytes
                at = (step.ref.session_id, step.call_id, stream)
                writer = SegmentWriter(self._storage, *at, redactor=redactor, quota=quota)
                await writer.take(captured.head + captured.tail)
                await writer.finish()
                whole = whole and writer.whole
            result = with_files(result, whole=whole)
        return await progress_of(self._storage, step.ref.session_id, result)


def _of_this_call(report: CallReport, script: Script) -> CallReport:
    """The report. Raises ToolFailure when it tells nothing of this command."""
    if report.state == "cleaned":
        raise ToolFailure(
            ErrorCode.CONFLICT,
            "the command of this call id ran long ago, and its output has been cleaned away; nothing was run",
            hint="Call under a new call id to run it again.",
        )
    if report.fingerprint not in {None, script.fingerprint}:
        raise ToolFailure(
            ErrorCode.CALL_ID_CONFLICT,
            "another command was run in this sandbox under the same call id",
            hint="Call again under a new call id.",
        )
    return report


def _may_have_been_started() -> bool:
    """Whether an earlier request may have started the command: this is a retry, or the patient second try of a call,
    which is the one that has to send heartbeats."""
    info = activity.info()
    return info.attempt > 1 or info.heartbeat_timeout is not None


def _unsure(error: ApplicationError) -> ApplicationError | None:
    """The error to raise in place of one that ends the trying although the command may run; None for any other."""
    told = error.details[0] if error.details else None
    if not error.non_retryable or error.type in set(SandboxSignal) or not isinstance(told, ToolError):
        return None
    if not _is_unsure(error):
        return None
    return as_application_error(told.model_copy(update={"ambiguous": True}))


def _is_unsure(error: BaseException) -> bool:
    return _may_have_been_started() or _follows_an_ambiguous_answer(error)


def _follows_an_ambiguous_answer(error: BaseException) -> bool:
    """Whether `error` was met while the provider was asked what an answer without one from the sandbox meant."""
    before = error.__context__
    while before is not None:
        if isinstance(before, ProviderError) and before.error.ambiguous:
            return True
        before = before.__context__
    return False


def _script(arguments: ExecArguments) -> Script:
    try:
        arguments.command.encode()
    except UnicodeEncodeError as error:
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, "daytona_exec: command: must be valid Unicode") from error
    return Script(arguments.command, posixpath.join(WORKSPACE_PATH, arguments.cwd))


def _timeout_s(step: CommandStep, arguments: ExecArguments) -> float | None:
    """The command's timeout; None for one in the background that names none."""
    if "timeout" in arguments.model_fields_set:
        return arguments.timeout / 1000
    return None if arguments.background else step.default_timeout_ms / 1000


def most_telling(failures: Sequence[BaseException]) -> BaseException:
    """The failure to raise for several: one that says something about the sandbox itself before any other."""
    for failure in failures:
        if isinstance(failure, ApplicationError) and failure.non_retryable:
            return failure
    return failures[0]
