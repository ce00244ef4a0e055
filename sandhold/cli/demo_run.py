"""What `sandhold demo` does: start a stack of its own, let the scripted agent work in it, sum up."""

from __future__ import annotations

import asyncio
import os
import warnings

from daytona import AsyncDaytona, DaytonaConfig
from rich.console import Console
from rich.markup import escape

from sandhold.cli.demo_report import Report
from sandhold.cli.demo_script import ScriptedAgent
from sandhold.cli.dev_run import show_failure
from sandhold.cli.stack.errors import StackFailed
from sandhold.cli.stack.interrupts import Interrupted, until_interrupted
from sandhold.cli.stack.options import StackOptions
from sandhold.cli.stack.plans import without_proxy_on_loopback
from sandhold.cli.stack.stack import Stack
from sandhold.client import Sandhold, SandholdError, SessionNotFound, TemporalUnreachable
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import SESSION_LABEL
from sandhold.settings import Settings

LOCAL_BOUND_S = 175.0
HOSTED_BOUND_S = 900.0


def run_demo(settings: Settings, console: Console, *, keep: bool) -> int:
    """Show the main job; the exit code. No process of the demo is left afterwards."""
    return asyncio.run(_run(settings, console, keep=keep))


async def _run(settings: Settings, console: Console, *, keep: bool) -> int:
    def told(part: str, what: str) -> None:
        console.print(f"  [dim]{escape(part)}: {escape(what)}[/]", highlight=False)

    # Of its own, whatever the environment says about the stack that is used otherwise.
    own = settings.model_copy(update={"temporal_address": None, "storage_url": None})
    options = StackOptions(
        data_dir=settings.data_dir / "demo", without=frozenset({"console"}), fresh=True, usual_ports=False
    )
    stack = Stack(own, options, told)
    report = Report(console)

    async def show() -> int:
        console.print("[bold]Sandhold demo[/]: starting Temporal, Daytona and a worker", highlight=False)
        async with stack:
            console.print(f"  Temporal Web UI: {stack.ui_url}", highlight=False)
            code = await _show(stack, report)
            if keep:
                console.print("\nThe stack stays up until Ctrl-C.")
                await stack.wait()
            return code

    try:
        return await until_interrupted(stack, show())
    except Interrupted:
        console.print("interrupted; nothing runs any more")
        return 130
    except StackFailed as failure:
        show_failure(failure, console)
        return 1


async def _show(stack: Stack, report: Report) -> int:
    """Run the agent; the exit code. Says which step failed, with the logs that tell why."""
    settings = stack.settings
    if stack.local_provider:
        os.environ.update(without_proxy_on_loopback(os.environ))
    key = settings.daytona_api_key
    assert key is not None
    # Without polling the client would connect an event socket, which takes SIGINT over (see `sandhold.stop_signals`).
    warnings.filterwarnings("ignore", message="Polling-only mode", category=DeprecationWarning)
    config = DaytonaConfig(
        api_key=key.get_secret_value(), api_url=settings.daytona_api_url, use_deprecated_polling=True
    )
    async with AsyncDaytona(config) as provider:
        sandhold = await Sandhold.connect(settings)
        agent = ScriptedAgent(stack, sandhold, provider, report)
        try:
            async with asyncio.timeout(LOCAL_BOUND_S if stack.local_provider else HOSTED_BOUND_S):
                await agent.run()
        # Whatever it is, the answer is the same: which step, what was said, and the logs.
        except Exception as error:
            _show_why(stack, report, error)
            if not stack.local_provider and not _key_was_refused(error):
                await _clean_up(agent, report)
            return 1
    report.summary()
    return 0


def _key_was_refused(error: Exception) -> bool:
    """With such a key nothing was created, and nothing could be deleted."""
    return isinstance(error, ToolFailure) and error.error.code is ErrorCode.CONNECTION_REQUIRED


async def _clean_up(agent: ScriptedAgent, report: Report) -> None:
    """Leave nothing at a real account. What cannot be deleted now ends by the provider's own limits."""
    report.console.print("Ending its session, which deletes its sandboxes ...")
    try:
        await agent.clean_up()
    except SessionNotFound:
        return
    except (SandholdError, TemporalUnreachable) as error:
        label = f"{SESSION_LABEL}={agent.session_id}"
        report.console.print(f"[red]Its session did not end ({escape(str(error))}).[/]", highlight=False)
        report.console.print(f"Look for sandboxes with the label {label} at the provider.", highlight=False)
    else:
        report.console.print("Its session was ended and its sandboxes were deleted.")


def _show_why(stack: Stack, report: Report, error: Exception) -> None:
    console = report.console
    for name in ("worker", "daytona", "temporal"):
        part = stack.parts.get(name)
        if part is not None and (tail := part.log_tail()):
            console.print(f"[dim]--- the end of {escape(str(part.log))}[/]", highlight=False)
            console.print(tail, markup=False, highlight=False)
    report.summary()
    step = report.steps[-1].title if report.steps else "connecting"
    reason = str(error) or type(error).__name__
    console.print(f"\n[red]The demo failed at the step: {escape(step)}[/]")
    console.print(f"{type(error).__name__}: {reason}", markup=False, highlight=False)
    if isinstance(error, ToolFailure) and error.error.hint:
        console.print(error.error.hint, markup=False, highlight=False)
