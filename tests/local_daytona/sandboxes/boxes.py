"""Starts the server of the toolbox routes in a process of its own, and speaks to its sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from daytona._async.filesystem import AsyncFileSystem
from daytona._async.process import AsyncProcess
from daytona.internal.toolbox_api_client_proxy import ToolboxApiClientProxy
from daytona_toolbox_api_client_async import ApiClient, Configuration, FileSystemApi, InfoApi, ProcessApi

CHECKOUT = Path(__file__).parents[3]
SERVER = Path(__file__).with_name("server.py")
READY_WITHIN_S = 30.0


class Box:
    """One sandbox, with the official client's view of it."""

    def __init__(self, boxes: Boxes, sandbox_id: str, api: ApiClient) -> None:
        self._boxes = boxes
        self.id = sandbox_id
        toolbox: Any = ToolboxApiClientProxy(api, sandbox_id, f"{boxes.url}/toolbox")
        self.process = AsyncProcess("python", ProcessApi(toolbox))
        self.fs = AsyncFileSystem(FileSystemApi(toolbox))
        self.info = InfoApi(toolbox)

    @property
    def folder(self) -> Path:
        return self._boxes.data_dir / "sandboxes" / self.id

    async def run(self, command: str, **options: Any) -> str:
        """The output of a command that must succeed."""
        done = await self.process.exec(command, **options)
        assert done.exit_code == 0, f"exit code {done.exit_code}: {done.result}"
        return str(done.result)

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Status and JSON of a raw request to a toolbox route."""
        async with self._boxes.http.request(method, f"{self._boxes.url}/toolbox/{self.id}{path}", **options) as answer:
            body = await answer.read()
            return answer.status, await answer.json() if body.startswith((b"{", b"[")) else body

    async def kill(self) -> str:
        async with self._boxes.http.post(f"{self._boxes.url}/kill/{self.id}") as answer:
            return str((await answer.json())["ended"])

    async def ended(self) -> str:
        """Why the sandbox ended, as soon as it has."""
        async with self._boxes.http.get(f"{self._boxes.url}/ended/{self.id}") as answer:
            return str((await answer.json())["ended"])


class Boxes:
    """A running server of sandboxes."""

    def __init__(self, url: str, data_dir: Path, server: Process, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.data_dir = data_dir
        self.server = server
        self.http = http
        self._api = ApiClient(Configuration(host=url))
        self._api.rest_client.pool_manager = http

    async def start(self, sandbox_id: str, **spec: Any) -> Box:
        """A started sandbox; `spec` holds fields of SandboxSpec."""
        async with self.http.post(f"{self.url}/start/{sandbox_id}", json=spec) as answer:
            assert answer.status == 200, await answer.text()
        return Box(self, sandbox_id, self._api)

    async def limits(self) -> dict[str, str]:
        async with self.http.get(f"{self.url}/limits") as answer:
            return dict(await answer.json())


@contextlib.asynccontextmanager
async def running_boxes(
    data_dir: Path,
    *,
    allow: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    python: str = sys.executable,
    script: Path = SERVER,
) -> AsyncIterator[Boxes]:
    """A server on `data_dir` that serves now and has ended, with its sandboxes, afterwards."""
    command = [python, str(script), "--data-dir", str(data_dir)]
    for target in allow:
        command += ["--allow", target]
    environment = {"PYTHONPATH": str(CHECKOUT), **os.environ, **(env or {})}
    server = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environment)
    try:
        assert server.stdout is not None
        line = await asyncio.wait_for(server.stdout.readline(), READY_WITHIN_S)
        assert line.startswith(b"ready "), "the server did not start; see its log above"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as http:
            yield Boxes(line.split()[1].decode(), data_dir, server, http)
    finally:
        if server.returncode is None:
            assert server.stdin is not None
            server.stdin.close()
            try:
                await asyncio.wait_for(server.wait(), 20)
            except TimeoutError:
                server.kill()
                await server.wait()
                raise


def processes_named(marker: str) -> list[int]:
    """The machine's processes with `marker` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


async def started(marker: str, count: int, within_s: float = 10.0) -> list[int]:
    """The `count` processes with `marker` in their command line, once there are so many.

    A shell answers before its background process has become the program that it names.
    """
    async with asyncio.timeout(within_s):
        while len(found := processes_named(marker)) != count:
            await asyncio.sleep(0.02)
    return found


async def all_gone(marker: str, within_s: float = 10.0) -> bool:
    """Whether every process with `marker` in its command line ends in time."""
    async with asyncio.timeout(within_s):
        while processes_named(marker):
            await asyncio.sleep(0.02)
    return True
