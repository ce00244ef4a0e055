"""The scripted agent of the demo: real work in a real session, through the client that agent runtimes use."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from daytona import AsyncDaytona, DaytonaNotFoundError, ListSandboxesQuery

from sandhold.cli.demo_report import Report, Step
from sandhold.cli.stack.stack import Stack
from sandhold.client import Sandhold, Session
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import DEPLOYMENT_LABEL, SESSION_LABEL
from sandhold.contracts.policy import Policy
from sandhold.contracts.sandboxes import ShownSandbox
from sandhold.contracts.tools import ExecResult
from sandhold.temporal import deployment_id

Found = TypeVar("Found")

PROJECT, BUILD = "project", "build"
BUILD_PARTS = 6
PROVIDER_REQUEST_S = 30.0

CART = '''\
"""Prices are in cents."""


def total(prices, discount_percent=0):
    subtotal = sum(prices)
    return subtotal - subtotal * discount_percent
'''
FIXED_CART = CART.replace("subtotal * discount_percent", "subtotal * discount_percent // 100")
CART_TEST = """\
import unittest

from shop.cart import total


class CartTest(unittest.TestCase):
    def test_without_discount(self):
        self.assertEqual(total([1000, 500]), 1500)

    def test_ten_percent_off(self):
        self.assertEqual(total([1000, 500], discount_percent=10), 1350)
"""
RUN_TESTS = "python3 -m unittest --verbose"
BUILD_COMMAND = f"""\
echo "$$ started" >> starts.log
for part in $(seq {BUILD_PARTS}); do
  echo "built part $part of {BUILD_PARTS}"
  sleep 1
