"""Servers for the tests of the local Daytona: a real one in a process of its own, and trivial ones in this."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from daytona import AsyncDaytona, DaytonaConfig

from sandhold.local_daytona.server import LocalDaytona as Server
from sandhold.local_daytona.server import ServerOptions
from sandhold.local_daytona.store import DataFolder
from tests.local_daytona.trivial_runtime import TrivialRuntime, trivial_toolbox
from tests.local_daytona_faults import FaultPlan
from tests.local_daytona_server import API_KEY, LocalDaytona, running_local_daytona


class Api:
    """Raw requests to a server, for what the official client cannot say."""

    def __init__(self, http: aiohttp.ClientSession, origin: str, key: str = API_KEY) -> None:
        self._http = http
        self._origin = origin
        self._headers = {"Authorization": f"Bearer {key}"}

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """The status and the JSON (or text) of one request, `path` counted from the server's root."""
        headers = {**self._headers, **options.pop("headers", {})}
        async with self._http.request(method, f"{self._origin}{path}", headers=headers, **options) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith(("{", "[")) else text


@dataclass
class Trivial:
    """A server in this process whose sandboxes are folders without processes."""

    server: Server
    folder: DataFolder
    runtime: TrivialRuntime
    http: aiohttp.ClientSession
    api: Api
    faults: FaultPlan
    _under_way: list[asyncio.Task[Any]] = field(default_factory=list)

    @cached_property
    def daytona(self) -> AsyncDaytona:
        """An official client of this server, made when it is first needed."""
        return AsyncDaytona(DaytonaConfig(api_key=API_KEY, api_url=self.server.api_url, target="local"))

    @property
    def data_dir(self) -> Path:
        return self.folder.path

    def later(self, request: Coroutine[Any, Any, Any]) -> None:
        """Let a request run until it is answered or the test ends."""
        self._under_way.append(asyncio.create_task(request))

    async def only_id(self) -> str:
        """The id of the only sandbox there is, once there is one."""
        async with asyncio.timeout(20):
            while not (page := await self.api.ask("GET", "/api/sandbox"))[1]["items"]:
                await asyncio.sleep(0.01)
        (row,) = page[1]["items"]
        return str(row["id"])

    async def close(self) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        if "daytona" in vars(self):
            await self.daytona.close()


StartTrivial = Callable[..., AbstractAsyncContextManager[Trivial]]


@contextlib.asynccontextmanager
async def _trivial_server(data_dir: Path, **options: Any) -> AsyncIterator[Trivial]:
    folder = DataFolder.open(data_dir)
    runtime = TrivialRuntime()
    server = Server(folder, runtime, trivial_toolbox, ServerOptions(API_KEY, faults=True, **options))
    try:
        await server.start()
        async with aiohttp.ClientSession() as http:
            api, plan = Api(http, server.origin), FaultPlan(http, server.api_url, API_KEY)
            trivial = Trivial(server, folder, runtime, http, api, plan)
            try:
                yield trivial
            finally:
                await trivial.close()
    finally:
        await server.close()
        folder.close()


@pytest.fixture
def start_trivial() -> StartTrivial:
    """Start a trivial server on a data folder, with options of `ServerOptions`."""
    return _trivial_server


@pytest.fixture
async def trivial(tmp_path: Path) -> AsyncIterator[Trivial]:
    async with _trivial_server(tmp_path / "data") as server:
        yield server


@pytest.fixture(scope="session")
async def _real_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalDaytona]:
    async with running_local_daytona(tmp_path_factory.mktemp("local-daytona") / "data") as server:
        yield server


@pytest.fixture
async def local_daytona(_real_server: LocalDaytona) -> AsyncIterator[LocalDaytona]:
    """The shared real server; afterwards its fault plan, its request log and its sandboxes are gone."""
    await _real_server.faults.forget_requests()
    yield _real_server
    await _real_server.faults.clear()
    async with _real_server.client() as client:
        async for sandbox in client.list():
            if sandbox.state not in ("destroying", "destroyed"):
                await client.delete(sandbox)


@pytest.fixture
async def daytona(local_daytona: LocalDaytona) -> AsyncIterator[AsyncDaytona]:
    """An official client of the shared real server."""
    async with local_daytona.client() as client:
        yield client


@pytest.fixture
def api(local_daytona: LocalDaytona) -> Api:
    """Raw requests to the shared real server."""
    return Api(local_daytona.http, local_daytona.origin)
