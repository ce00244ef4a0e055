"""Multipart bodies of the file routes: uploads of one and of many files, and the download of many."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator
from urllib.parse import quote

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from sandhold.local_daytona.interface import RunningSandbox
from sandhold.local_daytona.toolbox import wire
from sandhold.local_daytona.toolbox_client import ToolboxRefused, ToolboxUnreachable
from sandhold.local_daytona.toolbox_errors import DaemonError, bad_request, daemon_path

_FIELD = re.compile(r"files\[(\d{1,9})\]\.(path|file)", re.ASCII)
#: One parameter of a Content-Disposition header. aiohttp's own parser gives up on a quoted ";", and the client's
#: uploads carry the whole path in one.
_PARAMETER = re.compile(r';\s*([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^;"]*))')
_PATH_LIMIT_BYTES = 16 * 1024


async def upload_one(request: web.Request, sandbox: RunningSandbox, path: str) -> web.StreamResponse:
    """`upload-v2`: the form field `file` becomes the file at `path`."""
    async for part in _parts(request):
        if _name(part) == "file":
            await _store(sandbox, path, part)
            return web.json_response({"name": path.rsplit("/", 1)[-1], "path": path, "type": "file"})
    raise bad_request("the form has no field named file")


async def bulk_upload(request: web.Request, sandbox: RunningSandbox) -> web.StreamResponse:
    """`bulk-upload`: fields `files[i].path`, each before its `files[i].file`.

    Every file is tried; if any fails the answer is a 400 that lists all errors and the files that were
    written nevertheless.
    """
    paths: dict[str, str] = {}
    written: list[dict[str, object]] = []
    errors: list[str] = []
    async for part in _parts(request):
        name = _name(part)
        field = _FIELD.fullmatch(name)
        if field is None:
            errors.append(f"unexpected form field {name!r}")
            continue
        index, kind = field.groups()
        if kind == "path":
            paths[index] = await _text(part)
        elif index not in paths:
            errors.append(f"files[{index}].file came without files[{index}].path before it")
        else:
            path = paths[index]
            try:
                written.append({"path": path, "bytes": await _store(sandbox, path, part)})
            except ToolboxRefused as refused:
                errors.append(refused.message)
    if not written and not errors:
        errors.append("the form holds no file")
    if errors:
        return web.json_response({"errors": errors, "files": written}, status=400)
    return web.json_response({"files": written})


async def _parts(request: web.Request) -> AsyncIterator[BodyPartReader]:
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader):
                raise bad_request("nested multipart bodies are not understood")
            yield part
    except (ValueError, AssertionError, EOFError, HttpProcessingError) as error:
        raise bad_request(f"the body is not a complete multipart form: {error}") from error


def _name(part: BodyPartReader) -> str:
    """The name of a form field, empty when it has none."""
    header = part.headers.get("Content-Disposition", "")
    position = len(header.partition(";")[0])
    while (parameter := _PARAMETER.match(header, position)) is not None:
        if parameter[1].lower() == "name":
            return parameter[2] if parameter[2] is not None else parameter[3].strip()
        position = parameter.end()
    return ""


async def _text(part: BodyPartReader) -> str:
    text = bytearray()
    while piece := await part.read_chunk(wire.CHUNK_BYTES):
        text += piece
        if len(text) > _PATH_LIMIT_BYTES:
            raise bad_request(f"a path is longer than {_PATH_LIMIT_BYTES} bytes")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise bad_request("a path is not UTF-8") from error


async def _store(sandbox: RunningSandbox, path: str, part: BodyPartReader) -> int:
    async with await sandbox.toolbox.connect() as connection:
        await connection.request("upload", path=path)
        while piece := await part.read_chunk(wire.CHUNK_BYTES):
            await connection.send_data(piece)
        await connection.send_end()
        return int((await connection.result())["bytes"])


async def bulk_download(request: web.Request, sandbox: RunningSandbox, paths: list[str]) -> web.StreamResponse:
    """`bulk-download`: one part for each path, named `file`, or `error` with the error's JSON.

    The client matches parts by the exact path and takes a missing closing boundary for a cut answer.
    """
    boundary = f"sandhold-{secrets.token_hex(16)}"
    response = web.StreamResponse(headers={"Content-Type": f"multipart/form-data; boundary={boundary}"})
    await response.prepare(request)
    try:
        for path in paths:
            await _send_part(request, response, sandbox, boundary, path)
        await response.write(f"--{boundary}--\r\n".encode())
        await response.write_eof()
    except (ToolboxRefused, ToolboxUnreachable):
        # A file that broke off in the middle: the missing closing boundary says so.
        if request.transport is not None:
            request.transport.abort()
    return response


async def _send_part(
    request: web.Request, response: web.StreamResponse, sandbox: RunningSandbox, boundary: str, path: str
) -> None:
    async with await sandbox.toolbox.connect() as connection:
        await connection.request("download", path=path)
        try:
            size = (await connection.result())["size"]
        except ToolboxRefused as refused:
            error = DaemonError(refused.status, refused.code, refused.message)
            body = json.dumps(error.body(request.method, daemon_path(request))).encode()
            await response.write(_part_head(boundary, "error", path, "application/json", len(body)) + body + b"\r\n")
            return
        await response.write(_part_head(boundary, "file", path, "application/octet-stream", size))
        async for piece in connection.data():
            await response.write(piece)
        await response.write(b"\r\n")


def _part_head(boundary: str, name: str, path: str, content_type: str, size: int | None) -> bytes:
    encoded = quote(path, safe="", errors="replace")
    # The plain form is for readers that know no other; it must be a single token of ASCII.
    plain = re.sub(r"[^ !#-\[\]-~]", "_", path)
    lines = [
        f"--{boundary}",
        f'Content-Disposition: form-data; name="{name}"; filename="{plain}"; filename*=utf-8\'\'{encoded}',
        f"Content-Type: {content_type}",
    ]
    if size is not None:
        lines.append(f"Content-Length: {size}")
    return "\r\n".join([*lines, "", ""]).encode()