done
echo "build complete"
"""


class NotShown(AssertionError):
    """The demo could not show what it set out to show."""


def check(condition: bool, what: str) -> None:
    """Raises NotShown with `what` was expected."""
    if not condition:
        raise NotShown(what)


class ScriptedAgent:
    """Works in one session. `run` does the steps in their order; each shows itself and proves something."""

    def __init__(self, stack: Stack, sandhold: Sandhold, provider: AsyncDaytona, report: Report) -> None:
        self._stack = stack
        self._sandhold = sandhold
        self._provider = provider
        self._report = report
        local = stack.local_provider
        self._policy = Policy(idle_stop_s=12.0 if local else 45.0, end_grace_s=5.0, create_timeout_s=180.0)
        self._patience_s = 60.0 if local else 180.0
        self.session_id = f"demo-{secrets.token_hex(4)}"
        self._session: Session
        self._provider_ids: dict[str, str] = {}

    async def run(self) -> None:
        """Raises NotShown, or whatever went wrong, out of the step that failed."""
        with self._report.step("Open a session") as step:
            await self._open(step)
        with self._report.step("Create two sandboxes at once") as step:
            await self._create(step)
        with self._report.step("Write a small project with a failing test") as step:
            await self._write_project(step)
        with self._report.step("Run its tests, read the failure, fix the file, run them green") as step:
            await self._fix_project(step)
        with self._report.step("Kill the worker with SIGKILL while a command runs") as step:
            await self._survive_a_killed_worker(step)
        with self._report.step("Leave a sandbox idle until its durable timer stops it") as step:
            await self._idle(step)
        with self._report.step("Call the stopped sandbox again") as step:
            await self._wake(step)
        with self._report.step("End the session") as step:
            await self._end(step)
        with self._report.step("Ask the provider what is left") as step:
            await self._nothing_is_left(step)

    async def clean_up(self) -> None:
        """After a failure at a real account: end the session, if it was opened, and so delete what it created."""
        await self._sandhold.session(self.session_id).end("the demo failed", timeout=self._patience_s)

    async def _open(self, step: Step) -> None:
        step.call(f"open session {self.session_id}, policy: stop a sandbox after {self._policy.idle_stop_s:g} s unused")
        self._session = await self._sandhold.open_session(self.session_id, owner="demo", policy=self._policy)
        if self._stack.ui_url:
            step.tell(f"watch it: {self._stack.ui_url}/namespaces/{self._stack.settings.temporal_namespace}/workflows")
        step.proved = f"workflow {self._session.workflow_id} owns what follows"

    async def _create(self, step: Step) -> None:
        step.call(f"daytona_create_sandbox {PROJECT}, {BUILD}")
        await asyncio.gather(
            self._session.create_sandbox("a small shop", sandbox_id=PROJECT),
            self._session.create_sandbox("long builds", sandbox_id=BUILD),
        )
        for row in await self._rows():
            step.tell(f"{row.sandbox_id}: {row.state}, {row.provider_id} at the provider, owned by {row.workflow_id}")
            check(row.state == "started" and row.provider_id is not None, f"{row.sandbox_id} is started")
            self._provider_ids[row.sandbox_id] = row.provider_id or ""
        step.proved = "two sandboxes, each with a workflow that owns it"

    async def _write_project(self, step: Step) -> None:
        files = {"shop/__init__.py": "", "shop/cart.py": CART, "test_cart.py": CART_TEST}
        for path, content in files.items():
            step.call(f"daytona_write_file {PROJECT} {path} ({len(content)} bytes)")
            await self._session.write_file(PROJECT, path, content)
        step.proved = f"{len(files)} files written"

    async def _fix_project(self, step: Step) -> None:
        red = await self._run_tests(step)
        check(red.exit_code == 1, "the tests fail before the fix")
        failure = next((line for line in red.stderr.splitlines() if "AssertionError" in line), None)
        check(failure is not None, "the failure says what was expected")
        step.call(f"daytona_read_file {PROJECT} shop/cart.py")
        source = (await self._session.read_file(PROJECT, "shop/cart.py")).content or ""
        check(source.strip() == CART.strip(), "the file reads back as it was written")
        step.tell("the percentage is not divided by 100")
        step.call(f"daytona_write_file {PROJECT} shop/cart.py")
        await self._session.write_file(PROJECT, "shop/cart.py", FIXED_CART)
        green = await self._run_tests(step)
        check(green.exit_code == 0, "the tests pass after the fix")
        step.proved = f"red ({failure}), then green"

    async def _survive_a_killed_worker(self, step: Step) -> None:
        victim = self._stack.pids()["worker"]
        step.call(f"daytona_exec {BUILD}: a build of {BUILD_PARTS} parts, one a second")
        command = asyncio.create_task(self._session.exec(BUILD, BUILD_COMMAND, call_id="the-build", output="normal"))
        try:
            await self._until(self._starts, "the build starts")
            await asyncio.sleep(1.0)
            check(not command.done(), "the build still runs")
            os.kill(victim, signal.SIGKILL)
            killed_at = time.monotonic()
            step.event(f"worker process {victim} killed with SIGKILL; the build runs on in its sandbox")
            successor = await self._until(self._successor_of(victim), "a new worker starts")
            step.event(f"worker process {successor} was started {time.monotonic() - killed_at:.1f} s later")
            result = await command
        finally:
            command.cancel()
        step.tell(result.stdout.rstrip())
        wanted = [f"built part {part} of {BUILD_PARTS}" for part in range(1, BUILD_PARTS + 1)] + ["build complete"]
        check(result.status == "completed" and result.exit_code == 0, "the build completes")
        check(result.stdout.splitlines() == wanted, "the build's output is complete")
        starts = await self._starts() or []
        step.tell(f"starts.log in the sandbox: {starts}")
        check(len(starts) == 1, "the build was started exactly once")
        step.proved = f"complete output from worker {successor}; started {len(starts)} time"

    async def _idle(self, step: Step) -> None:
        last_used = (await self._row(PROJECT)).last_used_at
        if last_used is not None:
            step.tell(f"{PROJECT} was last used at {last_used.astimezone():%H:%M:%S}; nobody calls it now")

        async def stopped() -> ShownSandbox | None:
            row = await self._row(PROJECT)
            return row if row.state == "stopped" else None

        await self._until(stopped, "the idle sandbox is stopped")
        at_provider = await self._provider.get(self._provider_ids[PROJECT], request_timeout=PROVIDER_REQUEST_S)
        state = str(getattr(at_provider.state, "value", at_provider.state))
        check(state == "stopped", f"the provider says that it is stopped, not {state}")
        idle_s = (datetime.now(UTC) - last_used).total_seconds() if last_used else 0.0
        step.event(f"stopped by its timer, {idle_s:.0f} s after its last use; the provider says: {state}")
        step.proved = f"stopped after {self._policy.idle_stop_s:g} s without a call"

    async def _wake(self, step: Step) -> None:
        step.call(f"daytona_exec {PROJECT}: ls")
        listing = await self._session.exec(PROJECT, "ls -A", output="normal")
        step.tell(listing.stdout.rstrip())
        check({"shop", "test_cart.py"} <= set(listing.stdout.split()), "the files are still there")
        green = await self._run_tests(step)
        check(green.exit_code == 0, "the tests still pass")
        row = await self._row(PROJECT)
        check(row.state == "started", "the sandbox is started again")
        check(row.provider_id == self._provider_ids[PROJECT], "it is the same sandbox")
        step.proved = "started by the call; the same sandbox, with its files"

    async def _end(self, step: Step) -> None:
        step.call("end the session")
        outcome = await self._session.end("the demo is over", timeout=self._patience_s)
        for sandbox in outcome.sandboxes:
            step.tell(f"{sandbox.sandbox_id}: {sandbox.outcome}")
        check({sandbox.outcome for sandbox in outcome.sandboxes} == {"deleted"}, "every sandbox is deleted")
        step.proved = f"{len(outcome.sandboxes)} sandboxes confirmed deleted"

    async def _nothing_is_left(self, step: Step) -> None:
        for sandbox_id, provider_id in self._provider_ids.items():
            check(await self._is_absent(provider_id), f"the provider does not know {sandbox_id} any more")
        step.tell("by id: not found")
        deployment = await deployment_id(self._sandhold.client)
        for label, value in ((SESSION_LABEL, self.session_id), (DEPLOYMENT_LABEL, deployment)):

            async def none_labelled(label: str = label, value: str = value) -> bool:
                return not await self._listed(ListSandboxesQuery(labels={label: value}))

            # The hosted provider's list lags behind by seconds.
            await self._until(none_labelled, f"no sandbox with the label {label} is listed")
            step.tell(f"listed by label {label}={value}: none")
        step.proved = "no sandbox by id, by session label, by deployment label"
        if self._stack.local_provider:
            everything = await self._listed(ListSandboxesQuery())
            check(not everything, f"the provider lists nothing at all, not {everything}")
            step.tell("listed without a filter: none")
            step.proved += ", or at all"

    async def _run_tests(self, step: Step) -> ExecResult:
        step.call(f"daytona_exec {PROJECT}: {RUN_TESTS}")
        result = await self._session.exec(PROJECT, RUN_TESTS, output="normal")
        for line in (result.stdout + result.stderr).splitlines():
            if line.startswith(("test_", "AssertionError", "Ran ", "OK", "FAILED")):
                step.tell(line)
        return result

    async def _starts(self) -> list[str] | None:
        """The lines that the build wrote when it started; None while there are none."""
        try:
            return ((await self._session.read_file(BUILD, "starts.log")).content or "").splitlines() or None
        except ToolFailure as failure:
            if failure.error.code is ErrorCode.PATH_NOT_FOUND:
                return None
            raise

    def _successor_of(self, victim: int) -> Callable[[], Awaitable[int | None]]:
        async def successor() -> int | None:
            pid = self._stack.pids().get("worker")
            return pid if pid != victim else None

        return successor

    async def _rows(self) -> list[ShownSandbox]:
        return (await self._session.show()).sandboxes

    async def _row(self, sandbox_id: str) -> ShownSandbox:
        return next(row for row in await self._rows() if row.sandbox_id == sandbox_id)

    async def _is_absent(self, provider_id: str) -> bool:
        try:
            found = await self._provider.get(provider_id, request_timeout=PROVIDER_REQUEST_S)
        except DaytonaNotFoundError:
            return True
        return str(getattr(found.state, "value", found.state)) == "destroyed"

    async def _listed(self, query: ListSandboxesQuery) -> list[str]:
        return [sandbox.id async for sandbox in self._provider.list(query, request_timeout=PROVIDER_REQUEST_S)]

    async def _until(self, look: Callable[[], Awaitable[Found | None]], what: str) -> Found:
        """Look until there is something to see. Raises NotShown after a while."""
        deadline = time.monotonic() + self._patience_s
        while True:
            found = await look()
            if found:
                return found
            check(time.monotonic() < deadline, f"{what} within {self._patience_s:g} s")
            await asyncio.sleep(0.25)
