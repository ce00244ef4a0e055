"""The provider's refusals: one exception, and the two JSON shapes that the client reads.

The control plane answers `{path, timestamp, statusCode, error, message}`; what lies behind the toolbox
proxy answers the daemon's shape, whose `source` and `code` the client turns into its typed errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus

from aiohttp import web

#: Everything below this path belongs to the toolbox proxy, the rest to the control plane.
TOOLBOX_PREFIX = "/toolbox"

_DAEMON_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    408: "REQUEST_TIMEOUT",
    409: "CONFLICT",
    410: "GONE",
    422: "UNPROCESSABLE_ENTITY",
    500: "INTERNAL_SERVER_ERROR",
}


class ApiError(web.HTTPException):
    """A refusal as the provider would answer it; `message` is written for the caller to act on."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = status  # aiohttp reads it while it builds the response half of the exception
        super().__init__(headers=headers, text=message)
        self.message = message

    def __str__(self) -> str:
        return f"{self.status_code}: {self.message}"


def bad_request(message: str) -> ApiError:
    return ApiError(400, message)


def sandbox_not_found(key: str) -> ApiError:
    return ApiError(404, f"Sandbox with ID or name {key} not found")


def name_taken(name: str) -> ApiError:
    return ApiError(409, f"Sandbox with name {name} already exists")


def state_change_in_progress() -> ApiError:
    return ApiError(409, "Sandbox state change in progress")


def status_phrase(status: int) -> str:
    """The words for a status code, also for one that HTTP does not know."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


def timestamp(moment: datetime | None = None) -> str:
    """RFC 3339 in UTC with milliseconds, as the provider writes times."""
    return (moment or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def error_body(request: web.BaseRequest, status: int, message: str) -> dict[str, object]:
    """The JSON of a refusal of `request`, in the shape of the part of the provider that it addressed."""
    if request.path.startswith(f"{TOOLBOX_PREFIX}/"):
        return {
            "statusCode": status,
            "message": message,
            "code": _DAEMON_CODES.get(status, "INTERNAL_SERVER_ERROR" if status >= 500 else "BAD_REQUEST"),
            "source": "DAYTONA_DAEMON",
            "timestamp": timestamp(),
            "path": request.path,
            "method": request.method,
        }
    return {
        "path": request.path,
        "timestamp": timestamp(),
        "statusCode": status,
        "error": status_phrase(status),
        "message": message,
    }


def error_response(
    request: web.BaseRequest, status: int, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.json_response(error_body(request, status, message), status=status, headers=headers)
