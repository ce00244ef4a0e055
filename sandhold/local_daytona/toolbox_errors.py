"""The errors of toolbox routes, in the JSON shape that the client turns into its typed errors."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web

_SOURCE = "DAYTONA_DAEMON"


class DaemonError(Exception):
    """A toolbox request that fails. `code` is one of the client's `DaemonErrorCode` values."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    def body(self, method: str, path: str) -> dict[str, object]:
        return {
            "statusCode": self.status,
            "message": self.message,
            "code": self.code,
            "source": _SOURCE,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "path": path,
            "method": method,
        }


def invalid_body(message: str) -> DaemonError:
    return DaemonError(400, "INVALID_REQUEST_BODY", message)


def bad_request(message: str) -> DaemonError:
    return DaemonError(400, "BAD_REQUEST", message)


def daemon_path(request: web.Request) -> str:
    """The path as the daemon inside the sandbox would see it: without `/toolbox/{id}`."""
    return "/" + request.path.split("/", 3)[3] if request.path.count("/") >= 3 else "/"


def error_response(error: DaemonError, request: web.Request) -> web.Response:
    return web.json_response(error.body(request.method, daemon_path(request)), status=error.status)
