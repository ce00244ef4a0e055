"""The measurements, on a stack that is up. Each is timed at the caller, by the wall clock."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from daytona import AsyncDaytona, AsyncSandbox, CreateSandboxFromSnapshotParams
from rich.console import Console
from temporalio.client import WorkflowHandle

from activities.launcher import Script, start_request
from bench.floor import FLOOR_QUEUE, Floor, Nothing
from bench.report import Ageing, Codec, Concurrent, Latency, Machine, Report, Rounds
from sandhold.client import Sandhold, Session
from sandhold.client.requests import Deadline, TemporalRequests
from sandhold.contracts.calls import CallEnvelope, CallRequest
from sandhold.contracts.names import CALL_UPDATE, STATUS_QUERY, WORKSPACE_PATH, ToolName, sandbox_workflow_id
from sandhold.contracts.sandboxes import SandboxStatus

COMMAND = "true"
WARM_UP_ROUNDS = 10
CALLS_PER_FLOOR = 100
"""A floor is made anew after so many updates: as long as a sandbox's history gets before it continues as new."""
EVENTS_OF_CALLS = 20
EARLY_CALL = 50
CALLERS = 6

Operation = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Counts:
    """How much is measured. `late_call` is the call that is compared with call 50."""

    rounds: int = 200
    late_call: int = 1000
    window: int = 40
    concurrent_calls: int = 300
    creates: int = 10


