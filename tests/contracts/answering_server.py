"""A server that gives one answer to everything, to see what the official client makes of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web


@contextlib.asynccontextmanager
async def answering(status: int, body: Any, *, after_s: float = 0.0, sandbox: bool = False) -> AsyncIterator[str]:
    """The API address of a server that answers `status` and `body`; with `sandbox` only below its toolbox."""

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(after_s)
        if sandbox and not request.path.startswith("/toolbox"):
            return web.json_response(_sandbox(f"http://{request.host}/toolbox"))
        if isinstance(body, str):
            return web.Response(status=status, text=body, content_type="text/html" if body else "text/plain")
        return web.json_response(body, status=status)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}/api"
    finally:
        await runner.cleanup()


def _sandbox(toolbox_url: str) -> dict[str, Any]:
    texts = {"id": "x", "organizationId": "o", "name": "x", "user": "daytona", "target": "local", "state": "started"}
    numbers = {"cpu": 1, "gpu": 0, "memory": 1, "disk": 3}
    switches = {"public": False, "networkBlockAll": False, "kvm": False}
    return {**texts, **numbers, **switches, "env": {}, "labels": {}, "toolboxProxyUrl": toolbox_url}
