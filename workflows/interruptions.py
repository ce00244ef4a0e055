"""What can be told of commands that were interrupted with their sandbox."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows.steps import PROMPT, error_of

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.names import Activity
    from sandhold.contracts.steps import (
        CommandPlace,
        CommandProgress,
        SandboxRef,
        TellInterruptedResult,
        TellInterruptedStep,
    )

TOLD_AT_ONCE = 20
"""Commands whose outcomes come in one message: at most 2 KiB each."""
_TOLD_WITHIN = timedelta(seconds=20)
"""How long it may take, before the commands end without it: a stop waits for this."""


async def told_interrupted(ref: SandboxRef, places: list[CommandPlace]) -> dict[str, CommandProgress]:
    """The ends of the commands by call id, with what storage holds of their output; those that can be told."""
    portions = [places[first : first + TOLD_AT_ONCE] for first in range(0, len(places), TOLD_AT_ONCE)]
    told = await asyncio.gather(*(_tell(ref, portion) for portion in portions))
    return {progress.call_id: progress for portion in told for progress in portion}


async def _tell(ref: SandboxRef, places: list[CommandPlace]) -> list[CommandProgress]:
    try:
        told: TellInterruptedResult = await workflow.execute_activity(
            Activity.TELL_INTERRUPTED,
            TellInterruptedStep(ref=ref, commands=places),
            result_type=TellInterruptedResult,
            schedule_to_close_timeout=_TOLD_WITHIN,
            retry_policy=PROMPT,
            summary=f"tell of interrupted {', '.join(place.call_id for place in places)}"[:200],
        )
    except ActivityError as failure:
        # That they were interrupted is known all the same; their output can still be read by its offset.
        workflow.logger.warning("interrupted commands end without output", extra={"error": error_of(failure).message})
        return []
    return told.ended
