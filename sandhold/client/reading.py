"""Telling a sandbox that the output of one of its commands is being read.

Output is read from session storage, of which the sandbox's workflow knows nothing. But a command without a timeout
counts as use of its sandbox only for a time after its output was last read; then the sandbox is stopped as idle.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import JsonValue
from temporalio.service import RPCError

from sandhold.client.errors import SandholdError
from sandhold.contracts.names import ToolName
from sandhold.contracts.sandboxes import CommandState
from sandhold.temporal import NamespaceMissing, TemporalUnreachable

if TYPE_CHECKING:
    from sandhold.client.session import Session

logger = logging.getLogger("sandhold.client")

_TOLD_WITHIN_S = 5.0
_BEYOND_ALL_OUTPUT = 2**53
"""The largest offset there is: a read from there on carries nothing, and leaves little in history."""


class ReadingTold:
    """Tells of one reading, often enough that the command goes on to count as use, and no oftener."""

    def __init__(self, session: Session, sandbox_id: str, call_id: str) -> None:
        self._session = session
        self._arguments: dict[str, JsonValue] = {
            "sandbox_id": sandbox_id,
            "action": "read",
            "call_id": call_id,
            "stdout_offset": _BEYOND_ALL_OUTPUT,
            "stderr_offset": _BEYOND_ALL_OUTPUT,
        }
        self._not_before = 0.0

    async def tell(self, state: CommandState) -> None:
        """Tell of it if the last read, whoever's it was, is a third of the time ago that a read counts.

        Nothing that goes wrong here ends the reading: it is logged, and tried again after another third.
        """
        if state.use_ends_at is None or state.use_s is None or time.monotonic() < self._not_before:
            return
        pause_s = state.use_s / 3
        if datetime.now(UTC) < state.use_ends_at - timedelta(seconds=state.use_s - pause_s):
            return
        self._not_before = time.monotonic() + pause_s
        try:
            envelope = await self._session.call(ToolName.COMMAND, self._arguments, wait=False, timeout=_TOLD_WITHIN_S)
            failure = envelope.error
        except (SandholdError, TemporalUnreachable, NamespaceMissing, RPCError) as error:
            logger.warning("the sandbox was not told that its output is read: %s", error)
        else:
            if failure is not None:
                logger.warning("the sandbox was not told that its output is read: %s", failure.message)