class Bench:
    """One run on one stack. The sandboxes it makes are deleted at its end."""

    def __init__(
        self,
        sandhold: Sandhold,
        plain: Sandhold,
        provider: AsyncDaytona,
        worker_pid: int,
        counts: Counts,
        console: Console,
    ) -> None:
        """`plain` is the same deployment without encryption, with a worker of its own."""
        self._sandhold = sandhold
        self._plain = plain
        self._provider = provider
        self._worker_pid = worker_pid
        self._counts = counts
        self._console = console
        self._requests = TemporalRequests(sandhold.client, reconnect_s=30)
        self._numbers = itertools.count(1)

    async def run(self) -> Report:
        """Measure everything, one after the other."""
        machine, started_at, began = Machine.this(), datetime.now(UTC), time.monotonic()
        rss_before = rss_bytes(self._worker_pid)
        session = await self._sandhold.open_session(owner="bench")
        empty = await self._sandhold.open_session(owner="bench")
        plain = await self._plain.open_session(owner="bench")
        try:
            events = await self._events_per_call(session)
            rounds = await self._rounds(session, empty)
            codec = await self._codec(session, plain)
            ageing = await self._ageing(session)
            concurrent = await self._concurrent(session)
        finally:
            await asyncio.gather(session.end(), empty.end(), plain.end())
        create = await self._creates()
        return Report(
            started_at=started_at,
            took_s=time.monotonic() - began,
            machine=machine,
            rounds=rounds,
            codec=codec,
            events_per_call=events,
            ageing=ageing,
            concurrent=concurrent,
            create=create,
            worker_rss_bytes_before=rss_before,
            worker_rss_bytes_after=rss_bytes(self._worker_pid),
        )

    async def _rounds(self, session: Session, empty: Session) -> Rounds:
        """The five operations, each once a round, in an order that changes from round to round."""
        self._say(f"{self._counts.rounds} rounds of the five operations")
        box = (await session.create_sandbox()).sandbox_id
        at_provider = await self._at_provider(session, box)
        floor = await self._new_floor()

        async def update() -> object:
            request = CallRequest(call_id=self._id(), tool=ToolName.LIST_SANDBOXES, arguments={})
            return await self._requests.update(
                empty.workflow_id,
                CALL_UPDATE,
                request,
                update_id=request.call_id,
                answer=CallEnvelope,
                deadline=Deadline(),
            )

        operations: dict[str, Operation] = {
            "raw_exec": lambda: at_provider.process.exec(COMMAND),
            "launcher_exec": lambda: self._by_launcher(at_provider),
            "update": update,
            "floor": lambda: floor.execute_update(Floor.pass_through, Nothing()),
            "exec": lambda: session.exec(box, COMMAND),
        }
        taken: dict[str, list[float]] = {name: [] for name in operations}
        order = random.Random(0)
        for number in range(WARM_UP_ROUNDS + self._counts.rounds):
            if number and number % CALLS_PER_FLOOR == 0:
                await floor.terminate()
                floor = await self._new_floor()
                await operations["floor"]()
            for name in order.sample(list(operations), len(operations)):
                took = await timed(operations[name])
                if number >= WARM_UP_ROUNDS:
                    taken[name].append(took)
        await floor.terminate()
        return Rounds(**{name: Latency.of(seconds) for name, seconds in taken.items()})

    async def _codec(self, session: Session, plain: Session) -> Codec:
        """The same call with encryption and without, in turns."""
        self._say(f"{self._counts.rounds} rounds with and without encryption")
        boxes = [(each, (await each.create_sandbox()).sandbox_id) for each in (session, plain)]
        taken: dict[str, list[float]] = {session.session_id: [], plain.session_id: []}
        order = random.Random(0)
        for number in range(WARM_UP_ROUNDS + self._counts.rounds):
            for each, box in order.sample(boxes, len(boxes)):
                [took] = await self._calls(each, box, 1)
                if number >= WARM_UP_ROUNDS:
                    taken[each.session_id].append(took)
        return Codec(encrypted=Latency.of(taken[session.session_id]), plain=Latency.of(taken[plain.session_id]))

    async def _events_per_call(self, session: Session) -> float:
        self._say(f"history events of {EVENTS_OF_CALLS} calls")
        box = (await session.create_sandbox()).sandbox_id
        workflow = self._sandhold.client.get_workflow_handle(sandbox_workflow_id(session.session_id, box))
        await session.exec(box, COMMAND)
        before = await workflow.describe()
        for _ in range(EVENTS_OF_CALLS):
            await session.exec(box, COMMAND)
        after = await workflow.describe()
        assert after.run_id == before.run_id, "so few calls fit into one run"
        return (after.history_length - before.history_length) / EVENTS_OF_CALLS

    async def _ageing(self, session: Session) -> Ageing:
        """One sandbox grows old; at the end a young one is called in turns with it."""
        counts = self._counts
        self._say(f"call {counts.late_call:,} against call {EARLY_CALL}")
        old = (await session.create_sandbox()).sandbox_id
        young = (await session.create_sandbox()).sandbox_id
        from_middle, to_middle = counts.window // 2, (counts.window + 1) // 2
        early = await self._calls(session, old, EARLY_CALL + from_middle)
        await self._calls(session, old, counts.late_call - to_middle - len(early))
        await self._calls(session, young, EARLY_CALL - to_middle)
        late_s: list[float] = []
        young_s: list[float] = []
        for _ in range(counts.window):
            late_s += await self._calls(session, old, 1)
            young_s += await self._calls(session, young, 1)
        return Ageing(
            window=counts.window,
            early_call=EARLY_CALL,
            late_call=counts.late_call,
            early_ms=statistics.median(early[-counts.window :]) * 1000,
            late_ms=statistics.median(late_s) * 1000,
            young_ms=statistics.median(young_s) * 1000,
            runs=(await self._status(session, old)).runs,
        )

    async def _concurrent(self, session: Session) -> Concurrent:
        each = max(1, self._counts.concurrent_calls // CALLERS)
        self._say(f"{CALLERS} callers at once, {each} calls each")
        box = (await session.create_sandbox()).sandbox_id
        await session.exec(box, COMMAND)
        took_s = await timed(lambda: asyncio.gather(*(self._calls(session, box, each) for _ in range(CALLERS))))
        return Concurrent(callers=CALLERS, calls=each * CALLERS, calls_per_s=each * CALLERS / took_s)

    async def _creates(self) -> Latency:
        self._say(f"{self._counts.creates} creates at the local Daytona")
        taken: list[float] = []
        for number in range(self._counts.creates):
            wanted = CreateSandboxFromSnapshotParams(name=f"bench-{number}")
            began = time.monotonic()
            sandbox = await self._provider.create(wanted)
            taken.append(time.monotonic() - began)
            await self._provider.delete(sandbox, wait=True)
        return Latency.of(taken)

    async def _calls(self, session: Session, sandbox_id: str, count: int) -> list[float]:
        """So many calls one after the other; how long each took, in seconds."""
        return [await timed(lambda: session.exec(sandbox_id, COMMAND)) for _ in range(count)]

    async def _by_launcher(self, sandbox: AsyncSandbox) -> object:
        """What the activity asks of the provider for a command, without the activity."""
        script = Script(COMMAND, WORKSPACE_PATH)
        order = start_request(self._id(), script, wait_s=8, timeout_s=120, grace_s=2, again=False, cap_bytes=2**30)
        return await sandbox.process.exec(order.command, "/", order.env, 13)

    async def _at_provider(self, session: Session, sandbox_id: str) -> AsyncSandbox:
        provider_id = (await self._status(session, sandbox_id)).provider_id
        assert provider_id is not None
        return await self._provider.get(provider_id)

    async def _status(self, session: Session, sandbox_id: str) -> SandboxStatus:
        workflow = self._sandhold.client.get_workflow_handle(sandbox_workflow_id(session.session_id, sandbox_id))
        status: SandboxStatus = await workflow.query(STATUS_QUERY, result_type=SandboxStatus)
        return status

    async def _new_floor(self) -> WorkflowHandle[Floor, None]:
        return await self._plain.client.start_workflow(Floor.run, id=self._id(), task_queue=FLOOR_QUEUE)

    def _id(self) -> str:
        return f"bench-{next(self._numbers)}"

    def _say(self, what: str) -> None:
        self._console.print(f"  [dim]{what}[/]", highlight=False)


async def timed(operation: Operation) -> float:
    """How long it took, in seconds."""
    began = time.perf_counter()
    await operation()
    return time.perf_counter() - began


def rss_bytes(pid: int) -> int:
    """The memory of a process that is not swapped out."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024
