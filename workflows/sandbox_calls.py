"""The calls of one sandbox: admitted, carried out, followed, and answered from the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows.ledger import Call, Ledger, check_identity
from workflows.lifecycle import DELETED_BY_CALL, Change, Lifecycle, failure_from
from workflows.steps import HEARTBEAT_TIMEOUT, PATIENT, PROMPT, error_of, signal_of
from workflows.waiting import run_is_open, until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.base import Message
    from sandhold.contracts.calls import ANSWER_WITHIN_S, CallOutcome, CallRequest
    from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolError, ToolFailure
    from sandhold.contracts.names import (
        SESSION_TOOLS,
        Activity,
        ToolName,
        follow_queue,
        sandbox_workflow_id,
        session_workflow_id,
    )
    from sandhold.contracts.sandboxes import SandboxStart, SandboxState
    from sandhold.contracts.steps import (
        CallStep,
        CommandProgress,
        CommandStep,
        FollowCommandsResult,
        FollowCommandsStep,
        StopCommandsStep,
    )
    from sandhold.contracts.tools import (
        Action,
        ExecResult,
        ManageSandboxArguments,
        ManageSandboxResult,
        parse_arguments,
    )

KILL_GRACE_S = 5.0
"""Seconds between TERM and KILL for the commands that we end."""
_LAST_WORDS_S = 15.0
"""How long a killed command may take to report what it wrote."""
_SLOW_STEP_TIMEOUT = timedelta(minutes=2)

# Tools that use the inside of the sandbox: they are shared, and hold off the idle timer.
_INSIDE = {ToolName.EXEC, ToolName.READ_FILE, ToolName.WRITE_FILE}
_CHANGES: dict[str, Change] = {"start": "start", "stop": "stop", "archive": "archive"}

Result = TypeVar("Result", bound=Message)


class SandboxCalls:
    """Carries out calls against one sandbox; each at most once per call id, whatever is repeated."""

    def __init__(self, start: SandboxStart, ledger: Ledger, changed: Callable[[], None]) -> None:
        """`changed` hears of every call that begins or ends."""
        self._start = start
        self._ledger = ledger
        self._changed_calls = changed
        self._inside: set[str] = set()
        self._followed: dict[str, Call] = {}
        self._following = False
        self._lifecycle: Lifecycle

    def attach(self, lifecycle: Lifecycle) -> None:
        """Two halves of one thing: the lifecycle quiesces the calls, the calls start the sandbox."""
        self._lifecycle = lifecycle

    @property
    def busy(self) -> bool:
        """Whether a call uses the sandbox or waits to."""
        return any(call.entry.tool in _INSIDE for call in self._ledger.running())

    def resume(self) -> None:
        """Go on with the calls that were running when the workflow continued as new."""
        for call in list(self._ledger.running()):
            if call.entry.request is not None and call.entry.tool != ToolName.CREATE_SANDBOX:
                self._begin(call)

    def refusal(self, request: CallRequest) -> ToolError | None:
        """Why the sandbox as it is takes no new call; None when it does, or knows this one."""
        ending = self._lifecycle.why_ending()
        if ending is None or request.call_id in self._ledger or request.deletes:
            return None
        return ending

    def admit(self, request: CallRequest) -> Call:
        """Take a call on, or find it again. Raises ToolFailure with what is wrong with it.

        No await: once this returns, the call counts as running.
        """
        check_identity(request)
        known = self._ledger.known(request)
        if known is not None:
            return known
        self._check_target(request)
        if request.arguments_ref is None:
            parse_arguments(ToolName(request.tool), request.arguments)
        refused = self.refusal(request)
        if refused is not None:
            raise failure_from(refused)
        self._ledger.check_room(request)
        call = self._ledger.open(request)
        self._lifecycle.used()
        self._changed_calls()
        self._begin(call)
        return call

    async def answer(self, call: Call) -> CallOutcome | None:
        """Wait for the call's outcome, at most ANSWER_WITHIN_S after it began; None while it runs."""
        await until(call.answered)
        return call.take_outcome()

    async def quiesce(self, grace_s: float = 0.0) -> None:
        """End what runs inside: wait for the grace period, then cancel. All calls inside have an outcome after."""
        if not self._inside or await until(lambda: not self._inside, timeout_s=grace_s):
            return
        commands = [call_id for call_id in sorted(self._inside) if self._tool_of(call_id) == ToolName.EXEC]
        if commands:
            await self._kill(commands)
        if not await until(lambda: not self._inside, timeout_s=_LAST_WORDS_S):
            for call_id in sorted(self._inside):
                self._finish(call_id, CallOutcome(error=_cancelled(f"call {call_id} was ended with its sandbox")))

    def finish_all(self, outcome_of: Callable[[Call], CallOutcome]) -> None:
        """Give every running call its last outcome."""
        for call in list(self._ledger.running()):
            self._finish(call.call_id, outcome_of(call))

    def _begin(self, call: Call) -> None:
        asyncio.create_task(self._carry_out(call))  # noqa: RUF006 - the event loop of a workflow keeps its tasks

    def _tool_of(self, call_id: str) -> str | None:
        call = self._ledger.get(call_id)
        return call.entry.tool if call else None

    def _check_target(self, request: CallRequest) -> None:
        tool = ToolName(request.tool)
        here = self._start
        if tool in SESSION_TOOLS:
            target = session_workflow_id(here.session_id)
            raise ToolFailure(
                ErrorCode.WRONG_TARGET,
                f"{tool.value} is a call of the session",
                workflow_id=target,
                hint=f"Send it to {target}.",
            )
        named = request.arguments.get("sandbox_id") if isinstance(request.arguments, dict) else request.sandbox_id
        if isinstance(named, str) and named != here.sandbox_id:
            target = sandbox_workflow_id(here.session_id, named[:63])
            raise ToolFailure(
                ErrorCode.WRONG_TARGET,
                f"this is sandbox {here.sandbox_id}, the call is for {named[:63]!r}",
                workflow_id=target,
                hint=f"Send it to {target}.",
            )

    async def _carry_out(self, call: Call) -> None:
        try:
            outcome = await self._outcome_of(call)
        except ToolFailure as failure:
            outcome = CallOutcome(error=failure.error)
        except ActivityError as failure:
            outcome = CallOutcome(error=error_of(failure))
        except Exception:
            # A fault of ours costs this call, not the sandbox.
            workflow.logger.exception("call failed inside the workflow", extra={"call_id": call.call_id})
            outcome = CallOutcome(
                error=ToolError(code=ErrorCode.INTERNAL, message="the call failed inside Sandhold", ambiguous=True)
            )
        self._finish(call.call_id, outcome)

    def _finish(self, call_id: str, outcome: CallOutcome) -> None:
        call = self._ledger.get(call_id)
        self._inside.discard(call_id)
        self._followed.pop(call_id, None)
        if call is not None and call.running:
            self._lifecycle.used()
            call.finish(outcome)
            self._changed_calls()

    async def _outcome_of(self, call: Call) -> CallOutcome:
        request = call.entry.request
        assert request is not None
        tool = ToolName(request.tool)
        if tool is ToolName.MANAGE_SANDBOX:
            return await self._manage(call, request)
        if call.entry.command is not None:
            return await self._follow(call)
        for _ in range(3):
            while not self._lifecycle.ready:
                await self._promptly(call, self._lifecycle.ensure_started())
            # No await since the check: a stop that begins now waits for this call.
            self._inside.add(call.call_id)
            try:
                return await self._inside_started(call, request, tool)
            except ActivityError as failure:
                signal = signal_of(failure)
                if signal is SandboxSignal.LOST:
                    self._lifecycle.lose(error_of(failure))
                if signal is not SandboxSignal.NOT_STARTED:
                    raise
                self._inside.discard(call.call_id)
                self._lifecycle.noticed_stopped()
        raise ToolFailure(
            ErrorCode.PROVIDER_UNAVAILABLE,
            f"sandbox {self._start.sandbox_id} stopped again each time it was started",
            retryable=True,
        )

    async def _inside_started(self, call: Call, request: CallRequest, tool: ToolName) -> CallOutcome:
        if tool is ToolName.EXEC:
            command = CommandStep(
                ref=self._lifecycle.ref(),
                call_id=call.call_id,
                arguments=request.arguments,
                arguments_ref=request.arguments_ref,
                default_timeout_ms=max(1, round(self._start.policy.command_timeout_s * 1000)),
            )
            progress = await self._step(call, Activity.RUN_COMMAND, command, CommandProgress)
            if progress.running is None:
                assert progress.outcome is not None
                return progress.outcome
            call.entry.command = progress.running
            return await self._follow(call)
        activity = Activity.READ_FILE if tool is ToolName.READ_FILE else Activity.WRITE_FILE
        step = CallStep(
            ref=self._lifecycle.ref(),
            call_id=call.call_id,
            arguments=request.arguments,
            arguments_ref=request.arguments_ref,
        )
        return await self._step(call, activity, step, CallOutcome)

    async def _step(self, call: Call, activity: Activity, step: CallStep, result_type: type[Result]) -> Result:
        """One activity in two tries: one within the time in which the call is answered, one that may take longer.

        The bound of the first is the server's, so a short call costs no timer. Activities are idempotent by
        call id: the second finds what the first began.
        """
        summary = f"{call.entry.tool} {call.call_id}"
        left = ANSWER_WITHIN_S - (workflow.now() - call.begun_at).total_seconds()
        if left > 1 and not call.slow:
            try:
                result: Result = await workflow.execute_activity(
                    activity,
                    step,
                    result_type=result_type,
                    schedule_to_close_timeout=timedelta(seconds=left),
                    retry_policy=PROMPT,
                    summary=summary,
                )
                return result
            except ActivityError as failure:
                if signal_of(failure) is not None or not error_of(failure).retryable:
                    raise
        call.slow = True
        slow_result: Result = await workflow.execute_activity(
            activity,
            step,
            result_type=result_type,
            schedule_to_close_timeout=_SLOW_STEP_TIMEOUT,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            retry_policy=PATIENT,
            summary=summary,
        )
        return slow_result

    async def _promptly(self, call: Call, waiting: Awaitable[None]) -> None:
        """Await `waiting`; when it takes too long for the answer, answer `running` and go on waiting."""
        task = asyncio.ensure_future(waiting)
        if not call.slow:
            left = ANSWER_WITHIN_S - (workflow.now() - call.begun_at).total_seconds()
            if not await until(task.done, timeout_s=left):
                call.slow = True
        await until(task.done)
        task.result()

    async def _manage(self, call: Call, request: CallRequest) -> CallOutcome:
        asked = parse_arguments(ToolName.MANAGE_SANDBOX, request.arguments)
        assert isinstance(asked, ManageSandboxArguments)
        lifecycle = self._lifecycle
        if asked.action == "delete":
            lifecycle.end(DELETED_BY_CALL)
            gone = {SandboxState.DELETED, SandboxState.LOST}
            await self._promptly(call, _forever_until(lambda: lifecycle.state in gone))
            return self.managed("delete")
        if asked.action == "start" and lifecycle.operation is None and lifecycle.state is SandboxState.STARTED:
            await self._promptly(call, lifecycle.look_started())
            return self.managed("start")
        if lifecycle.state in {SandboxState.CREATING, SandboxState.STARTING}:
            await self._promptly(call, lifecycle.ensure_started())
        change = _CHANGES[asked.action]
        already = {"stop": {SandboxState.STOPPED, SandboxState.ARCHIVED}, "archive": {SandboxState.ARCHIVED}}
        if lifecycle.operation is None and lifecycle.state in already.get(change, set()):
            return self.managed(asked.action)
        await self._promptly(call, self._changed(change))
        return self.managed(asked.action)

    async def _changed(self, change: Change) -> None:
        operation = await self._lifecycle.bring(change)
        if operation.error is not None:
            raise failure_from(operation.error)

    def managed(self, action: Action) -> CallOutcome:
        """The outcome of an action that has been taken."""
        result = ManageSandboxResult(
            sandbox_id=self._start.sandbox_id, action=action, state=self._lifecycle.state.value
        )
        return CallOutcome(result=result.model_dump(mode="json"))

    # Commands that outlast their first request.

    async def _follow(self, call: Call) -> CallOutcome:
        call.slow = True
        call.forget_arguments()
        self._inside.add(call.call_id)
        self._followed[call.call_id] = call
        if not self._following:
            self._following = True
            asyncio.create_task(self._keep_following())  # noqa: RUF006 - the event loop of a workflow keeps its tasks
        await until(lambda: not call.running)
        assert call.entry.outcome is not None
        return call.entry.outcome

    async def _keep_following(self) -> None:
        """One follower for all commands of the sandbox, begun anew when one joins or has ended."""
        while self._followed:
            await run_is_open()
            followed = dict(self._followed)
            follower = workflow.start_activity(
                Activity.FOLLOW_COMMANDS,
                FollowCommandsStep(
                    ref=self._lifecycle.ref(),
                    commands=[call.entry.command for call in followed.values() if call.entry.command is not None],
                ),
                result_type=FollowCommandsResult,
                task_queue=follow_queue(workflow.info().task_queue),
                start_to_close_timeout=timedelta(hours=25),
                heartbeat_timeout=HEARTBEAT_TIMEOUT,
                retry_policy=PATIENT,
                summary=f"follow {', '.join(sorted(followed))}"[:200],
            )
            await until(partial(self._follower_is_stale, follower, set(followed)))
            stale = not follower.done() and follower.cancel()
            try:
                for ended in (await follower).ended:
                    if ended.outcome is not None:
                        self._finish(ended.call_id, ended.outcome)
            except ActivityError as failure:
                if not stale:
                    await self._follower_failed(failure)
        self._following = False

    def _follower_is_stale(self, follower: asyncio.Task[FollowCommandsResult], followed: set[str]) -> bool:
        return follower.done() or self._followed.keys() != followed

    async def _follower_failed(self, failure: ActivityError) -> None:
        signal = signal_of(failure)
        error = error_of(failure)
        if signal is SandboxSignal.LOST:
            self._lifecycle.lose(error)
            for call_id in list(self._followed):
                self._finish(call_id, CallOutcome(error=error))
        elif signal is SandboxSignal.NOT_STARTED:
            # All processes of a stopped sandbox are gone: its commands were interrupted, not lost track of.
            for call_id in list(self._followed):
                self._finish(call_id, _interrupted(call_id))
            self._lifecycle.noticed_stopped()
        else:
            workflow.logger.warning("follower failed, trying again", extra={"error": error.message})
            await until(lambda: not self._followed, timeout_s=5.0)

    async def _kill(self, call_ids: list[str]) -> None:
        for call_id in call_ids:
            call = self._ledger.get(call_id)
            if call is not None and call.entry.command is not None:
                call.entry.command = call.entry.command.model_copy(update={"cancelled": "cancelled"})
        try:
            await workflow.execute_activity(
                Activity.STOP_COMMANDS,
                StopCommandsStep(ref=self._lifecycle.ref(), call_ids=call_ids, grace_s=KILL_GRACE_S),
                schedule_to_close_timeout=timedelta(seconds=60),
                heartbeat_timeout=HEARTBEAT_TIMEOUT,
                retry_policy=PROMPT,
                summary=f"cancel {', '.join(call_ids)}"[:200],
            )
        except ActivityError as failure:
            # The sandbox is about to be stopped or deleted, which ends them for certain.
            workflow.logger.warning("commands were not cancelled", extra={"error": error_of(failure).message})


async def _forever_until(condition: Callable[[], bool]) -> None:
    await until(condition)


def _cancelled(message: str) -> ToolError:
    return ToolError(code=ErrorCode.CANCELLED, message=message, ambiguous=True)


def _interrupted(call_id: str) -> CallOutcome:
    result = ExecResult(
        status="interrupted",
        call_id=call_id,
        hint="The sandbox stopped while the command ran. It may have had part of its effect; it was not run again.",
    )
    return CallOutcome(result=result.model_dump(mode="json"))
