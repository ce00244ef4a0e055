"""What every request passes: one shape for errors, the key, and the note of activity."""

from __future__ import annotations

import asyncio
import hmac
import logging
from datetime import timedelta

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sandhold.local_daytona.errors import TOOLBOX_PREFIX, ApiError, error_response
from sandhold.local_daytona.events import SOCKET_PATH
from sandhold.local_daytona.transitions import Sandboxes

log = logging.getLogger(__name__)

SKIP_ACTIVITY_HEADER = "X-Daytona-Skip-Last-Activity-Update"


def errors_as_json() -> Middleware:
    """Every refusal and every failure answers in the provider's JSON."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            return error_response(request, error.status_code, error.message, _own_headers(error))
        except web.HTTPException as error:
            if error.content_type == "application/json":
                return web.Response(
                    status=error.status, headers=_own_headers(error), body=error.body, content_type="application/json"
                )
            return error_response(request, error.status_code, error.text or error.reason, _own_headers(error))
        except ConnectionError:
            raise  # the client has gone; aiohttp knows what to do
        except Exception as error:
            log.exception("%s %s failed", request.method, request.path)
            return error_response(request, 500, f"Internal server error: {type(error).__name__}")

    return middleware


def bearer_required(api_key: str) -> Middleware:
    """Only requests with the key pass. Socket.IO brings the key in its own handshake."""
    expected = f"Bearer {api_key}".encode()

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.rstrip("/") != f"/{SOCKET_PATH}":
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, expected):
                return error_response(request, 401, "Unauthorized")
        return await handler(request)

    return middleware


def unknown_routes_named() -> Middleware:
    """A route that this server does not have is a 501 with its name, not a 404 that looks like an answer."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.match_info.http_exception is not None:
            raise ApiError(501, f"This local server does not implement {request.method} {request.path}")
        return await handler(request)

    return middleware


def toolbox_activity(sandboxes: Sandboxes, period: timedelta) -> Middleware:
    """A toolbox request counts as activity when it begins, and once in `period` while it is open."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        sandbox_id = request.match_info.get("sandbox_id")
        skipped = request.headers.get(SKIP_ACTIVITY_HEADER, "").lower() == "true"
        if sandbox_id is None or skipped or not request.path.startswith(f"{TOOLBOX_PREFIX}/"):
            return await handler(request)

        async def keep_touching(sandbox_id: str) -> None:
            while True:
                sandboxes.note_traffic(sandbox_id)
                await asyncio.sleep(period.total_seconds())

        touching = asyncio.create_task(keep_touching(sandbox_id))
        try:
            return await handler(request)
        finally:
            touching.cancel()

    return middleware


def _own_headers(error: web.HTTPException) -> dict[str, str]:
    return {
        name: value for name, value in error.headers.items() if name.lower() not in ("content-type", "content-length")
    }
