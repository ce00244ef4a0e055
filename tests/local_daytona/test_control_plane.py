"""What the control plane shows and accepts, judged by the official client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from daytona import (
    AsyncDaytona,
    CreateSandboxFromImageParams,
    CreateSandboxFromSnapshotParams,
    DaytonaConfig,
    ListSandboxesQuery,
    Resources,
)
from daytona.common.errors import (
    DaytonaAuthenticationError,
    DaytonaBadRequestError,
    DaytonaConflictError,
    DaytonaNotFoundError,
)

from tests.local_daytona.conftest import Api, StartTrivial, Trivial
from tests.local_daytona_server import LocalDaytona


def named(name: str, **more: Any) -> CreateSandboxFromSnapshotParams:
    return CreateSandboxFromSnapshotParams(name=name, **more)


async def test_a_created_sandbox_is_what_was_asked_for(daytona: AsyncDaytona) -> None:
    sandbox = await daytona.create(
        CreateSandboxFromSnapshotParams(
            name="as-asked",
            labels={"team": "blue"},
            env_vars={"GREETING": "hello"},
            public=True,
            auto_stop_interval=7,
            auto_archive_interval=60,
            auto_delete_interval=120,
            ttl_minutes=240,
            snapshot="daytona-medium",
        )
    )

    assert sandbox.state == "started"
    assert sandbox.name == "as-asked"
    assert sandbox.labels == {"team": "blue", "code-toolbox-language": "python"}
    assert sandbox.env == {"GREETING": "hello"}
    assert sandbox.user == "daytona"
    assert sandbox.public is True
    assert (sandbox.cpu, sandbox.memory, sandbox.disk) == (2, 4, 8)
    assert sandbox.auto_stop_interval == 7
    assert sandbox.auto_archive_interval == 60
    assert sandbox.auto_delete_interval == 120
    assert sandbox.auto_destroy_at is not None
    assert (await sandbox.process.exec("echo $GREETING")).result.strip() == "hello"


async def test_a_sandbox_without_wishes_gets_the_providers_defaults(daytona: AsyncDaytona) -> None:
    sandbox = await daytona.create()

    assert sandbox.name == sandbox.id
    assert (sandbox.cpu, sandbox.memory, sandbox.disk) == (1, 1, 3)
    assert (sandbox.auto_stop_interval, sandbox.auto_delete_interval) == (15, -1)
    assert sandbox.auto_destroy_at is None
    assert sandbox.snapshot == "daytona-small"
    assert sandbox.public is False


async def test_a_sandbox_is_found_by_id_and_by_name(trivial: Trivial) -> None:
    sandbox = await trivial.daytona.create(named("found"))

    assert (await trivial.daytona.get(sandbox.id)).name == "found"
    assert (await trivial.daytona.get("found")).id == sandbox.id
    with pytest.raises(DaytonaNotFoundError):
        await trivial.daytona.get("not-there")


async def test_a_name_in_use_is_a_conflict_that_says_so(trivial: Trivial) -> None:
    await trivial.daytona.create(named("taken"))

    with pytest.raises(DaytonaConflictError, match="Sandbox with name taken already exists"):
        await trivial.daytona.create(named("taken"))


async def test_of_many_creates_under_one_name_exactly_one_succeeds(trivial: Trivial) -> None:
    outcomes = await asyncio.gather(
        *(trivial.daytona.create(named("wanted")) for _ in range(20)), return_exceptions=True
    )

    assert sum(isinstance(outcome, DaytonaConflictError) for outcome in outcomes) == 19
    assert len(trivial.runtime.started) == 1


async def test_an_accepted_delete_frees_the_name_at_once(trivial: Trivial) -> None:
    first = await trivial.daytona.create(named("again"))
    await trivial.faults.add(effect="delete_hangs")
    await trivial.daytona.delete(first)

    with pytest.raises(DaytonaNotFoundError):
        await trivial.daytona.get("again")
    second = await trivial.daytona.create(named("again"))

    assert second.id != first.id
    await first.refresh_data()
    assert first.state == "destroying"
    assert first.name.startswith("DESTROYED_again_")


async def test_a_destroyed_sandbox_is_not_found_any_more(trivial: Trivial) -> None:
    sandbox = await trivial.daytona.create(named("gone"))
    await trivial.daytona.delete(sandbox, wait=True)

    assert sandbox.state == "destroyed"
    for key in (sandbox.id, "gone"):
        with pytest.raises(DaytonaNotFoundError):
            await trivial.daytona.get(key)
    with pytest.raises(DaytonaNotFoundError):
        await trivial.daytona.delete(sandbox)


@pytest.mark.parametrize(
    "name",
    ["two words", "slash/../in ?it#", "per%2Fcent", "Ünïcödé 砂箱", "quote\"s'`$(x)", "a < b > c", "x" * 3000, "."],
)
async def test_a_strange_name_works_everywhere(trivial: Trivial, name: str) -> None:
    sandbox = await trivial.daytona.create(named(name))

    assert sandbox.name == name
    rows = [row.name async for row in trivial.daytona.list(ListSandboxesQuery(name=name))]
    assert rows == [name]
    if name != ".":  # which no client can put into a path
        status, found = await trivial.api.ask("GET", f"/api/sandbox/{quote(name, safe='')}")
        assert (status, found["id"]) == (200, sandbox.id)


@pytest.mark.parametrize(
    "name", ["", "   ", "<b>bold</b>", "<script src=x>", "https://example.org", "www.example.org", "new\nline", "\0"]
)
async def test_a_name_with_markup_or_addresses_or_control_characters_is_refused(trivial: Trivial, name: str) -> None:
    with pytest.raises(DaytonaBadRequestError, match="name"):
        await trivial.daytona.create(named(name))


async def test_strange_labels_are_kept_and_found(trivial: Trivial) -> None:
    labels = {"a.b/c": "x y", "": "", "\u7802\n": '"quoted" & <b>', "long": "v" * 5000}
    sandbox = await trivial.daytona.create(named("labelled", labels=dict(labels)))
    await trivial.daytona.create(named("unlabelled"))

    assert labels.items() <= sandbox.labels.items()
    rows = [row.id async for row in trivial.daytona.list(ListSandboxesQuery(labels=labels))]
    assert rows == [sandbox.id]


async def test_labels_are_replaced_as_a_whole(trivial: Trivial) -> None:
    sandbox = await trivial.daytona.create(named("relabelled", labels={"old": "1"}))

    assert await sandbox.set_labels({"new": "2"}) == {"new": "2"}
    assert (await trivial.daytona.get("relabelled")).labels == {"new": "2"}


async def test_timers_and_visibility_can_be_set_later(trivial: Trivial) -> None:
    sandbox = await trivial.daytona.create(named("timers"))

    await sandbox.set_autostop_interval(3)
    await sandbox.set_auto_archive_interval(4)
    await sandbox.set_auto_delete_interval(-1)
    await sandbox.set_auto_pause_interval(0)
    await sandbox.set_ttl(6)
    await sandbox.set_public(True)

    found = await trivial.daytona.get("timers")
    assert (found.auto_stop_interval, found.auto_archive_interval, found.auto_delete_interval) == (3, 4, -1)
    assert found.auto_destroy_at is not None
    assert found.public is True
    await sandbox.set_ttl(0)
    assert (await trivial.daytona.get("timers")).auto_destroy_at is None


@pytest.mark.parametrize(
    "path",
    ["autostop/-1", "autostop/soon", "autostop/1.5", "ttl/-3", "ttl/99999999999", "autoarchive/%20", "public/maybe"],
)
async def test_a_wrong_value_in_a_path_is_a_400_that_names_it(trivial: Trivial, path: str) -> None:
    await trivial.daytona.create(named("strict"))

    status, error = await trivial.api.ask("POST", f"/api/sandbox/strict/{path}")

    assert status == 400
    assert error["message"].split(":")[0] in ("interval", "ttlMinutes", "isPublic")


async def test_sizes_may_be_given_without_a_snapshot_only(trivial: Trivial) -> None:
    status, sandbox = await trivial.api.ask("POST", "/api/sandbox", json={"cpu": 4, "memory": 8, "disk": 10})
    assert (status, sandbox["cpu"], sandbox["memory"], sandbox["disk"]) == (200, 4, 8, 10)

    body = {"cpu": 1, "snapshot": "daytona-small"}
    status, error = await trivial.api.ask("POST", "/api/sandbox", json=body)
    assert status == 400
    assert "Cannot specify Sandbox resources when using a snapshot" in error["message"]


@pytest.mark.parametrize(
    ("body", "named_in_message"),
    [
        ({"cpu": 5}, "cpu"),
        ({"memory": 9}, "memory"),
        ({"disk": 11}, "disk"),
        ({"disk": 0}, "disk"),
        ({"cpu": "2"}, "cpu"),
        ({"cpu": 1.5}, "cpu"),
        ({"cpu": True}, "cpu"),
        ({"name": 5}, "name"),
        ({"labels": {"a": 1}}, "labels.a"),
        ({"labels": ["a"]}, "labels"),
        ({"env": {"A": None}}, "env.A"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"env": {"A": "x\0"}}, "env"),
        ({"public": "yes"}, "public"),
        ({"autoStopInterval": -1}, "autoStopInterval"),
        ({"ttlMinutes": "5"}, "ttlMinutes"),
        ({"snapshot": "no-such"}, "no-such"),
        ({"user": "root"}, "daytona"),
        ({"gpu": 1}, "gpu"),
        ({"volumes": [{"volumeId": "v", "mountPath": "/v"}]}, "volumes"),
        ({"networkAllowList": "10.0.0.0/8"}, "networkAllowList"),
        ({"domainAllowList": "example.org"}, "domainAllowList"),
        ({"linkedSandbox": "other"}, "linkedSandbox"),
        ([], "object"),
        ("text", "object"),
    ],
)
async def test_a_create_that_cannot_be_is_a_400_that_names_the_reason(
    trivial: Trivial, body: object, named_in_message: str
) -> None:
    status, error = await trivial.api.ask("POST", "/api/sandbox", json=body)

    assert status == 400
    assert named_in_message in error["message"]
    assert trivial.runtime.started == {}


async def test_an_image_is_refused_as_nothing_can_be_built_here(trivial: Trivial) -> None:
    params = CreateSandboxFromImageParams(image="debian:12", resources=Resources(cpu=2))
    with pytest.raises(DaytonaBadRequestError, match="cannot build images"):
        await trivial.daytona.create(params)


async def test_a_body_that_is_not_json_is_a_400_and_one_too_large_a_413(trivial: Trivial) -> None:
    status, error = await trivial.api.ask("POST", "/api/sandbox", data=b"{not json")
    assert (status, error["error"]) == (400, "Bad Request")

    status, error = await trivial.api.ask("POST", "/api/sandbox", json={"name": "x" * 1024 * 1024})
    assert status == 413


async def test_an_error_has_the_providers_fields(trivial: Trivial) -> None:
    status, error = await trivial.api.ask("GET", "/api/sandbox/nobody")

    assert status == 404
    assert set(error) == {"path", "timestamp", "statusCode", "error", "message"}
    assert (error["path"], error["statusCode"], error["error"]) == ("/api/sandbox/nobody", 404, "Not Found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/sandbox"),
        ("POST", "/api/sandbox"),
        ("GET", "/api/nowhere"),
        ("POST", "/toolbox/x/process/execute"),
        ("GET", "/faults"),
    ],
)
@pytest.mark.parametrize("given", ["", "Bearer wrong", "Bearer", "Basic a2V5", "Bearer ключ"])
async def test_no_request_passes_without_the_key(trivial: Trivial, method: str, path: str, given: str) -> None:
    status, error = await trivial.api.ask(method, path, headers={"Authorization": given})

    assert (status, error["message"]) == (401, "Unauthorized")


async def test_the_client_calls_a_wrong_key_an_authentication_error(local_daytona: LocalDaytona) -> None:
    async with AsyncDaytona(DaytonaConfig(api_key="wrong", api_url=local_daytona.url)) as client:
        with pytest.raises(DaytonaAuthenticationError):
            await client.get("anything")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/volumes"), ("PATCH", "/api/sandbox"), ("POST", "/api/sandbox/x/fork"), ("GET", "/")],
)
async def test_an_unknown_route_is_a_501_with_its_name(trivial: Trivial, method: str, path: str) -> None:
    status, error = await trivial.api.ask(method, path)

    assert status == 501
    assert f"{method} {path}" in error["message"]


async def test_sixty_sandboxes_are_listed_once_each_by_cursor(trivial: Trivial) -> None:
    created = {(await trivial.daytona.create(named(f"row-{n}"))).id for n in range(60)}

    query = ListSandboxesQuery(limit=7)
    rows = [row.id async for row in trivial.daytona.list(query)]

    assert len(rows) == 60
    assert set(rows) == created


async def test_a_cursor_survives_sandboxes_that_come_and_go(trivial: Trivial) -> None:
    sandboxes = [await trivial.daytona.create(named(f"row-{n}")) for n in range(6)]
    _, first = await trivial.api.ask("GET", "/api/sandbox?limit=3&sort=name&order=asc")
    await trivial.daytona.delete(sandboxes[0], wait=True)
    await trivial.daytona.create(named("earlier-than-all"))
    cursor = first["nextCursor"]

    _, second = await trivial.api.ask("GET", f"/api/sandbox?limit=3&sort=name&order=asc&cursor={cursor}")

    assert [row["name"] for row in second["items"]] == ["row-3", "row-4", "row-5"]
    assert second["nextCursor"] is None


async def test_a_list_is_filtered_and_sorted(trivial: Trivial) -> None:
    for name, colour in (("apple", "red"), ("apricot", "orange"), ("banana", "yellow")):
        await trivial.daytona.create(named(name, labels={"colour": colour, "kind": "fruit"}))
    stopped = await trivial.daytona.get("banana")
    await stopped.stop()

    async def names(query: str) -> list[str]:
        status, page = await trivial.api.ask("GET", f"/api/sandbox?sort=name&order=asc&{query}")
        assert status == 200, page
        return [row["name"] for row in page["items"]]

    everyone = ["apple", "apricot", "banana"]
    assert await names("") == everyone
    assert await names("order=desc") == everyone[::-1]
    assert await names("name=AP") == ["apple", "apricot"]
    assert await names(f"id={stopped.id[:12].upper()}") == ["banana"]
    assert await names("states=stopped&states=archived") == ["banana"]
    assert await names("states=started") == ["apple", "apricot"]
    assert await names('labels={"kind":"fruit","colour":"red"}') == ["apple"]
    assert await names('labels={"kind":"vegetable"}') == []
    assert await names("snapshots=daytona-small") == everyone
    assert await names("minCpu=2") == []
    assert await names("isPublic=false&isRecoverable=false") == everyone
    assert await names("createdAtBefore=2001-01-01T00:00:00.000000%2B0000") == []
    assert await names("createdAtAfter=2001-01-01T00:00:00.000000%2B0000") == everyone
    assert await names("autoDestroyAtBefore=2101-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=many",
        "labels=notjson",
        'labels={"a":1}',
        "sort=colour",
        "order=up",
        "cursor=xyz",
        "cursor=WzEsIDJd",
        "createdAtAfter=yesterday",
        "createdAtAfter=2001-01-01T00:00:00",
    ],
)
async def test_a_wrong_query_is_a_400_that_names_it(trivial: Trivial, query: str) -> None:
    status, error = await trivial.api.ask("GET", f"/api/sandbox?{query}")

    assert status == 400
    assert error["message"].startswith(query.split("=", maxsplit=1)[0])


async def test_a_hundred_gets_at_once_are_all_answered(daytona: AsyncDaytona) -> None:
    sandbox = await daytona.create()

    found = await asyncio.gather(*(daytona.get(sandbox.id) for _ in range(100)))

    assert {each.id for each in found} == {sandbox.id}


async def test_snapshots_are_listed_and_found_by_id_and_name(trivial: Trivial) -> None:
    page = await trivial.daytona.snapshot.list()
    assert [item.name for item in page.items] == ["daytona-small", "daytona-medium", "daytona-large"]
    assert {item.state for item in page.items} == {"active"}

    small = await trivial.daytona.snapshot.get("daytona-small")
    assert (await trivial.daytona.snapshot.get(small.id)).name == "daytona-small"
    with pytest.raises(DaytonaNotFoundError):
        await trivial.daytona.snapshot.get("no-such")


async def test_the_client_reads_the_configuration(trivial: Trivial) -> None:
    # The client asks for it before it looks for metrics, which this server does not have.
    assert await trivial.daytona._get_analytics_api_url() is None


async def test_the_toolbox_address_is_served_as_the_sandbox_says(api: Api, daytona: AsyncDaytona) -> None:
    sandbox = await daytona.create()

    status, answer = await api.ask("GET", f"/api/sandbox/{sandbox.id}/toolbox-proxy-url")

    assert (status, answer) == (200, {"url": sandbox.toolbox_proxy_url})
    status, answer = await api.ask("GET", f"/toolbox/{sandbox.id}/user-home-dir")
    assert (status, answer["dir"]) == (200, "/home/daytona")


async def test_activity_can_be_noted_by_hand(trivial: Trivial) -> None:
    sandbox = await trivial.daytona.create()
    before = sandbox.last_activity_at
    await asyncio.sleep(0.002)

    await sandbox.refresh_activity()

    await sandbox.refresh_data()
    assert before is not None
    assert sandbox.last_activity_at is not None
    assert sandbox.last_activity_at > before
    status, _ = await trivial.api.ask("POST", "/api/sandbox/nobody/last-activity")
    assert status == 404


async def test_every_data_folder_is_an_organisation_of_its_own(tmp_path: Path, start_trivial: StartTrivial) -> None:
    async with start_trivial(tmp_path / "one") as one, start_trivial(tmp_path / "two") as two:
        first, second = await one.daytona.create(), await two.daytona.create()

    assert first.organization_id != second.organization_id
    async with start_trivial(tmp_path / "one") as one:
        assert (await one.daytona.create()).organization_id == first.organization_id
