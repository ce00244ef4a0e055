"""The toolbox part of Daytona's HTTP interface: `/toolbox/{sandbox_id}/...`.

HTTP stays in the server; what a request asks for happens inside the sandbox. Whoever mounts these routes
checks the bearer key before them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from aiohttp import web

from sandhold.local_daytona.interface import RunningSandbox, SandboxLookup
from sandhold.local_daytona.isolation import HOME
from sandhold.local_daytona.toolbox_client import ToolboxConnection, ToolboxRefused, ToolboxUnreachable
from sandhold.local_daytona.toolbox_errors import (
    DaemonError,
    bad_request,
    daemon_path,
    error_response,
    invalid_body,
)
from sandhold.local_daytona.toolbox_execute import execute
from sandhold.local_daytona.toolbox_multipart import bulk_download, bulk_upload, upload_one

_PREFIX = "/toolbox/{sandbox_id}"
#: Some thirty years: as good as none, and small enough for a clock.
_LONGEST_TIMEOUT_S = 10**9
_VERSION = "local-0.190.0"

_Handler = Callable[[web.Request, RunningSandbox], Awaitable[web.StreamResponse]]


def toolbox_routes(lookup: SandboxLookup) -> list[web.RouteDef]:
    """The routes of every sandbox that `lookup` finds. Any other path below `/toolbox/{id}/` answers 501."""
    table: list[tuple[str, str, _Handler]] = [
        ("POST", "/process/execute", _execute),
        ("GET", "/files", _list),
        ("DELETE", "/files", _delete),
        ("POST", "/files/folder", _make_folder),
        ("GET", "/files/info", _info),
        ("POST", "/files/move", _move),
        ("POST", "/files/permissions", _set_permissions),
        ("GET", "/files/find", _find),
        ("GET", "/files/search", _search),
        ("POST", "/files/replace", _replace),
        ("GET", "/files/download", _download),
        ("POST", "/files/upload-v2", _upload),
        ("POST", "/files/bulk-upload", bulk_upload),
        ("POST", "/files/bulk-download", _bulk_download),
        ("GET", "/user-home-dir", _home),
        ("GET", "/work-dir", _home),
        ("GET", "/version", _version),
    ]
    routes = [web.route(method, _PREFIX + path, _answering(lookup, handler)) for method, path, handler in table]
    routes.append(web.route("*", _PREFIX + "/{rest:.*}", _answering(lookup, _not_implemented)))
    return routes


def _answering(lookup: SandboxLookup, handler: _Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        sandbox = await lookup(request.match_info["sandbox_id"])
        try:
            return await handler(request, sandbox)
        except DaemonError as error:
            return error_response(error, request)
        except ToolboxRefused as refused:
            return error_response(DaemonError(refused.status, refused.code, refused.message), request)
        except ToolboxUnreachable as error:
            return error_response(DaemonError(502, "INTERNAL_SERVER_ERROR", str(error)), request)

    return answer


async def _execute(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    body = await json_body(request)
    command, cwd, envs, timeout = (body.get(name) for name in ("command", "cwd", "envs", "timeout"))
    if not isinstance(command, str) or not command:
        raise invalid_body("command must be a string that is not empty")
    if cwd is not None and not isinstance(cwd, str):
        raise invalid_body("cwd must be a string")
    if timeout is not None and not _is_timeout(timeout):
        raise invalid_body(f"timeout must be a number of whole seconds from 0 to {_LONGEST_TIMEOUT_S}")
    if envs is not None and not _is_environment(envs):
        raise invalid_body("envs must map names to strings; a name is not empty and holds no '='")
    return await execute(request, sandbox, command, cwd, envs or {}, timeout or None)


def _is_timeout(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LONGEST_TIMEOUT_S


def _is_environment(envs: object) -> bool:
    return isinstance(envs, dict) and all(
        isinstance(value, str) and name and "=" not in name and "\0" not in name + value for name, value in envs.items()
    )


async def _list(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    depth = request.query.get("depth", "1")
    if not (depth.isascii() and depth.isdigit() and 1 <= int(depth) <= 1000):
        raise bad_request("depth must be a whole number of at least 1")
    return await _listing(request, sandbox, "list", path=request.query.get("path") or None, depth=int(depth))


async def _find(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    path, pattern = _query(request, "path"), _query(request, "pattern")
    return await _listing(request, sandbox, "find", path=path, pattern=pattern)


async def _search(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    path, pattern = _query(request, "path"), _query(request, "pattern")
    return await _listing(request, sandbox, "search", path=path, pattern=pattern)


async def _listing(
    request: web.Request, sandbox: RunningSandbox, operation: str, **arguments: Any
) -> web.StreamResponse:
    """Pass JSON on that the toolbox makes while it looks."""
    async with await sandbox.toolbox.connect() as connection:
        await connection.request(operation, **arguments)
        await connection.result()
        response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
        return await stream_data(request, response, connection)


async def _delete(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    recursive = request.query.get("recursive", "").lower() == "true"
    await sandbox.toolbox.call("delete", path=_query(request, "path"), recursive=recursive)
    return web.Response(status=204)


async def _make_folder(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    await sandbox.toolbox.call("folder", path=_query(request, "path"), mode=request.query.get("mode"))
    return web.Response(status=201)


async def _info(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    return web.json_response(await sandbox.toolbox.call("info", path=_query(request, "path")))


async def _move(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    source, destination = _query(request, "source"), _query(request, "destination")
    await sandbox.toolbox.call("move", source=source, destination=destination)
    return web.Response()


async def _set_permissions(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    chosen = {name: request.query.get(name) for name in ("mode", "owner", "group")}
    await sandbox.toolbox.call("permissions", path=_query(request, "path"), **chosen)
    return web.Response()


async def _replace(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    body = await json_body(request)
    files, pattern, new_value = body.get("files"), body.get("pattern"), body.get("newValue")
    if not _is_list_of_text(files):
        raise invalid_body("files must be a list of paths")
    if not isinstance(pattern, str) or not isinstance(new_value, str):
        raise invalid_body("pattern and newValue must be strings")
    answer = await sandbox.toolbox.call("replace", files=files, pattern=pattern, new_value=new_value)
    return web.json_response(answer["results"])


async def _download(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    path = _query(request, "path")
    async with await sandbox.toolbox.connect() as connection:
        await connection.request("download", path=path)
        size = (await connection.result())["size"]
        name = quote(path.rstrip("/").rsplit("/", 1)[-1], safe="")
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
            }
        )
        response.content_length = size
        return await stream_data(request, response, connection)


async def _upload(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    return await upload_one(request, sandbox, _query(request, "path"))


async def _bulk_download(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    paths = (await json_body(request)).get("paths")
    if not _is_list_of_text(paths) or not paths:
        raise invalid_body("paths must be a list of paths that is not empty")
    return await bulk_download(request, sandbox, paths)


async def _home(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    return web.json_response({"dir": HOME})


async def _version(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    return web.json_response({"version": _VERSION})


async def _not_implemented(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    raise DaemonError(
        501,
        "INTERNAL_SERVER_ERROR",
        f"the local Daytona does not have the toolbox route {request.method} {daemon_path(request)}",
    )


async def stream_data(
    request: web.Request, response: web.StreamResponse, connection: ToolboxConnection
) -> web.StreamResponse:
    """Send the data frames of an answer as the body. A failure in the middle cuts the connection.

    The status is out by then, so a body that is visibly incomplete is the only honest answer.
    """
    await response.prepare(request)
    try:
        async for piece in connection.data():
            await response.write(piece)
        await response.write_eof()
    except (ToolboxRefused, ToolboxUnreachable):
        if request.transport is not None:
            request.transport.abort()
    return response


async def json_body(request: web.Request) -> dict[str, Any]:
    """The JSON object that a request carries. Raises DaemonError when it carries anything else."""
    try:
        body = json.loads(await request.read())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise invalid_body(f"the body is not JSON: {error}") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise DaemonError(413, "BAD_REQUEST", "the body is too large") from error
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise invalid_body("the body is incomplete") from error
    if not isinstance(body, dict):
        raise invalid_body("the body must be a JSON object")
    return body


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _query(request: web.Request, name: str) -> str:
    value = request.query.get(name)
    if not value:
        raise bad_request(f"the query parameter {name} is required")
    return value
