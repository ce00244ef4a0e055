"""`POST /process/execute`: one command, its merged output and its exit code."""

from __future__ import annotations

import asyncio
import codecs
import json
import tempfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO, cast

from aiohttp import web

from sandhold.local_daytona.interface import RunningSandbox
from sandhold.local_daytona.toolbox import wire
from sandhold.local_daytona.toolbox_client import ToolboxConnection, result_of
from sandhold.local_daytona.toolbox_errors import DaemonError

#: Output up to this size stays in memory until the exit code is known, more goes to a nameless file.
_IN_MEMORY_BYTES = 1024 * 1024
#: Above this the command is not worth its disk: the request fails, and says so.
OUTPUT_LIMIT_BYTES = 1024**3
_GONE_CHECK_S = 1.0


async def execute(
    request: web.Request,
    sandbox: RunningSandbox,
    command: str,
    cwd: str | None,
    envs: Mapping[str, str],
    timeout: int | None,
) -> web.StreamResponse:
    """Run the command in the sandbox and answer `{exitCode, result}`.

    A caller that hangs up does not end the command; this request then ends alone.
    """
    async with await sandbox.toolbox.connect() as connection:
        await connection.request("execute", command=command, cwd=cwd, env=dict(envs), timeout=timeout)
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as spool:
            output = cast("BinaryIO", spool)
            collecting = asyncio.ensure_future(_collect(connection, output))
            try:
                while not (await asyncio.wait({collecting}, timeout=_GONE_CHECK_S))[0]:
                    if request.transport is None or request.transport.is_closing():
                        raise web.HTTPRequestTimeout(text="the caller hung up")  # nobody reads it
                exit_code = collecting.result()
            finally:
                collecting.cancel()
            return await _respond(request, output, exit_code)


async def _collect(connection: ToolboxConnection, output: BinaryIO) -> int:
    size = 0
    async for kind, payload in connection.frames():
        if kind == wire.MESSAGE:
            return int(result_of(payload)["exit_code"])
        size += len(payload)
        if size > OUTPUT_LIMIT_BYTES:
            raise DaemonError(
                500,
                "INTERNAL_SERVER_ERROR",
                f"the command wrote more than {OUTPUT_LIMIT_BYTES} bytes; redirect large output to a file",
            )
        output.write(payload)
    raise DaemonError(502, "INTERNAL_SERVER_ERROR", "the toolbox ended the execution without an exit code")


async def _respond(request: web.Request, output: BinaryIO, exit_code: int) -> web.StreamResponse:
    size = output.tell()
    output.seek(0)
    if size <= _IN_MEMORY_BYTES:
        return web.json_response({"exitCode": exit_code, "result": output.read().decode("utf-8", "replace")})
    response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
    await response.prepare(request)
    await response.write(f'{{"exitCode":{exit_code},"result":"'.encode())
    for piece in _json_string_pieces(output):
        await response.write(piece)
    await response.write(b'"}')
    await response.write_eof()
    return response


def _json_string_pieces(output: BinaryIO) -> Iterator[bytes]:
    """The inside of a JSON string; bytes that are not UTF-8 become the replacement character, as at the provider."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while piece := output.read(wire.CHUNK_BYTES):
        yield json.dumps(decoder.decode(piece), ensure_ascii=False)[1:-1].encode()
    yield json.dumps(decoder.decode(b"", final=True), ensure_ascii=False)[1:-1].encode()
