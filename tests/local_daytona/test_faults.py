"""What the fault plan makes the official client meet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from daytona import AsyncDaytona, CreateSandboxFromSnapshotParams, DaytonaConfig, ListSandboxesQuery
from daytona.common.errors import (
    DaytonaBadGatewayError,
    DaytonaConflictError,
    DaytonaConnectionError,
    DaytonaError,
    DaytonaNotFoundError,
    DaytonaRateLimitError,
)

from sandhold.local_daytona.interface import SandboxLookup
from sandhold.local_daytona.server import LocalDaytona as Server
from sandhold.local_daytona.server import ServerOptions
from sandhold.local_daytona.store import DataFolder
from tests.local_daytona.conftest import Api, Trivial
from tests.local_daytona.trivial_runtime import TrivialRuntime
from tests.local_daytona_faults import FaultPlan
from tests.local_daytona_server import API_KEY, LocalDaytona

CREATE = {"method": "POST", "route": "/api/sandbox"}
GET = {"method": "GET", "route": "/api/sandbox/{id}"}


def named(name: str, **more: Any) -> CreateSandboxFromSnapshotParams:
    return CreateSandboxFromSnapshotParams(name=name, **more)


async def names(daytona: AsyncDaytona) -> list[str]:
    return [row.name async for row in daytona.list(ListSandboxesQuery())]


async def test_a_lost_create_answer_leaves_exactly_one_sandbox(
    local_daytona: LocalDaytona, daytona: AsyncDaytona
) -> None:
    rule = await local_daytona.faults.add(effect="answer_lost", times=1, **CREATE)

    with pytest.raises(DaytonaConnectionError):
        await daytona.create(named("lost"))

    assert await local_daytona.faults.hits(rule) == 1
    assert await names(daytona) == ["lost"]
    assert (await daytona.get("lost")).state == "started"
    with pytest.raises(DaytonaConflictError):
        await daytona.create(named("lost"))
    creates = await local_daytona.faults.requests(sandbox="lost", **CREATE)
    assert [(seen.status, seen.faults) for seen in creates] == [(None, ["answer_lost"]), (409, [])]


async def test_a_connection_reset_before_the_work_leaves_none(trivial: Trivial) -> None:
    await trivial.faults.add(effect="reset_before", times=1, **CREATE)

    with pytest.raises(DaytonaConnectionError):
        await trivial.daytona.create(named("never"))

    assert await names(trivial.daytona) == []
    await trivial.daytona.create(named("never"))


async def test_a_reset_within_the_answer_loses_it_after_the_work(trivial: Trivial) -> None:
    await trivial.faults.add(effect="reset_during", times=1, **CREATE)

    with pytest.raises(DaytonaConnectionError):
        await trivial.daytona.create(named("half"))

    assert await names(trivial.daytona) == ["half"]


async def test_a_lost_answer_to_a_refusal_is_lost_too(trivial: Trivial) -> None:
    sandbox = await trivial.daytona.create()
    await sandbox.stop()
    await trivial.faults.add(effect="answer_lost", path=".*/stop")

    with pytest.raises(DaytonaConnectionError):
        await sandbox.stop()


async def test_a_lost_answer_of_an_execute_has_run_the_command(
    local_daytona: LocalDaytona, daytona: AsyncDaytona
) -> None:
    sandbox = await daytona.create()
    await local_daytona.faults.add(effect="answer_lost", times=1, route="/toolbox/{}/process/execute")

    with pytest.raises(DaytonaConnectionError):
        await sandbox.process.exec("echo once >> ran")

    assert (await sandbox.process.exec("cat ran")).result == "once\n"


async def test_a_download_can_break_off_in_the_middle(local_daytona: LocalDaytona, daytona: AsyncDaytona) -> None:
    sandbox = await daytona.create()
    content = bytes(range(256)) * 4096
    await sandbox.fs.upload_file(content, "big")
    rule = await local_daytona.faults.add(effect="reset_during", times=1, path=r"/toolbox/[^/]+/files/.*")

    with pytest.raises(DaytonaError):
        await sandbox.fs.download_file("big")

    assert await local_daytona.faults.hits(rule) == 1
    assert await sandbox.fs.download_file("big") == content


async def test_a_streamed_answer_is_lost_or_cut_like_any_other(tmp_path: Path) -> None:
    def streaming(lookup: SandboxLookup) -> list[aiohttp.web.RouteDef]:
        async def stream(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
            response = aiohttp.web.StreamResponse()
            await response.prepare(request)
            for _ in range(3):
                await response.write(b"12345678")
            return response

        return [aiohttp.web.get("/toolbox/{sandbox_id}/stream", stream)]

    folder = DataFolder.open(tmp_path / "data")
    server = Server(folder, TrivialRuntime(), streaming, ServerOptions(API_KEY, faults=True))
    await server.start()
    try:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {API_KEY}"}) as http:

            async def read() -> bytes:
                async with http.get(f"{server.origin}/toolbox/x/stream") as answer:
                    return await answer.read()

            assert await read() == b"12345678" * 3
            plan = FaultPlan(http, server.api_url, API_KEY)
            for effect in ("answer_lost", "reset_during"):
                await plan.add(effect=effect)
                with pytest.raises(aiohttp.ClientError):
                    await read()
                await plan.clear()
            assert await read() == b"12345678" * 3
    finally:
        await server.close()
        folder.close()


async def test_a_429_carries_its_headers_and_does_no_work(trivial: Trivial) -> None:
    await trivial.faults.add(
        effect="status",
        status=429,
        headers={"Retry-After": "2", "Retry-After-sandbox-create": "2"},
        body={"statusCode": 429, "message": "Rate limit exceeded", "error": "Too Many Requests"},
        times=2,
        **CREATE,
    )

    for _ in range(2):
        with pytest.raises(DaytonaRateLimitError, match="Rate limit exceeded") as caught:
            await trivial.daytona.create(named("limited"))
        assert caught.value.headers["Retry-After-sandbox-create"] == "2"
    assert await names(trivial.daytona) == []
    await trivial.daytona.create(named("limited"))


@pytest.mark.parametrize("status", [500, 502, 503, 504, 403, 409])
async def test_any_status_can_be_asked_for_at_any_step(trivial: Trivial, status: int) -> None:
    sandbox = await trivial.daytona.create()
    await trivial.faults.add(effect="status", status=status)

    for step in (sandbox.refresh_data(), sandbox.stop(), sandbox.delete(), sandbox.process.exec("sleep 0")):
        with pytest.raises(DaytonaError) as caught:
            await step
        assert caught.value.status_code == status


async def test_a_body_may_be_text_as_a_gateway_sends_it(trivial: Trivial) -> None:
    await trivial.faults.add(effect="status", status=502, body="<html>Bad Gateway</html>", times=1, **GET)
    with pytest.raises(DaytonaBadGatewayError, match="<html>"):
        await trivial.daytona.get("x")


async def test_the_third_meaning_of_409_can_be_asked_for(trivial: Trivial) -> None:
    body = {"statusCode": 409, "message": "Sandbox was modified by another operation", "error": "Conflict"}
    sandbox = await trivial.daytona.create()
    await trivial.faults.add(effect="status", status=409, body=body, times=1, method="POST", path=".*/stop")

    with pytest.raises(DaytonaConflictError, match="modified by another operation"):
        await sandbox.stop()
    await sandbox.stop()


async def test_a_delay_before_the_work_holds_it_back_and_one_after_only_the_answer(trivial: Trivial) -> None:
    sandbox = await trivial.daytona.create(named("slow"))
    stop = {"method": "POST", "route": "/api/sandbox/{}/stop"}

    rule = await trivial.faults.add(effect="delay", seconds=600, **stop)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await sandbox.stop()
    assert (await trivial.daytona.get("slow")).state == "started"
    await trivial.faults.remove(rule)

    await trivial.faults.add(effect="delay", seconds=600, when="after", **stop)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await sandbox.stop()
    await sandbox.wait_for_sandbox_stop()


async def test_a_start_can_be_made_to_end_in_error(trivial: Trivial) -> None:
    sandbox = await trivial.daytona.create(named("fails"))
    await sandbox.stop()
    await trivial.faults.add(effect="start_error", reason="no runner", recoverable=True, times=1, path=".*/start")

    with pytest.raises(DaytonaError, match="no runner"):
        await sandbox.start()

    await sandbox.refresh_data()
    assert (sandbox.state, sandbox.error_reason, sandbox.recoverable) == ("error", "no runner", True)
    await sandbox.recover()
    assert sandbox.state == "started"


async def test_a_delete_hangs_until_its_rule_is_removed(trivial: Trivial) -> None:
    sandbox = await trivial.daytona.create(named("hangs"))
    rule = await trivial.faults.add(effect="delete_hangs", method="DELETE", sandbox="hangs")

    await sandbox.delete()
    await sandbox.refresh_data()
    assert sandbox.state == "destroying"
    with pytest.raises(DaytonaConflictError, match="state change in progress"):
        await sandbox.delete()
    await trivial.faults.remove(rule)

    async def until_gone() -> None:
        while True:
            await sandbox.refresh_data()
            await asyncio.sleep(0.01)

    with pytest.raises(DaytonaNotFoundError):
        await asyncio.wait_for(until_gone(), 20)


async def test_rules_apply_in_order_and_count_only_what_reaches_them(trivial: Trivial) -> None:
    first = await trivial.faults.add(effect="status", status=500, times=1, **GET)
    second = await trivial.faults.add(effect="status", status=502, skip=1, times=1, **GET)

    statuses = [(await trivial.api.ask("GET", "/api/sandbox/x"))[0] for _ in range(5)]

    # The first request ends at the first rule; the second passes both as the later one skips it.
    assert statuses == [500, 404, 502, 404, 404]
    assert (await trivial.faults.hits(first), await trivial.faults.hits(second)) == (1, 1)


async def test_a_rule_chooses_sandboxes_by_name_id_and_label(trivial: Trivial) -> None:
    red = await trivial.daytona.create(named("red", labels={"colour": "red"}))
    blue = await trivial.daytona.create(named("blue", labels={"colour": "blue"}))
    await trivial.faults.add(effect="status", status=500, labels={"colour": "red"})
    await trivial.faults.add(effect="status", status=502, sandbox="blue", path="/toolbox/.*")

    async def status(method: str, path: str, **options: Any) -> int:
        return (await trivial.api.ask(method, path, **options))[0]

    assert await status("GET", f"/api/sandbox/{red.id}") == 500
    assert await status("GET", f"/api/sandbox/{blue.id}") == 200
    assert await status("POST", f"/toolbox/{blue.id}/process/execute", json={"command": "sleep 0"}) == 502
    assert await status("POST", "/api/sandbox", json={"name": "x", "labels": {"colour": "red"}}) == 500
    assert await status("POST", "/api/sandbox", json={"name": "x", "labels": {"colour": "blue"}}) == 200


@pytest.mark.parametrize(
    ("rule", "named_in_message"),
    [
        ({}, "effect"),
        ({"effect": "explode"}, "effect"),
        ({"effect": "status"}, "status"),
        ({"effect": "status", "status": 9}, "status"),
        ({"effect": "delay"}, "seconds"),
        ({"effect": "answer_lost", "times": 0}, "times"),
        ({"effect": "answer_lost", "path": "("}, "path"),
        ({"effect": "answer_lost", "typo": 1}, "typo"),
    ],
)
async def test_a_wrong_rule_is_a_400_that_names_the_fault(
    trivial: Trivial, rule: dict[str, object], named_in_message: str
) -> None:
    status, error = await trivial.api.ask("POST", "/faults", json=rule)

    assert status == 400
    assert named_in_message in error["message"]


async def test_the_log_counts_requests_by_route_and_sandbox(local_daytona: LocalDaytona, api: Api) -> None:
    async with AsyncDaytona(DaytonaConfig(api_key=API_KEY, api_url=local_daytona.url)) as daytona:
        sandbox = await daytona.create(named("counted"))
        await sandbox.process.exec("true")
        await daytona.get("counted")
        await daytona.get(sandbox.id)
    await api.ask("GET", "/api/nowhere")

    faults = local_daytona.faults
    assert len(await faults.requests(sandbox="counted", **CREATE)) == 1
    assert len(await faults.requests(sandbox="counted", **GET)) == 2
    (execute,) = await faults.requests(route="/toolbox/{}/process/execute", sandbox=sandbox.id)
    assert (execute.method, execute.status) == ("POST", 200)
    assert [seen.status for seen in await faults.requests(route="/api/nowhere")] == [501]
    await faults.forget_requests()
    assert await faults.requests() == []


async def test_without_the_option_there_is_no_fault_plan(tmp_path: Path) -> None:
    folder = DataFolder.open(tmp_path / "data")
    server = Server(folder, TrivialRuntime(), lambda lookup: [], ServerOptions(API_KEY))
    await server.start()
    try:
        async with aiohttp.ClientSession() as http:
            api = Api(http, server.origin)
            assert (await api.ask("GET", "/faults"))[0] == 501
            assert (await api.ask("POST", "/faults", json={"effect": "reset_before"}))[0] == 501
    finally:
        await server.close()
        folder.close()


async def test_removing_a_rule_that_is_not_there_is_a_404(trivial: Trivial) -> None:
    assert (await trivial.api.ask("DELETE", "/faults/99"))[0] == 404
    assert (await trivial.api.ask("DELETE", "/faults/all"))[0] == 400
