"""A server of the toolbox routes alone, for the tests of isolation and toolbox.

It runs in a process of its own because giving root up changes the process. Besides the toolbox routes it
has `POST /start/{id}` (a JSON body with fields of SandboxSpec), `POST /kill/{id}`, `GET /ended/{id}` and
`GET /limits`. Prints `ready URL` on stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import asdict
from pathlib import Path

from aiohttp import web

from sandhold.local_daytona.interface import RunningSandbox, SandboxSpec, SandboxStartFailed
from sandhold.local_daytona.privileges import give_up_root
from sandhold.local_daytona.runtime import BubblewrapRuntime, BubblewrapSandbox
from sandhold.local_daytona.toolbox_routes import toolbox_routes


class Server:
    def __init__(self, runtime: BubblewrapRuntime, data_dir: Path) -> None:
        self._runtime = runtime
        self._data_dir = data_dir
        self._sandboxes: dict[str, RunningSandbox] = {}

    async def lookup(self, sandbox_id: str) -> RunningSandbox:
        try:
            return self._sandboxes[sandbox_id]
        except KeyError:
            raise web.HTTPNotFound(text=f"no sandbox {sandbox_id}") from None

    async def start(self, request: web.Request) -> web.Response:
        sandbox_id = request.match_info["sandbox_id"]
        spec = SandboxSpec(sandbox_id, self._data_dir / "sandboxes" / sandbox_id, **await request.json())
        try:
            self._sandboxes[sandbox_id] = await self._runtime.start(spec)
        except SandboxStartFailed as error:
            return web.json_response({"error": str(error)}, status=500)
        return web.json_response({"spec": {**asdict(spec), "folder": str(spec.folder)}})

    async def start_and_cancel(self, request: web.Request) -> web.Response:
        """Cancel a start after a while; answers once the same sandbox could be started and ended regularly."""
        sandbox_id = request.match_info["sandbox_id"]
        spec = SandboxSpec(sandbox_id, self._data_dir / "sandboxes" / sandbox_id)
        start = asyncio.create_task(self._runtime.start(spec))
        await asyncio.sleep((await request.json())["after_s"])
        start.cancel()
        [outcome] = await asyncio.gather(start, return_exceptions=True)
        if isinstance(outcome, BubblewrapSandbox):
            await outcome.kill()
        async with asyncio.timeout(20):
            while True:
                try:
                    sandbox = await self._runtime.start(spec)
                except SandboxStartFailed:
                    await asyncio.sleep(0.01)  # the cancelled one is still on its way out
                else:
                    break
        await sandbox.kill()
        return web.json_response({})

    async def kill(self, request: web.Request) -> web.Response:
        sandbox = await self.lookup(request.match_info["sandbox_id"])
        await sandbox.kill()
        return web.json_response({"ended": sandbox.ended.result()})

    async def ended(self, request: web.Request) -> web.Response:
        sandbox = await self.lookup(request.match_info["sandbox_id"])
        return web.json_response({"ended": await asyncio.wait_for(asyncio.shield(sandbox.ended), 30)})

    async def limits(self, request: web.Request) -> web.Response:
        return web.json_response(dict(self._runtime.limits))


async def serve(data_dir: Path, allow: list[str]) -> None:
    runtime = await BubblewrapRuntime.open(data_dir, allow_egress_to=allow)
    server = Server(runtime, data_dir)
    app = web.Application()
    app.add_routes(
        [
            web.post("/start/{sandbox_id}", server.start),
            web.post("/start-and-cancel/{sandbox_id}", server.start_and_cancel),
            web.post("/kill/{sandbox_id}", server.kill),
            web.get("/ended/{sandbox_id}", server.ended),
            web.get("/limits", server.limits),
            *toolbox_routes(server.lookup),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print("ready", f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    # The test closes our stdin, or dies, when it is done.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runtime.close()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--allow", action="append", default=[])
    arguments = parser.parse_args()
    give_up_root(arguments.data_dir)
    asyncio.run(serve(arguments.data_dir, arguments.allow))


if __name__ == "__main__":
    main()
