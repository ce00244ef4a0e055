"""Deleting a sandbox until it is confirmed absent: the step that may never say "done" too early."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from daytona import AsyncSandbox
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.absence import Absence
from activities.faults import ProviderError, request
from activities.provider import DESTROYED, ProviderAccess, state_of
from sandhold.contracts.errors import ErrorCode, ToolError, as_application_error
from sandhold.contracts.steps import DeleteSandboxStep, SandboxRef

STUCK_AFTER_S = 60.0
"""How long a sandbox may still be there after its deletion was asked for, before an attempt says so and fails."""
EVENT_LOOK_S = 0.02


async def delete_until_gone(access: ProviderAccess, step: DeleteSandboxStep, create_settle_s: float) -> None:
    """Return when the sandbox is confirmed absent.

    A create request without an answer can still commit: until `create_settle_s` after it, absence does not
    count, and what appears is deleted. A sandbox that bears the name but not our labels is left alone. Raises
    ApplicationError when a request fails, or when the sandbox is still there after STUCK_AFTER_S.
    """
    ref = step.ref
    access.forget(ref)
    requested = step.create_requested_at
    absence = Absence(
        access.absence_confirm_s, None if requested is None else requested + timedelta(seconds=create_settle_s)
    )
    there_since: float | None = None
    watched: AsyncSandbox | None = None
    while not absence.confirmed:
        sandbox = await _ours(access, ref)
        if sandbox is None:
            there_since = None
            absence.was_missing()
        elif sandbox.state == DESTROYED:
            absence.was_destroyed()
        else:
            absence.was_there()
            watched = sandbox
            there_since = there_since or time.monotonic()
            if state_of(sandbox) != "destroying":
                await _ask(access, ref)
            if time.monotonic() - there_since > STUCK_AFTER_S:
                raise _stuck(sandbox)
        if not absence.confirmed:
            await _pause(absence, watched)


async def _ours(access: ProviderAccess, ref: SandboxRef) -> AsyncSandbox | None:
    """The sandbox unless it is missing. One of our name that is not ours proves ours missing: names are unique."""
    sandbox = await access.find_any(ref)
    if sandbox is not None and not access.is_ours(ref, sandbox):
        activity.logger.warning("the sandbox named %s is not ours and is left alone", sandbox.name)
        return None
    return sandbox


async def _ask(access: ProviderAccess, ref: SandboxRef) -> None:
    """Ask for the deletion. That it is gone (404) or busy (409) is seen at the next look.

    The client ends an object's subscription to events when it deletes by it, so this looks the sandbox up once
    more and leaves the caller's object listening for `destroyed`.
    """
    doomed = await _ours(access, ref)
    if doomed is None:
        return
    try:
        await request(doomed.delete(access.request_timeout_s), access.request_timeout_s + 5)
    except ProviderError as error:
        if not (error.not_found or error.is_conflict):
            raise


async def _pause(absence: Absence, watched: AsyncSandbox | None) -> None:
    """Wait until the next look is due, or an event says that the sandbox is destroyed."""
    until = time.monotonic() + absence.look_again_s
    while time.monotonic() < until:
        await asyncio.sleep(EVENT_LOOK_S)
        if watched is not None and watched.state == DESTROYED:
            absence.was_destroyed()
            return


def _stuck(sandbox: AsyncSandbox) -> ApplicationError:
    return as_application_error(
        ToolError(
            code=ErrorCode.PROVIDER_UNAVAILABLE,
            message=f"the provider still says {state_of(sandbox)} after {STUCK_AFTER_S:.0f} s "
            f"(provider sandbox {sandbox.id})",
            retryable=True,
        ),
        non_retryable=False,
    )
