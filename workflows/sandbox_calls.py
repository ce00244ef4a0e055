"""The calls of one sandbox: admitted, carried out, followed, and answered from the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows.command_calls import CommandCalls
from workflows.commands import Commands
from workflows.exec_calls import ExecCalls
from workflows.git_clones import GitClones
from workflows.git_credentials import GitCredentials
from workflows.ledger import Call, Ledger, check_identity
from workflows.lifecycle import DELETED_BY_CALL, Change, Lifecycle, failure_from
from workflows.patches import Patch
from workflows.steps import error_of, signal_of, step_in_two_tries
from workflows.transfers import Transfers
from workflows.waiting import until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import ANSWER_WITHIN_S, CallOutcome, CallRequest
    from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolError, ToolFailure
    from sandhold.contracts.names import (
        COMMAND_TOOLS,
        SESSION_TOOLS,
        Activity,
        ToolName,
        sandbox_workflow_id,
        session_workflow_id,
    )
    from sandhold.contracts.sandboxes import SandboxCarried, SandboxStart, SandboxState
    from sandhold.contracts.steps import CallStep
    from sandhold.contracts.tools import (
        Action,
        ManageSandboxArguments,
        ManageSandboxResult,
        parse_arguments,
    )

_LAST_WORDS_S = 15.0
"""How long a killed command may take to report what it wrote."""

# Tools that use the inside of the sandbox: they are shared, and hold off the idle timer.
_INSIDE = {
    ToolName.EXEC,
    ToolName.READ_FILE,
    ToolName.WRITE_FILE,
    ToolName.DOWNLOAD_WORKSPACE,
    ToolName.PUSH_FILES,
    ToolName.COMMAND,
    ToolName.GIT_CLONE,
    ToolName.GIT_CREDENTIALS,
}
_CHANGES: dict[str, Change] = {"start": "start", "stop": "stop", "archive": "archive"}


class SandboxCalls:
    """Carries out calls against one sandbox; each at most once per call id, whatever is repeated."""

    def __init__(self, start: SandboxStart, kept: SandboxCarried, ledger: Ledger, changed: Callable[[], None]) -> None:
        """`changed` hears of every call that begins or ends."""
        self._start = start
        self._kept = kept
        self._ledger = ledger
        self._carried = {call.call_id for call in ledger.running()}
        self._changed_calls = changed
        self._inside: set[str] = set()
        self._transfers = Transfers(start)
        self._outlasting = False
        self._asked_in_vain: set[str] = set()
        self.commands = Commands(start, kept, self._command_ended)
        self._exec_calls = ExecCalls(start, ledger, self.commands, self._inside, self._finish)
        self._clones = GitClones(self.commands)
        self.credentials = GitCredentials(kept)
        self._command_calls = CommandCalls(self.commands, ledger, self._exec_calls.call_off)
        self._lifecycle: Lifecycle

    def attach(self, lifecycle: Lifecycle) -> None:
        """Two halves of one thing: the lifecycle quiesces the calls, the calls start the sandbox."""
        self._lifecycle = lifecycle
        self.commands.attach(lifecycle)
        self._exec_calls.attach(lifecycle)
        self._clones.attach(lifecycle)
        self.credentials.attach(lifecycle)
        self._command_calls.attach(lifecycle)

    @property
    def busy(self) -> bool:
        """Whether something uses the sandbox or waits to, however long it takes."""
        calls = any(call.entry.tool in _INSIDE for call in self._ledger.running())
        return calls or self.commands.bounded_run

    @property
    def transferring(self) -> bool:
        """Whether something runs that would start over if the workflow continued as new."""
        return self._transfers.running

    def clones_finished(self) -> bool:
        """Whether no clone has anything left to put away."""
        return not self._clones.open

    def resume(self) -> None:
        """Go on with the commands and calls that were running when the workflow continued as new.

        Messages of the first workflow task are handled before: their calls have begun already.
        """
        self.commands.resume()
        self.credentials.resume()
        for call in list(self._ledger.running()):
            if call.entry.request is None or call.entry.tool == ToolName.CREATE_SANDBOX:
                continue
            if call.call_id in self._carried or not workflow.patched(Patch.BEGUN_ONCE):
                self._begin(call)

    def refusal(self, request: CallRequest) -> ToolError | None:
        """Why the sandbox as it is takes no new call; None when it does, or knows this one."""
        ending = self._lifecycle.why_ending()
        if ending is None or request.call_id in self._ledger or request.deletes:
            return None
        return ending

    def no_room(self, request: CallRequest) -> ToolError | None:
        """Why no other call can be taken on for now; None when one can, or this one is known.

        Asked before a call is on record, so that it can come again under its id.
        """
        known = self._ledger.get(request.call_id)
        if known is not None and not known.entry.refused_for_now:
            return None
        refused = self._ledger.no_room(request)
        if refused is None and request.tool in COMMAND_TOOLS:
            refused = self._exec_calls.no_room(request)
        return refused

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
        if request.tool in COMMAND_TOOLS:
            self._exec_calls.check_room(request)
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
        """Ask what runs inside to end: give calls the grace period, then cancel, and wait for last words.

        Commands in the background get no grace: nobody waits for their end. A command that has not told its end when
        this returns has no outcome yet, as it may run: `end_with_sandbox` or `go_on` follows. All other calls have one.
        Then git's credential is taken away.
        """
        await self._quiesce_calls(grace_s)
        await self.credentials.take_away()

    async def _quiesce_calls(self, grace_s: float) -> None:
        if self._inside:
            await until(lambda: not self._inside, timeout_s=grace_s)
        self._transfers.cancel()
        self.credentials.cancel()
        doomed = {record.place.call_id for record in self.commands.running()}
        doomed |= {call_id for call_id in self._inside if self._tool_of(call_id) in COMMAND_TOOLS}
        if doomed:
            try:
                await self.commands.kill(doomed)
            except ActivityError as failure:
                # The sandbox is about to be stopped or deleted, which ends them if it succeeds.
                self._asked_in_vain = self.commands.ask_to_end(doomed)
                workflow.logger.warning("commands were not cancelled", extra={"error": error_of(failure).message})
        if await until(lambda: not self._inside and not any(self.commands.running()), timeout_s=_LAST_WORDS_S):
            return
        self._outlasting = True
        if not workflow.patched(Patch.ENDED_BY_THE_STOP):
            await self.end_with_sandbox()
            return
        self._end_inside(lambda tool: tool not in COMMAND_TOOLS)

    async def end_with_sandbox(self) -> None:
        """The sandbox was stopped, or is deleted now. All that was running inside has an outcome after."""
        self._asked_in_vain.clear()
        if not self._outlasting:
            return
        self._outlasting = False
        await self.commands.interrupt_all()
        self._end_inside(lambda _: True)

    async def started(self) -> None:
        """The sandbox runs again: what belongs into it is put back."""
        await self.credentials.put_back()

    def go_on(self) -> None:
        """The sandbox was not stopped: commands that could not be asked to end run on as if they never had been."""
        self._outlasting = False
        self.commands.take_back(self._asked_in_vain)
        self._asked_in_vain = set()

    def _end_inside(self, chosen: Callable[[str | None], bool]) -> None:
        for call_id in sorted(self._inside):
            if chosen(self._tool_of(call_id)):
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
        if request.generation not in {None, here.generation}:
            raise ToolFailure(
                ErrorCode.INTERRUPTED,
                f"the call was one of an earlier sandbox {here.sandbox_id}, which has ended before it was answered",
                hint="It may have had its effect there. In this one nothing was done.",
                ambiguous=True,
            )

    async def _carry_out(self, call: Call) -> None:
        if not call.running:
            return  # It was called off in the moment of its admission.
        request = call.entry.request
        assert request is not None
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
        self.commands.settle(call.call_id)
        if call.entry.tool == ToolName.GIT_CLONE:
            outcome = await self._clones.finished(call, request, outcome)
        self._finish(call.call_id, outcome)

    def _command_ended(self, call_id: str, outcome: CallOutcome) -> None:
        self._lifecycle.used()
        self._changed_calls()
        if self._tool_of(call_id) != ToolName.GIT_CLONE:  # whose end is that of what comes after the command
            self._finish(call_id, outcome)  # A call in the background has had its answer: that one stands.

    def _finish(self, call_id: str, outcome: CallOutcome) -> None:
        call = self._ledger.get(call_id)
        self._inside.discard(call_id)
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
        if tool is ToolName.COMMAND:
            return await self._command_calls.outcome(call)
        record = self.commands.get(call.call_id)
        if tool in COMMAND_TOOLS and record is not None:
            return await self._exec_calls.of_record(call, record)
        for _ in range(3):
            while not self._lifecycle.ready:
                await self._promptly(call, self._lifecycle.ensure_started())
            if not call.running and workflow.patched(Patch.COMMANDS_FROM_THEIR_CALL):
                break  # It was called off while it waited, or has ended with the sandbox as it was.
            # No await since the check: a stop that begins now waits for this call.
            self._inside.add(call.call_id)
            call.sent = True
            if tool is ToolName.GIT_CLONE:
                self._clones.begins(call.call_id)
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
                unwanted = not call.running or self.commands.asked_to_end(call.call_id)
                if unwanted and workflow.patched(Patch.COMMANDS_FROM_THEIR_CALL):
                    if tool in COMMAND_TOOLS:
                        self._exec_calls.call_off(call)
                    break
        if call.entry.outcome is not None:
            return call.entry.outcome
        raise ToolFailure(
            ErrorCode.PROVIDER_UNAVAILABLE,
            f"sandbox {self._start.sandbox_id} stopped again each time it was started",
            retryable=True,
        )

    async def _inside_started(self, call: Call, request: CallRequest, tool: ToolName) -> CallOutcome:
        if tool in COMMAND_TOOLS:
            return await self._exec_calls.run(call, request)
        if tool is ToolName.DOWNLOAD_WORKSPACE:
            return await self._downloaded(call, request)
        if tool is ToolName.GIT_CREDENTIALS:
            installing = asyncio.ensure_future(self.credentials.install())
            await self._promptly(call, installing)
            return installing.result()
        if tool is ToolName.PUSH_FILES:
            transfer = self._transfers.begin_push(call, request, self._lifecycle.ref())
            await self._promptly(call, transfer)
            return transfer.result()
        activity = Activity.READ_FILE if tool is ToolName.READ_FILE else Activity.WRITE_FILE
        step = CallStep(
            ref=self._lifecycle.ref(),
            call_id=call.call_id,
            arguments=request.arguments,
            arguments_ref=request.arguments_ref,
        )
        return await step_in_two_tries(call, activity, step, CallOutcome)

    async def _downloaded(self, call: Call, request: CallRequest) -> CallOutcome:
        with self.credentials.hidden():
            if self.credentials.in_place:
                await self._promptly(call, self.credentials.remove())
            transfer = self._transfers.begin_download(call, request, self._lifecycle.ref())
            await self._promptly(call, transfer)
        if self.credentials.wanted:
            await self._promptly(call, self.credentials.put_back())
        return transfer.result()

    async def _promptly(self, call: Call, waiting: Awaitable[object]) -> None:
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
            await self._promptly(call, until(lambda: lifecycle.state in gone))
            return self.managed("delete")
        if asked.action == "start" and lifecycle.operation is None and lifecycle.state is SandboxState.STARTED:
            await self._promptly(call, lifecycle.look_started())
            if self.credentials.wanted:
                await self._promptly(call, self.credentials.put_back())
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
            sandbox_id=self._start.sandbox_id,
            action=action,
            state=self._lifecycle.state.value,
            saved=self._kept.saved if action == "delete" else None,
        )
        return CallOutcome(result=result.model_dump(mode="json"))


def _cancelled(message: str) -> ToolError:
    return ToolError(code=ErrorCode.CANCELLED, message=message, ambiguous=True)
