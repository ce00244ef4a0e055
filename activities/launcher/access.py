"""Making the launcher's requests to a sandbox."""

from __future__ import annotations

import math
import secrets

from temporalio.exceptions import ApplicationError

from activities.deadlines import time_left_s
from activities.launcher.answer import Answer, CallReport, TornAnswer, parse_answer
from activities.launcher.request import UPLOADS, LauncherRequest
from activities.provider import ProviderAccess
from sandhold.contracts.errors import ErrorCode, ToolError, as_application_error
from sandhold.contracts.excerpts import beginning_of
from sandhold.contracts.steps import SandboxRef

ANSWER_MARGIN_S = 0.8
"""Kept back from the activity's time, so that its answer is heard before Temporal gives up on it."""
LAUNCHER_MARGIN_S = 5.0
"""How much longer than its wait a launcher's request may take; a busy sandbox is slow to start processes."""
SLOWEST_BYTES_PER_S = 512 * 1024
"""What an answer that carries much may take besides."""


class Launcher:
    """The launcher in any sandbox."""

    def __init__(self, access: ProviderAccess) -> None:
        self._access = access

    async def ask(self, ref: SandboxRef, order: LauncherRequest, *, answer_bytes: int = 0, sure: bool = True) -> Answer:
        """Make one request. Raises ApplicationError, to be repeated unless it says otherwise.

        `answer_bytes` is the most that the answer may carry; `sure` is about NOT_STARTED, see `ProviderAccess.toolbox`.
        """
        within_s = order.wait_s + LAUNCHER_MARGIN_S + answer_bytes / SLOWEST_BYTES_PER_S
        response = await self._access.toolbox(
            ref,
            # In the root, as a command may have removed the directory that requests run in by default.
            lambda sandbox: sandbox.process.exec(order.command, "/", order.env, math.ceil(within_s)),
            min(within_s, max(1.0, time_left_s())),
            sure=sure,
        )
        try:
            return parse_answer(order.nonce, response.result)
        except TornAnswer as error:
            raise torn(str(error)) from error

    async def upload(self, ref: SandboxRef, data: bytes, what: str, *, sure: bool = True) -> str:
        """Send what is too large for a request; where it is now.

        The request that names the place removes it; `clean` does when that request never came.
        """
        path = f"{UPLOADS}{what}-{secrets.token_hex(8)}"
        within_s = min(self._access.request_timeout_s, max(1.0, time_left_s() - ANSWER_MARGIN_S))
        await self._access.toolbox(ref, lambda sandbox: sandbox.fs.upload_file(data, path), within_s, sure=sure)
        return path


def only_report(answer: Answer) -> CallReport:
    """The report of an answer about one command. Raises ApplicationError when there is another number of them."""
    if len(answer.reports) != 1:
        raise torn(f"the launcher told of {len(answer.reports)} commands instead of one")
    return answer.reports[0]


def not_kept_from_starting() -> ApplicationError:
    """The failure for a command that was not started, when nothing could be put down that keeps it from starting."""
    return torn("the sandbox has no room to note that a command is not to be started")


def torn(why: str) -> ApplicationError:
    """The failure for an answer that tells nothing: to be asked for again."""
    return as_application_error(
        ToolError(code=ErrorCode.PROVIDER_UNAVAILABLE, message=beginning_of(why, 500), retryable=True, ambiguous=True),
        non_retryable=False,
    )
