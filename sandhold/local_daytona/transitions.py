"""The sandboxes and what may happen to them: the provider's state machine.

    creating -> started -> stopping -> stopped -> starting -> started
                                       stopped -> archiving -> archived -> restoring -> started
    any settled state -> destroying -> destroyed;  creating, starting, restoring -> error

A change begins with one synchronous step that checks the state and claims it, so that two requests never
both win; it is on the disk before it is answered, and a task of its own finishes it, whatever becomes of the
request. Three refusals share the status 409; two arise here (the name is taken, a change is in progress), the
third (modified by another operation) cannot happen in one process and can be asked of the fault plan.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sandhold.local_daytona.errors import (
    ApiError,
    bad_request,
    name_taken,
    sandbox_not_found,
    state_change_in_progress,
)
from sandhold.local_daytona.events import Events
from sandhold.local_daytona.interface import RunningSandbox, Runtime, SandboxSpec, SandboxStartFailed
from sandhold.local_daytona.records import COMING_UP, DesiredState, SandboxRecord, State
from sandhold.local_daytona.requests import CreateRequest
from sandhold.local_daytona.store import DataFolder

log = logging.getLogger(__name__)


class Interference:
    """What the fault plan does to one change of state; this one does nothing."""

    async def before_start(self) -> None:
        """Called before the sandbox is started. May wait; raises StartRefused to end the start in `error`."""

    async def before_destroy(self) -> None:
        """Called in `destroying`, before anything is destroyed. May wait."""


class StartRefused(SandboxStartFailed):
    """The start ends in `error`, recoverable or not."""

    def __init__(self, reason: str, *, recoverable: bool) -> None:
        super().__init__(reason)
        self.recoverable = recoverable


NO_INTERFERENCE = Interference()


@dataclass(eq=False)
class Sandbox:
    """A sandbox in this process: its record, its processes when it runs, and the change under way."""

    record: SandboxRecord
    running: RunningSandbox | None = None
    change: asyncio.Task[None] | None = None
    #: Cleared while a change of state is under way.
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Sandboxes:
    """Every sandbox of this server. `minute` is the length of the API's minutes, shorter in tests."""

    def __init__(self, folder: DataFolder, runtime: Runtime, events: Events, minute: timedelta) -> None:
        self._folder = folder
        self._runtime = runtime
        self._events = events
        self._by_id: dict[str, Sandbox] = {}
        self._by_name: dict[str, Sandbox] = {}
        self._closing = False
        self.minute = minute

    # Looking

    def __iter__(self) -> Iterator[Sandbox]:
        return iter(list(self._by_id.values()))

    def look_up(self, key: str) -> Sandbox | None:
        """The sandbox with this id or, unless it is on its way out, this name."""
        return self._by_id.get(key) or self._by_name.get(key)

    def find(self, key: str) -> Sandbox:
        """The sandbox with this id or name. Raises the 404."""
        sandbox = self.look_up(key)
        if sandbox is None:
            raise sandbox_not_found(key)
        return sandbox

    async def running(self, sandbox_id: str) -> RunningSandbox:
        """The sandbox's processes, for the toolbox. Raises what the provider's proxy answers without them."""
        sandbox = self._by_id.get(sandbox_id)
        if sandbox is None:
            raise ApiError(404, f"not found: sandbox {sandbox_id} not found")
        if sandbox.running is None or sandbox.record.state is not State.STARTED:
            # The hosted service answers 400 with the end of this sentence, also while the state changes.
            raise bad_request(f"bad request: sandbox is {sandbox.record.state}. Is the Sandbox started?")
        return sandbox.running

    def touch(self, sandbox_id: str) -> None:
        """Note activity now. It is kept in memory: a restart stops every sandbox, which counts as activity."""
        sandbox = self.look_up(sandbox_id)
        if sandbox is not None:
            sandbox.record.last_activity_at = datetime.now(UTC)

    def note_traffic(self, sandbox_id: str) -> None:
        """Note activity if the sandbox runs: the proxy has nothing to note for one that does not."""
        sandbox = self._by_id.get(sandbox_id)
        if sandbox is not None and sandbox.record.state is State.STARTED:
            self.touch(sandbox_id)

    # Changes that clients ask for

    async def create(self, request: CreateRequest, interference: Interference = NO_INTERFERENCE) -> Sandbox:
        """A new sandbox on record, in `creating`. Raises 400 for what cannot be, 409 for a name in use."""
        record = request.new_record(self.minute)
        if record.name in self._by_name:
            raise name_taken(record.name)
        sandbox = Sandbox(record)
        self._by_id[record.id] = self._by_name[record.name] = sandbox
        try:
            await self._folder.save(record)
        except OSError:
            self._forget(sandbox)
            raise
        await self._events.created(record)
        self._go(sandbox, self._bring_up(sandbox, interference))
        return sandbox

    async def start(self, key: str, interference: Interference = NO_INTERFERENCE) -> Sandbox:
        """The sandbox `started` or on its way there."""
        sandbox = await self._found_unarchiving(key)
        state = sandbox.record.state
        if state is State.STARTED:
            return sandbox
        if sandbox.record.pending:
            raise state_change_in_progress()
        if state not in (State.STOPPED, State.ARCHIVED):
            raise bad_request(f"Sandbox is not in valid state to be started: {state}")
        next_state = State.STARTING if state is State.STOPPED else State.RESTORING
        await self._begin(sandbox, next_state, DesiredState.STARTED)
        self._go(sandbox, self._bring_up(sandbox, interference))
        return sandbox

    async def recover(self, key: str, interference: Interference = NO_INTERFERENCE) -> Sandbox:
        """The sandbox on its way from a recoverable `error` to `started`."""
        sandbox = self.find(key)
        if sandbox.record.pending:
            raise state_change_in_progress()
        if sandbox.record.state is not State.ERROR or not sandbox.record.recoverable:
            raise bad_request("Sandbox is not in a recoverable error state")
        await self._begin(sandbox, State.STARTING, DesiredState.STARTED)
        self._go(sandbox, self._bring_up(sandbox, interference))
        return sandbox

    async def stop(self, key: str, interference: Interference = NO_INTERFERENCE) -> Sandbox:
        """The sandbox on its way to `stopped`, or to `destroyed` if it is ephemeral. Not idempotent."""
        sandbox = self.find(key)
        if sandbox.record.pending:
            raise state_change_in_progress()
        if sandbox.record.state is not State.STARTED:
            raise bad_request("Sandbox is not in a stoppable state")
        if sandbox.record.ephemeral:
            return await self._destroy(sandbox, interference)
        await self._begin(sandbox, State.STOPPING, DesiredState.STOPPED)
        self._go(sandbox, self._bring_down(sandbox))
        return sandbox

    async def archive(self, key: str) -> Sandbox:
        """The stopped sandbox on its way to `archived`."""
        sandbox = self.find(key)
        if sandbox.record.pending:
            raise state_change_in_progress()
        if sandbox.record.ephemeral:
            raise bad_request("Ephemeral sandboxes cannot be archived")
        if sandbox.record.state is not State.STOPPED:
            raise bad_request("Sandbox is not stopped")
        await self._begin(sandbox, State.ARCHIVING, DesiredState.ARCHIVED)
        self._go(sandbox, self._settle(sandbox, State.ARCHIVED))
        return sandbox

    async def delete(self, key: str, interference: Interference = NO_INTERFERENCE) -> Sandbox:
        """The sandbox on its way to `destroyed`; its name is free when this returns."""
        sandbox = await self._found_unarchiving(key)
        if sandbox.record.pending:
            raise state_change_in_progress()
        return await self._destroy(sandbox, interference)

    async def save(self, sandbox: Sandbox) -> None:
        """What was changed in the record besides its state is durable when this returns."""
        sandbox.record.updated_at = datetime.now(UTC)
        await self._folder.save(sandbox.record)

    # From one run of the server to the next

    async def resume(self) -> None:
        """Take up the sandboxes on record; call once, before the first request.

        Sandboxes that ran are `stopped`, as their processes ended with the server. What was on its way up
        is started again, what was on its way out is destroyed.
        """
        for record in list(self._folder.records()):
            sandbox = Sandbox(record)
            self._by_id[record.id] = sandbox
            if not record.pending:
                sandbox.settled.set()
            if record.state not in (State.DESTROYING, State.DESTROYED):
                self._by_name[record.name] = sandbox
            if record.state in (State.STARTED, State.STOPPING):
                if record.ephemeral:
                    await self._destroy(sandbox, NO_INTERFERENCE)
                else:
                    record.desired_state = DesiredState.STOPPED
                    await self._settle(sandbox, State.STOPPED)
            elif record.state is State.ARCHIVING:
                await self._settle(sandbox, State.ARCHIVED)
            elif record.state in COMING_UP:
                self._go(sandbox, self._bring_up(sandbox, NO_INTERFERENCE))
            elif record.state in (State.DESTROYING, State.DESTROYED):
                self._go(sandbox, self._tear_down(sandbox, NO_INTERFERENCE))

    async def close(self) -> None:
        """End every sandbox and keep the disks. Changes under way are finished by the next `resume`."""
        self._closing = True
        changes = [sandbox.change for sandbox in self if sandbox.change is not None]
        for change in changes:
            change.cancel()
        await asyncio.gather(*changes, return_exceptions=True)
        for sandbox in self:
            sandbox.settled.set()  # nobody needs to wait for what will not come in this run
        await self._runtime.close()
        await self._folder.flush()

    # Inside

    async def _found_unarchiving(self, key: str) -> Sandbox:
        """The sandbox, once an archiving that is under way has ended: it does not count as pending."""
        sandbox = self.find(key)
        if sandbox.record.state is State.ARCHIVING:
            await sandbox.settled.wait()
            return self.find(key)
        return sandbox

    async def _begin(self, sandbox: Sandbox, state: State, desired: DesiredState) -> None:
        """Claim the sandbox for a change. If that cannot be made durable, nothing has changed."""
        before = sandbox.record.model_copy()
        sandbox.record.desired_state = desired
        sandbox.record.enter(state)
        sandbox.settled.clear()
        try:
            await self._folder.save(sandbox.record)
        except OSError:
            sandbox.record = before
            sandbox.settled.set()
            raise
        await self._events.state_updated(sandbox.record, before.state)

    async def _settle(
        self, sandbox: Sandbox, state: State, *, reason: str | None = None, recoverable: bool = False
    ) -> None:
        """End a change in `state` and tell everyone.

        It is told before it is on the disk, because the next change may begin at once; after a crash in
        between, the record still says what `resume` has to finish.
        """
        old = sandbox.record.state
        sandbox.record.enter(state, reason=reason, recoverable=recoverable)
        sandbox.settled.set()
        await self._events.state_updated(sandbox.record, old)
        await self._folder.save(sandbox.record)

    def _go(self, sandbox: Sandbox, change: Coroutine[Any, Any, None]) -> None:
        """Run the rest of a change on its own. An unforeseen failure ends in `error`, never in silence."""

        async def watched() -> None:
            try:
                await change
            except Exception as error:
                log.exception("sandbox %s: %s failed", sandbox.record.id, sandbox.record.state)
                await self._fail(sandbox, f"{sandbox.record.state} failed: {error}")

        sandbox.change = asyncio.create_task(watched())

    async def _fail(self, sandbox: Sandbox, reason: str) -> None:
        """End a change in `error` come what may, so that the sandbox can be deleted."""
        try:
            await self._kill(sandbox)
        except Exception:
            log.exception("sandbox %s: its processes could not be ended", sandbox.record.id)
        try:
            await self._settle(sandbox, State.ERROR, reason=reason, recoverable=True)
        except OSError:
            # In memory it is in `error`; the record on the disk tells the next run what to finish.
            log.exception("sandbox %s: its error could not be recorded", sandbox.record.id)

    async def _bring_up(self, sandbox: Sandbox, interference: Interference) -> None:
        record = sandbox.record
        spec = SandboxSpec(
            sandbox_id=record.id,
            folder=self._folder.sandbox_folder(record.id),
            env=record.env,
            cpu=record.cpu,
            memory_gib=record.memory,
            disk_gib=record.disk,
            network_block_all=record.network_block_all,
        )
        try:
            await interference.before_start()
            running = await self._runtime.start(spec)
        except StartRefused as error:
            await self._settle(sandbox, State.ERROR, reason=str(error), recoverable=error.recoverable)
            return
        except SandboxStartFailed as error:
            # The disk is untouched, so trying again is worth it.
            await self._settle(sandbox, State.ERROR, reason=str(error), recoverable=True)
            return
        sandbox.running = running
        running.ended.add_done_callback(lambda ended: self._ended(sandbox, running))
        await self._settle(sandbox, State.STARTED)

    async def _bring_down(self, sandbox: Sandbox) -> None:
        await self._kill(sandbox)
        await self._settle(sandbox, State.STOPPED)

    async def _destroy(self, sandbox: Sandbox, interference: Interference) -> Sandbox:
        record = sandbox.record
        name = record.name
        # The provider renames what it deletes, which frees the name at once and for good.
        record.name = f"DESTROYED_{name}_{int(datetime.now(UTC).timestamp() * 1000)}"
        self._by_name.pop(name, None)
        try:
            await self._begin(sandbox, State.DESTROYING, DesiredState.DESTROYED)
        except OSError:
            sandbox.record.name = name
            self._by_name[name] = sandbox
            raise
        self._go(sandbox, self._tear_down(sandbox, interference))
        return sandbox

    async def _tear_down(self, sandbox: Sandbox, interference: Interference) -> None:
        await interference.before_destroy()
        await self._kill(sandbox)
        record = sandbox.record
        await self._folder.remove(record.id)
        self._forget(sandbox)
        old = record.state
        record.enter(State.DESTROYED)
        sandbox.settled.set()
        await self._events.state_updated(record, old)

    async def _kill(self, sandbox: Sandbox) -> None:
        if sandbox.running is not None:
            await sandbox.running.kill()
            sandbox.running = None

    def _forget(self, sandbox: Sandbox) -> None:
        self._by_id.pop(sandbox.record.id, None)
        self._by_name.pop(sandbox.record.name, None)

    def _ended(self, sandbox: Sandbox, running: RunningSandbox) -> None:
        """A sandbox's processes are gone. If nobody asked for that, the sandbox is `stopped` with the reason."""
        if self._closing or sandbox.running is not running or sandbox.record.state is not State.STARTED:
            return
        why = "unknown" if running.ended.cancelled() else running.ended.result()
        log.warning("sandbox %s ended by itself: %s", sandbox.record.id, why)
        sandbox.running = None
        self._go(sandbox, self._note_end(sandbox, why))

    async def _note_end(self, sandbox: Sandbox, why: str) -> None:
        if sandbox.record.state is not State.STARTED:
            return  # a request came first and sees to it
        if sandbox.record.ephemeral:
            await self._destroy(sandbox, NO_INTERFERENCE)
            return
        sandbox.record.desired_state = DesiredState.STOPPED
        await self._settle(sandbox, State.STOPPED, reason=f"The sandbox ended by itself: {why}")
