"""The control plane on the wire: the routes of the provider's API that this server has.

Names of path parameters, status codes and answers are those of the official client
(`daytona_api_client_async` of `daytona` 0.226.1).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from aiohttp import web

from sandhold.local_daytona.errors import ApiError, bad_request, timestamp
from sandhold.local_daytona.fault_routes import INTERFERENCE
from sandhold.local_daytona.housekeeping import MAX_AUTO_ARCHIVE_MINUTES
from sandhold.local_daytona.listing import page_of, read_list_query
from sandhold.local_daytona.records import SandboxRecord
from sandhold.local_daytona.requests import CreateRequest, LabelsRequest, read_body
from sandhold.local_daytona.snapshots import DEFAULT_SNAPSHOT, SNAPSHOTS, find_snapshot
from sandhold.local_daytona.transitions import NO_INTERFERENCE, Interference, Sandbox, Sandboxes

#: How long a create waits for the sandbox before it answers with what there is.
CREATE_WAIT_S = 30.0

#: The largest number of minutes that a path may name; a century.
_MAX_MINUTES = 100 * 366 * 24 * 60

_Set = Callable[[SandboxRecord, int], None]


class ControlRoutes:
    """The handlers, and what they need: the sandboxes, the organisation and the server's own address."""

    def __init__(self, sandboxes: Sandboxes, organization_id: str, origin: Callable[[], str]) -> None:
        self._sandboxes = sandboxes
        self._organization_id = organization_id
        self._origin = origin
        self._since = datetime.now(UTC)

    def table(self) -> list[web.RouteDef]:
        one = "/api/sandbox/{sandboxIdOrName}"
        return [
            web.post("/api/sandbox", self.create),
            web.get("/api/sandbox", self.list),
            web.get(one, self.get),
            web.delete(one, self.delete),
            web.post(f"{one}/start", self.start),
            web.post(f"{one}/stop", self.stop),
            web.post(f"{one}/archive", self.archive),
            web.post(f"{one}/recover", self.recover),
            web.put(f"{one}/labels", self.replace_labels),
            web.post(f"{one}/public/{{isPublic}}", self.set_public),
            web.post(f"{one}/autostop/{{interval}}", self._minutes_setter("interval", _set_auto_stop)),
            web.post(f"{one}/autopause/{{interval}}", self._minutes_setter("interval", _set_auto_pause)),
            web.post(f"{one}/autoarchive/{{interval}}", self._minutes_setter("interval", _set_auto_archive)),
            web.post(
                f"{one}/autodelete/{{interval}}",
                self._minutes_setter("interval", _set_auto_delete, may_be_negative=True),
            ),
            web.post(f"{one}/ttl/{{ttlMinutes}}", self._minutes_setter("ttlMinutes", self._set_ttl)),
            web.post(f"{one}/last-activity", self.touch),
            web.get(f"{one}/toolbox-proxy-url", self.toolbox_proxy_url),
            web.get("/api/snapshots", self.list_snapshots),
            web.get("/api/snapshots/{id}", self.get_snapshot),
            web.get("/api/api-keys/current", self.current_key),
            web.get("/api/config", self.config),
        ]

    # Sandboxes

    async def create(self, request: web.Request) -> web.Response:
        asked = await read_body(request, CreateRequest)
        sandbox = await self._sandboxes.create(asked, _interference(request))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(sandbox.settled.wait(), CREATE_WAIT_S)
        return self._shown(sandbox)

    async def list(self, request: web.Request) -> web.Response:
        page = page_of((sandbox.record for sandbox in self._sandboxes), read_list_query(request))
        rows = [record.list_item(self._organization_id, self.toolbox_url()) for record in page.records]
        return web.json_response({"items": rows, "nextCursor": page.next_cursor})

    async def get(self, request: web.Request) -> web.Response:
        return self._shown(self._sandboxes.find(_key(request)))

    async def delete(self, request: web.Request) -> web.Response:
        return self._shown(await self._sandboxes.delete(_key(request), _interference(request)))

    async def start(self, request: web.Request) -> web.Response:
        return self._shown(await self._sandboxes.start(_key(request), _interference(request)))

    async def stop(self, request: web.Request) -> web.Response:
        # `force` asks for SIGKILL; every stop ends the namespaces at once here.
        return self._shown(await self._sandboxes.stop(_key(request), _interference(request)))

    async def archive(self, request: web.Request) -> web.Response:
        return self._shown(await self._sandboxes.archive(_key(request)))

    async def recover(self, request: web.Request) -> web.Response:
        return self._shown(await self._sandboxes.recover(_key(request), _interference(request)))

    async def replace_labels(self, request: web.Request) -> web.Response:
        labels = (await read_body(request, LabelsRequest)).labels
        sandbox = self._sandboxes.find(_key(request))
        sandbox.record.labels = labels
        await self._sandboxes.save(sandbox)
        return web.json_response({"labels": labels})

    async def set_public(self, request: web.Request) -> web.Response:
        given = request.match_info["isPublic"].lower()
        if given not in ("true", "false"):
            raise bad_request("isPublic: must be true or false")
        sandbox = self._sandboxes.find(_key(request))
        sandbox.record.public = given == "true"
        await self._sandboxes.save(sandbox)
        return self._shown(sandbox)

    async def touch(self, request: web.Request) -> web.Response:
        self._sandboxes.find(_key(request))
        self._sandboxes.touch(_key(request))
        return web.Response(status=201)

    async def toolbox_proxy_url(self, request: web.Request) -> web.Response:
        self._sandboxes.find(_key(request))
        return web.json_response({"url": self.toolbox_url()})

    # Everything else

    async def list_snapshots(self, request: web.Request) -> web.Response:
        page = _whole_number(request.query.get("page", "1"), "page")
        limit = _whole_number(request.query.get("limit", "100"), "limit")
        if page < 1 or limit < 1:
            raise bad_request("page and limit: must be at least 1")
        shown = SNAPSHOTS[(page - 1) * limit : page * limit]
        return web.json_response(
            {
                "items": [snapshot.shown(self._organization_id, self._since) for snapshot in shown],
                "total": len(SNAPSHOTS),
                "page": page,
                "totalPages": -(-len(SNAPSHOTS) // limit),
            }
        )

    async def get_snapshot(self, request: web.Request) -> web.Response:
        key = request.match_info["id"]
        snapshot = find_snapshot(key)
        if snapshot is None:
            raise ApiError(404, f"Snapshot with ID or name {key} not found")
        return web.json_response(snapshot.shown(self._organization_id, self._since))

    async def current_key(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "name": "local",
                "value": "****",
                "createdAt": timestamp(self._since),
                "permissions": ["write:sandboxes", "delete:sandboxes"],
                "lastUsedAt": None,
                "expiresAt": None,
                "userId": "local",
                "organizationId": self._organization_id,
            }
        )

    async def config(self, request: web.Request) -> web.Response:
        origin = self._origin()
        return web.json_response(
            {
                "version": "local",
                "oidc": {"issuer": origin, "clientId": "local", "audience": "local", "provider": "none"},
                "linkedAccountsEnabled": False,
                "announcements": {},
                "proxyTemplateUrl": f"{origin}/toolbox",
                "proxyToolboxUrl": self.toolbox_url(),
                "defaultSnapshot": DEFAULT_SNAPSHOT.name,
                "dashboardUrl": origin,
                "maxAutoArchiveInterval": MAX_AUTO_ARCHIVE_MINUTES,
                "maintananceMode": False,
                "environment": "local",
            }
        )

    def toolbox_url(self) -> str:
        return f"{self._origin()}/toolbox"

    # Inside

    def _shown(self, sandbox: Sandbox) -> web.Response:
        return web.json_response(sandbox.record.details(self._organization_id, self.toolbox_url()))

    def _minutes_setter(
        self, parameter: str, set_minutes: _Set, *, may_be_negative: bool = False
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """The handler of a route whose last part is a number of minutes."""

        async def handler(request: web.Request) -> web.Response:
            minutes = _whole_number(request.match_info[parameter], parameter)
            if minutes < 0 and not may_be_negative:
                raise bad_request(f"{parameter}: must be a non-negative integer")
            sandbox = self._sandboxes.find(_key(request))
            set_minutes(sandbox.record, minutes)
            await self._sandboxes.save(sandbox)
            return self._shown(sandbox)

        return handler

    def _set_ttl(self, record: SandboxRecord, minutes: int) -> None:
        record.set_ttl(minutes, self._sandboxes.minute)


def _set_auto_stop(record: SandboxRecord, minutes: int) -> None:
    record.auto_stop_interval = minutes


def _set_auto_pause(record: SandboxRecord, minutes: int) -> None:
    record.auto_pause_interval = minutes


def _set_auto_archive(record: SandboxRecord, minutes: int) -> None:
    record.auto_archive_interval = minutes


def _set_auto_delete(record: SandboxRecord, minutes: int) -> None:
    record.auto_delete_interval = minutes


def _key(request: web.Request) -> str:
    return request.match_info["sandboxIdOrName"]


def _interference(request: web.Request) -> Interference:
    interference: Interference = request.get(INTERFERENCE, NO_INTERFERENCE)
    return interference


def _whole_number(text: str, name: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise bad_request(f"{name}: must be an integer")
    number = int(text)
    if number > _MAX_MINUTES:
        raise bad_request(f"{name}: must be at most {_MAX_MINUTES}")
    return number
