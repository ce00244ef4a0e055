"""The fault plan on the wire: the middleware that applies it, and the routes under `/faults` that set it.

GET /faults                 the rules, each with how often it was seen and applied
POST /faults                a rule (`faults.Rule` as JSON); answers it with its id
DELETE /faults[/ID]         takes out all rules or one
GET /faults/requests        the request log; `?method=`, `?route=`, `?sandbox=` choose
DELETE /faults/requests     empties the log
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sandhold.local_daytona.errors import ApiError, bad_request
from sandhold.local_daytona.events import SOCKET_PATH
from sandhold.local_daytona.faults import Asked, FaultPlan, PlannedInterference, PlannedRule, Rule
from sandhold.local_daytona.requests import MAX_BODY_BYTES, read_body
from sandhold.local_daytona.transitions import Interference, Sandboxes

FAULTS_PATH = "/faults"

#: What the fault plan does to the change of state that a request asks for.
INTERFERENCE = web.RequestKey("interference", Interference)
_CUT = web.RequestKey("cut", str)

_SANDBOX_PARAMETERS = ("sandboxIdOrName", "sandboxId", "sandbox_id")


def fault_routes(plan: FaultPlan) -> list[web.RouteDef]:
    """The routes that set and show the plan; they are never subject to it."""

    async def show(request: web.Request) -> web.Response:
        return web.json_response({"rules": plan.shown()})

    async def add(request: web.Request) -> web.Response:
        return web.json_response(plan.add(await read_body(request, Rule)).shown(), status=201)

    async def clear(request: web.Request) -> web.Response:
        plan.clear()
        return web.Response(status=204)

    async def remove(request: web.Request) -> web.Response:
        rule_id = request.match_info["id"]
        if not rule_id.isascii() or not rule_id.isdigit():
            raise bad_request("id: must be the number of a rule")
        if not plan.remove(int(rule_id)):
            raise ApiError(404, f"Rule {rule_id} not found")
        return web.Response(status=204)

    async def requests(request: web.Request) -> web.Response:
        query = request.query
        found = plan.requests(query.get("method"), query.get("route"), query.get("sandbox"))
        return web.json_response({"requests": found})

    async def forget(request: web.Request) -> web.Response:
        plan.forget_requests()
        return web.Response(status=204)

    return [
        web.get(FAULTS_PATH, show),
        web.post(FAULTS_PATH, add),
        web.delete(FAULTS_PATH, clear),
        web.get(f"{FAULTS_PATH}/requests", requests),
        web.delete(f"{FAULTS_PATH}/requests", forget),
        web.delete(f"{FAULTS_PATH}/{{id}}", remove),
    ]


def faults_applied(plan: FaultPlan, sandboxes: Sandboxes) -> Middleware:
    """Every request to the provider's interface is logged, and meets the effects that the plan has for it."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith((FAULTS_PATH, f"/{SOCKET_PATH}")):
            return await handler(request)
        asked = await _asked(request, sandboxes)
        entry = plan.log_request(asked)
        due = plan.effects_for(asked)
        entry.faults = [planned.rule.effect for planned in due]
        request[INTERFERENCE] = PlannedInterference(due)

        answer: web.StreamResponse | None = await _before_the_work(request, due)
        if answer is None:
            if cut := next((e for e in entry.faults if e in ("answer_lost", "reset_during")), None):
                request[_CUT] = cut
            try:
                answer = await handler(request)
            except ConnectionError:
                if _CUT not in request:
                    raise
                return web.Response()  # for a connection that the plan has cut already
            for planned in due:
                if planned.rule.effect == "delay" and planned.rule.when == "after":
                    await asyncio.sleep(planned.rule.seconds or 0)
            if _CUT in request:
                answer = await _cut_off(request, answer)
        if request.transport is not None and not request.transport.is_closing():
            entry.status = answer.status
        return answer

    return middleware


async def cut_streams(request: web.Request, response: web.StreamResponse) -> None:
    """Do to an answer that is sent bit by bit what the plan says; for the signal `on_response_prepare`."""
    if isinstance(response, web.Response) or _CUT not in request:
        return
    if request[_CUT] == "answer_lost":
        _reset_connection(request)
        return
    send = response.write

    async def send_half_and_reset(data: bytes | bytearray | memoryview) -> None:
        await send(bytes(data)[: (len(data) + 1) // 2])
        _reset_connection(request)

    response.write = send_half_and_reset  # type: ignore[method-assign]


async def _before_the_work(request: web.Request, due: list[PlannedRule]) -> web.Response | None:
    """Wait as long as the plan says. An answer is the plan's own: the work is then not to be done."""
    for planned in due:
        rule = planned.rule
        if rule.effect == "delay" and rule.when == "before":
            await asyncio.sleep(rule.seconds or 0)
        elif rule.effect == "reset_before":
            _reset_connection(request)
            return web.Response()
        elif rule.effect == "status":
            if isinstance(rule.body, str):
                return web.Response(status=rule.status or 500, headers=rule.headers, text=rule.body)
            if rule.body is not None:
                return web.json_response(rule.body, status=rule.status or 500, headers=rule.headers)
            raise ApiError(rule.status or 500, "The fault plan asked for this answer", rule.headers)
    return None


async def _cut_off(request: web.Request, answer: web.StreamResponse) -> web.StreamResponse:
    """Lose the finished answer, or all but its first half. One that was sent bit by bit is cut already."""
    if not isinstance(answer, web.Response):
        return answer
    if request[_CUT] == "answer_lost":
        _reset_connection(request)
        return answer
    body = answer.body if isinstance(answer.body, bytes | bytearray) else b""
    partial = web.StreamResponse(status=answer.status, headers=answer.headers)
    partial.content_length = max(len(body), 2)  # so that even an empty body breaks off too early
    await partial.prepare(request)
    await partial.write(body or b"  ")
    return partial


def _reset_connection(request: web.Request) -> None:
    """Cut the request's connection at once; the client sees a reset."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        # Closing a socket that does not linger sends RST instead of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _asked(request: web.Request, sandboxes: Sandboxes) -> Asked:
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else request.path
    key = next((value for name in _SANDBOX_PARAMETERS if (value := request.match_info.get(name))), None)
    if key is not None:
        sandbox = sandboxes.look_up(key)
        if sandbox is None:
            return Asked(request.method, route, request.path, frozenset({key}))
        names = frozenset({key, sandbox.record.id, sandbox.record.name})
        return Asked(request.method, route, request.path, names, sandbox.record.labels)
    name, labels = await _named_in_body(request) if request.method == "POST" else (None, {})
    return Asked(request.method, route, request.path, frozenset({name} if name else ()), labels)


async def _named_in_body(request: web.Request) -> tuple[str | None, dict[str, str]]:
    """The name and the labels in the body of a create; nothing from a body that is none."""
    if (request.content_length or 0) > MAX_BODY_BYTES:
        return None, {}
    try:
        body = json.loads(await request.read())
    except ValueError:
        return None, {}
    if not isinstance(body, dict):
        return None, {}
    name, labels = body.get("name"), body.get("labels")
    return name if isinstance(name, str) else None, labels if isinstance(labels, dict) else {}
