"""A new sandbox is filled before it is used: with the workspace and the files that its create call named."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows.steps import error_of, signal_of
from workflows.transfers import transferred
from workflows.waiting import until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.calls import CallOutcome
    from sandhold.contracts.errors import SandboxSignal, ToolError
    from sandhold.contracts.names import Activity
    from sandhold.contracts.sandboxes import SandboxCarried, SandboxStart
    from sandhold.contracts.steps import FillStep, SandboxRef
    from sandhold.contracts.tools import CreateSandboxResult
    from sandhold.contracts.transfers import FailedUpload, RestoredWorkspace

_STARTS = 3
"""How often a sandbox is started again that stops while it is filled."""


class Filling:
    """Part of the creation: until it is over the sandbox is `creating`, and whoever calls waits."""

    def __init__(self, start: SandboxStart, kept: SandboxCarried) -> None:
        self._start = start
        self._kept = kept

    @property
    def wanted(self) -> bool:
        """Whether the create call asked for anything."""
        asked = self._start.arguments
        return asked.restore_from is not None or bool(asked.upload_files)

    async def fill(self, ref: SandboxRef, start_again: Callable[[], Awaitable[object]]) -> CallOutcome | None:
        """The outcome of the create call; None when the sandbox is to be deleted before that is known.

        Raises ActivityError when the sandbox has failed or is lost. That nothing could be brought into it fails no
        sandbox: the outcome says so.
        """
        for _ in range(_STARTS):
            if self._is_over():
                return None
            try:
                return await self._attempt(ref)
            except ActivityError as failure:
                if self._is_over():
                    return None
                signal = signal_of(failure)
                if signal in {SandboxSignal.LOST, SandboxSignal.FAILED}:
                    raise
                error = error_of(failure)
                if signal is not SandboxSignal.NOT_STARTED:
                    break
            await start_again()
        return self._nothing_came(error)

    async def _attempt(self, ref: SandboxRef) -> CallOutcome | None:
        asked, call = self._start.arguments, self._start.create_call
        step = FillStep(
            ref=ref,
            call_id=call.call_id if call is not None else "create",
            restore_from=asked.restore_from,
            upload_files=asked.upload_files or [],
        )
        filling = asyncio.create_task(transferred(Activity.FILL_SANDBOX, step, f"fill {self._start.sandbox_id}"))
        await until(lambda: filling.done() or self._is_over())
        if not filling.done():
            filling.cancel()
            await until(filling.done)
        return None if filling.cancelled() else filling.result()

    def _is_over(self) -> bool:
        return self._kept.ending is not None

    def _nothing_came(self, error: ToolError) -> CallOutcome:
        asked = self._start.arguments
        source = asked.restore_from
        result = CreateSandboxResult(
            sandbox_id=self._start.sandbox_id,
            files_failed=[
                FailedUpload(session_path=file.session_path, sandbox_path=file.sandbox_path, error=error)
                for file in asked.upload_files or []
            ],
            restored=None
            if source is None
            else RestoredWorkspace(
                session_id=source.session_id or self._start.session_id, session_path=source.session_path, error=error
            ),
        )
        return CallOutcome(result=result.model_dump(mode="json"))
