"""The outcomes of commands that were interrupted with their sandbox: session storage holds all there is to tell."""

from __future__ import annotations

from typing import cast

from temporalio import activity

from activities.launcher import CallReport, Captured
from activities.launcher.request import STDERR_WINDOW_BYTES, STDOUT_WINDOW_BYTES
from activities.outcomes import progress_of
from activities.output import exec_result, with_files, with_loss
from activities.redactors import Redactors, as_text
from sandhold.contracts.names import Activity, call_folder
from sandhold.contracts.steps import (
    CommandPlace,
    CommandProgress,
    SandboxRef,
    TellInterruptedResult,
    TellInterruptedStep,
)
from sandhold.contracts.tools import OutputDetail
from sandhold.storage import OutputWindow, SegmentReader, SessionStorage, Stream


class InterruptionActivities:
    """Tells of commands whose sandbox does not run any more. Asks nothing of the provider."""

    def __init__(self, storage: SessionStorage, redactors: Redactors) -> None:
        self._storage = storage
        self._redactors = redactors
        self._stored = SegmentReader(storage)

    @activity.defn(name=Activity.TELL_INTERRUPTED)
    async def tell_interrupted(self, step: TellInterruptedStep) -> TellInterruptedResult:
        """The outcomes of the commands, with the beginning and the end of what was stored of their output.

        Reads no more of a stream than an answer of the launcher would carry, in memory for one segment. Safe to repeat.
        """
        return TellInterruptedResult(ended=[await self._ended(step.ref, place) for place in step.commands])

    async def _ended(self, ref: SandboxRef, place: CommandPlace) -> CommandProgress:
        report = CallReport(
            call_folder(place.call_id),
            "interrupted",
            stdout=await self._captured(ref, place, "stdout", STDOUT_WINDOW_BYTES),
            stderr=await self._captured(ref, place, "stderr", STDERR_WINDOW_BYTES),
        )
        asked_to_end = place.cancelled is not None
        result = exec_result(place.call_id, report, cast("OutputDetail", place.output), asked_to_end=asked_to_end)
        if report.stdout.size or report.stderr.size:
            result = with_files(result)
        result = with_loss(result, place.stored.emptied_at)
        progress = await progress_of(self._storage, ref.session_id, result)
        assert progress.outcome is not None
        # Many commands end together here, and all of them in one message.
        return progress.model_copy(update={"outcome": progress.outcome.for_ledger()})

    async def _captured(self, ref: SandboxRef, place: CommandPlace, stream: Stream, window: int) -> Captured:
        """The stream as the launcher would have told it: whole, or the first fifth of the window and the rest from
        the end."""
        at = (ref.session_id, place.call_id, stream)
        redactor = await self._redactors.of(ref, fresh=True)
        stored = await self._stored.extent(*at)
        if stored.size <= window:
            head, tail = await self._stored.read(*at, 0, window), OutputWindow(stored.size, 0, b"")
        else:
            head_bytes = window // 5
            tail_bytes = window - head_bytes
            head = await self._stored.read(*at, 0, head_bytes)
            tail = await self._stored.read(*at, stored.size - tail_bytes, tail_bytes)
        return Captured(
            stored.size,
            as_text(head.data, redactor).encode(),
            as_text(tail.data, redactor).encode(),
            stands_for=head.size + tail.size,
            redactions=stored.redactions,
        )
