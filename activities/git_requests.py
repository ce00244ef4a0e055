"""Running git's programs in a sandbox, outside of its commands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from activities.deadlines import time_left_s
from activities.git_scripts.frames import BrokenAnswer, ScriptRequest
from activities.launcher.access import torn
from activities.provider import ProviderAccess
from sandhold.contracts.steps import SandboxRef

T = TypeVar("T")


async def answer_of(
    access: ProviderAccess,
    ref: SandboxRef,
    request: ScriptRequest,
    read: Callable[[str, str], T],
    *,
    most_s: float,
    sure: bool = True,
) -> T:
    """What `read` makes of nonce and output, of a request that takes `most_s` seconds at most.

    Raises ApplicationError as `ProviderAccess.toolbox`, and one to be repeated when the answer is not whole.
    """
    within_s = min(most_s, max(1.0, time_left_s()))
    response = await access.toolbox(
        ref,
        lambda sandbox: sandbox.process.exec(request.command, "/", request.env, math.ceil(within_s)),
        within_s,
        sure=sure,
    )
    try:
        return read(request.nonce, response.result)
    except BrokenAnswer as error:
        raise torn(str(error)) from error
