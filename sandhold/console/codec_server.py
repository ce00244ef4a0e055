"""The codec server: clear text of payloads for Temporal's Web UI and command line, and who has the token.

Both send `POST ENDPOINT/decode` (and `/encode`) with payloads as JSON, and the namespace in `X-Namespace`. The command
line sends the token as `Authorization: Bearer TOKEN`. The Web UI can send none that would be ours, so that its endpoint
may end with the token; each browser keeps its own endpoint, and whoever has none there sees cipher text.

A browser runs what other sites send it: only pages of the configured Web UI get an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import structlog
from google.protobuf.json_format import MessageToJson, Parse, ParseError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from temporalio.api.common.v1 import Payload, Payloads

from sandhold.console.access import same_token
from sandhold.security import KeyRing, SecurityError
from sandhold.security.codec import Bound, EncryptingCodec

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Temporal's own messages are at most 4 MiB, which JSON and base64 make 6 of."""

Origins = Callable[[], Sequence[str]]
"""The Web UI's addresses now, such as `http://127.0.0.1:8233`."""


class BodyTooLarge(ValueError):
    """More was sent than MAX_BODY_BYTES."""


def codec_server(ring: KeyRing, token: str, origins: Origins, namespace: str) -> Starlette:
    """The server. Payloads of a request that names no namespace are those of `namespace`."""
    pages = CodecPages(ring, token, namespace)
    return Starlette(
        routes=[
            Route("/healthz", pages.health, methods=["GET"]),
            Route("/{what:str}", pages.convert, methods=["POST"]),
            Route("/{token:str}/{what:str}", pages.convert, methods=["POST"]),
        ],
        middleware=[Middleware(OnlyFrom, origins=origins)],
    )


class CodecPages:
    """What is served."""

    def __init__(self, ring: KeyRing, token: str, namespace: str) -> None:
        self._ring = ring
        self._codec = EncryptingCodec.under(ring, plain_too=True)
        self._token = token
        self._namespace = namespace

    async def health(self, _: Request) -> Response:
        """Whether the key ring can be used."""
        try:
            await self._ring.primary()
        except SecurityError as error:
            return JSONResponse({"status": "unavailable", "reason": str(error)}, 503)
        return JSONResponse({"status": "ok"})

    async def convert(self, request: Request) -> Response:
        """Decode or encode payloads. Those that do not open come back as they are, and the log says why."""
        what = request.path_params["what"]
        if not self._is_allowed(request):
            # For whoever has no token there is nothing here, whatever was asked for.
            return _refused(401, "the console's token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        if what not in {"decode", "encode"}:
            return _refused(404, "there are only decode and encode")
        try:
            payloads = Parse(await _body(request), Payloads()).payloads
        except BodyTooLarge:
            return _refused(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        except (ParseError, UnicodeDecodeError, RecursionError):
            return _refused(400, "the body is not the JSON of temporal.api.common.v1.Payloads")
        except ClientDisconnect:
            return _refused(400, "the request ended early")
        codec = self._codec.bound_to(Bound(request.headers.get("x-namespace") or self._namespace))
        try:
            converted = await codec.encode(payloads) if what == "encode" else await _decoded(codec, payloads)
        except SecurityError as error:
            return _refused(503, str(error))
        return Response(MessageToJson(Payloads(payloads=converted), indent=None), media_type="application/json")

    def _is_allowed(self, request: Request) -> bool:
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        given = request.path_params.get("token") or (credentials.strip() if scheme.lower() == "bearer" else "")
        return same_token(given, self._token)


class OnlyFrom:
    """Answers pages of the Web UI, and whoever is no browser; turns the pages of every other site away."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        origin = request.headers.get("origin")
        if origin is None:
            await self._app(scope, receive, send)
            return
        if origin not in _spelled_out(self._origins()):
            await _refused(403, "this origin is not the Web UI's")(scope, receive, send)
            return
        shared = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if request.method == "OPTIONS":
            allowed = {
                "Access-Control-Allow-Methods": "POST",
                "Access-Control-Allow-Headers": "authorization, authorization-extras, content-type, x-namespace",
                "Access-Control-Max-Age": "600",
            }
            await Response(status_code=204, headers=shared | allowed)(scope, receive, send)
            return

        async def send_shared(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower().encode(), value.encode()) for name, value in shared.items()]
                message = message | {"headers": [*message.get("headers", []), *headers]}  # type: ignore[misc]
            await send(message)

        await self._app(scope, receive, send_shared)  # type: ignore[arg-type]


def _spelled_out(origins: Iterable[str]) -> set[str]:
    """The origins, and those on this machine by its other name as well: people type either."""
    spelled = set(origins)
    spelled |= {origin.replace("//127.0.0.1", "//localhost", 1) for origin in spelled}
    return spelled


async def _body(request: Request) -> bytes:
    """What was sent. Raises BodyTooLarge as soon as it is."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge
    return bytes(body)


async def _decoded(codec: EncryptingCodec, payloads: Iterable[Payload]) -> list[Payload]:
    """Each by itself: one whose key is gone hides no other."""
    decoded: list[Payload] = []
    for payload in payloads:
        try:
            decoded += await codec.decode([payload])
        except SecurityError as error:
            log.warning("a payload cannot be decoded", reason=str(error))
            decoded.append(payload)
    return decoded


def _refused(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": why}, status, headers)
