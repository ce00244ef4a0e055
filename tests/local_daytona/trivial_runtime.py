"""A runtime without isolation or processes, for what the control plane does on its own.

Its sandboxes can be made to fail at the start and to die, which real ones do too seldom for a test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from sandhold.local_daytona.interface import RunningSandbox, SandboxLookup, SandboxSpec, SandboxStartFailed


class TrivialSandbox:
    toolbox: Any = None

    def __init__(self, sandbox_id: str, may_be_killed: asyncio.Event) -> None:
        self.sandbox_id = sandbox_id
        self._may_be_killed = may_be_killed
        self.next_kill_failure: Exception | None = None
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def kill(self) -> None:
        failure, self.next_kill_failure = self.next_kill_failure, None
        if failure is not None:
            raise failure
        await self._may_be_killed.wait()
        self.die("killed")

    def die(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_result(why)


class TrivialRuntime:
    """Starts sandboxes that are nothing but a folder. While `kills` is cleared, none of them ends."""

    limits: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.started: dict[str, TrivialSandbox] = {}
        self.starts: list[str] = []
        self.next_failure: Exception | None = None
        self.kills = asyncio.Event()
        self.kills.set()

    async def start(self, spec: SandboxSpec) -> RunningSandbox:
        failure, self.next_failure = self.next_failure, None
        if failure is not None:
            raise failure
        (spec.folder / "home").mkdir(parents=True, exist_ok=True)
        sandbox = TrivialSandbox(spec.sandbox_id, self.kills)
        self.started[spec.sandbox_id] = sandbox
        self.starts.append(spec.sandbox_id)
        return sandbox

    def fail_next_start(self, failure: Exception | str) -> None:
        self.next_failure = SandboxStartFailed(failure) if isinstance(failure, str) else failure

    async def close(self) -> None:
        self.kills.set()
        for sandbox in self.started.values():
            await sandbox.kill()


def trivial_toolbox(lookup: SandboxLookup) -> list[web.RouteDef]:
    """One toolbox route that waits as long as it is told, and says who it is."""

    async def execute(request: web.Request) -> web.Response:
        sandbox = await lookup(request.match_info["sandbox_id"])
        body = await request.json()
        await asyncio.sleep(float(body["command"].removeprefix("sleep ")))
        return web.json_response({"exitCode": 0, "result": sandbox.sandbox_id})

    return [web.post("/toolbox/{sandbox_id}/process/execute", execute)]
