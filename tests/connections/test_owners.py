"""Owners who bring their own provider accounts, on the real stack: two local servers are two organizations."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from sandhold.client import Session
from sandhold.connections.capabilities import capabilities_of
from sandhold.connections.changes import ConnectionInUse, connect_daytona, disconnect
from sandhold.connections.daytona_key import KeyRefused
from sandhold.connections.replacement import SandboxesUntold, SeesOtherSandboxes
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import SESSION_LABEL
from sandhold.vault import ConnectionRow, Vault, open_vault
from tests.local_daytona_server import LocalDaytona, running_local_daytona
from tests.stack import RING, Stack, query_of, running_stack
from tests.workflows.waiting import eventually

_numbers = itertools.count(1)
ABOUT_THE_KEY: Any = {"effect": "status", "status": 404, "method": "GET", "path": "/api/api-keys/current"}
"""A provider that does not tell whose a key is."""


@pytest.fixture(scope="module")
async def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalDaytona]:
    """A second organization."""
    async with running_local_daytona(tmp_path_factory.mktemp("b") / "daytona", api_key="key-of-elsewhere") as server:
        yield server


@pytest.fixture
def owner() -> str:
    """An owner that nobody has seen before."""
    return f"owner-{next(_numbers)}"


async def connect(
    stack: Stack, owner: str, server: LocalDaytona, key: str | None = None, vault: Vault | None = None
) -> ConnectionRow:
    async def temporal() -> Client:
        return stack.temporal

    connected = await connect_daytona(
        temporal, vault or stack.vault, owner, SecretStr(key or server.api_key), api_url=server.url
    )
    return connected.row


async def leave(stack: Stack, owner: str, *, force: bool = False) -> list[str]:
    """Disconnect; the names of what is left behind."""

    async def temporal() -> Client:
        return stack.temporal

    done = await disconnect(temporal, stack.vault, owner, "daytona", force=force)
    return [each.name for each in done.left_behind]


async def held(server: LocalDaytona, session: Session) -> int:
    """How many sandboxes of the session a server holds."""
    client = server.client()
    try:
        return len([each async for each in client.list(query_of({SESSION_LABEL: session.session_id}))])
    finally:
        await client.close()


async def row_of(stack: Stack, owner: str) -> ConnectionRow:
    [row] = await stack.vault.connection_rows(owner)
    return row


async def test_each_owner_works_in_the_organization_that_he_brought(
    stack: Stack, elsewhere: LocalDaytona, owner: str
) -> None:
    row = await connect(stack, owner, elsewhere)
    assert row.organization
    assert row.details["permissions"] == ["write:sandboxes", "delete:sandboxes"]
    own, others = await asyncio.gather(stack.open(owner), stack.open("bob"))
    await asyncio.gather(own.create_sandbox(sandbox_id="box"), others.create_sandbox(sandbox_id="box"))
    assert (await own.exec("box", "echo here")).stdout == "here\n"
    assert [await held(server, own) for server in (elsewhere, stack.daytona)] == [1, 0]
    assert [await held(server, others) for server in (elsewhere, stack.daytona)] == [0, 1]
    status = await stack.status(own, "box")
    assert (status.connection, status.organization) == (row.id, row.organization)
    assert (await stack.status(others, "box")).connection == "default"
    await asyncio.gather(own.end(), others.end())
    assert [await held(server, own) for server in (elsewhere, stack.daytona)] == [0, 0]
    used = await row_of(stack, owner)
    assert used.last_used_at is not None
    assert used.last_failure is None


async def test_what_was_created_under_the_deployments_account_stays_there_when_its_owner_connects(
    stack: Stack, elsewhere: LocalDaytona, owner: str
) -> None:
    session = await stack.open(owner)
    await session.create_sandbox(sandbox_id="before")
    await session.exec("before", "echo kept > file")
    row = await connect(stack, owner, elsewhere)
    await session.create_sandbox(sandbox_id="after")
    assert (await session.exec("before", "cat file")).stdout == "kept\n"
    statuses = [await stack.status(session, each) for each in ("before", "after")]
    assert [each.connection for each in statuses] == ["default", row.id]
    await session.manage_sandbox("before", "stop")
    assert (await session.exec("before", "cat file")).stdout == "kept\n"
    await session.end()
    assert [await held(server, session) for server in (elsewhere, stack.daytona)] == [0, 0]


async def test_a_wrong_key_is_not_stored(stack: Stack, elsewhere: LocalDaytona, owner: str) -> None:
    with pytest.raises(KeyRefused) as refused:
        await connect(stack, owner, elsewhere, key="no-key-of-anybody")
    assert "401" in str(refused.value)
    assert "no-key-of-anybody" not in str(refused.value) + str(refused.value.error.hint)
    assert await stack.vault.connection_rows(owner) == []


async def test_a_key_that_does_not_see_the_open_sandboxes_does_not_replace_the_one_that_does(
    stack: Stack, elsewhere: LocalDaytona, owner: str
) -> None:
    before = await connect(stack, owner, elsewhere)
    session = await stack.open(owner)
    await session.create_sandbox(sandbox_id="box")
    with pytest.raises(SeesOtherSandboxes) as refused:
        await connect(stack, owner, stack.daytona)
    assert f"{session.session_id}/box" in str(refused.value)
    assert (await row_of(stack, owner)).version == before.version
    again = await connect(stack, owner, elsewhere)
    assert (again.id, again.version) == (before.id, before.version + 1)
    assert (await session.exec("box", "echo on")).stdout == "on\n"
    await session.end()
    assert (await connect(stack, owner, stack.daytona)).version == before.version + 2


async def remove_at_the_provider(server: LocalDaytona, session: Session, sandbox_id: str) -> None:
    """Behind our back, as its owner may in the provider's own pages."""
    [row] = [row for row in (await session.show()).sandboxes if row.sandbox_id == sandbox_id]
    assert row.provider_id is not None
    client = server.client()
    try:
        await (await client.get(row.provider_id)).delete()
    finally:
        await client.close()


async def test_a_sandbox_that_is_gone_keeps_no_new_key_of_its_organization_away(
    stack: Stack, elsewhere: LocalDaytona, owner: str
) -> None:
    before = await connect(stack, owner, elsewhere)
    session = await stack.open(owner)
    for box in ("gone", "lives"):
        await session.create_sandbox(sandbox_id=box)
    await remove_at_the_provider(elsewhere, session, "gone")
    assert (await connect(stack, owner, elsewhere)).version == before.version + 1
    # What lives decides on, also when nobody tells whose a key is and the other one is gone.
    with pytest.raises(SeesOtherSandboxes):
        await connect(stack, owner, stack.daytona)
    await remove_at_the_provider(elsewhere, session, "lives")
    await elsewhere.faults.add(**ABOUT_THE_KEY)
    try:
        assert (await connect(stack, owner, elsewhere)).organization is None, "the old key tells that all are gone"
    finally:
        await elsewhere.faults.clear()
    await session.end()


async def test_a_new_key_is_refused_when_neither_it_nor_the_one_before_tells_what_is_gone(
    stack: Stack, owner: str, tmp_path: Path
) -> None:
    async with running_local_daytona(tmp_path / "daytona", api_key="first-key-of-the-owner") as server:
        port = int(server.origin.rpartition(":")[2])
        before = await connect(stack, owner, server)
        session = await stack.open(owner)
        await session.create_sandbox(sandbox_id="box")
        await remove_at_the_provider(server, session, "box")
    async with running_local_daytona(tmp_path / "daytona", api_key="second-key-of-the-owner", port=port) as server:
        await server.faults.add(**ABOUT_THE_KEY)
        with pytest.raises(SandboxesUntold) as refused:
            await connect(stack, owner, server)
        assert f"{session.session_id}/box" in str(refused.value)
        assert "first-key" not in str(refused.value) + str(refused.value.error.hint)
        assert (await row_of(stack, owner)).version == before.version
        await server.faults.clear()
        assert (await connect(stack, owner, server)).version == before.version + 1, "of the same organization"
        await session.end()


async def test_a_connection_goes_only_when_nothing_open_needs_it(
    stack: Stack, elsewhere: LocalDaytona, owner: str
) -> None:
    await connect(stack, owner, elsewhere)
    session = await stack.open(owner)
    await session.create_sandbox(sandbox_id="box")
    with pytest.raises(ConnectionInUse) as refused:
        await leave(stack, owner)
    assert f"{session.session_id}/box" in str(refused.value)
    assert await leave(stack, owner, force=True) == [f"{session.session_id}/box"]
    with pytest.raises(ToolFailure) as lost:
        await session.exec("box", "true")
    assert lost.value.error.code is ErrorCode.CONNECTION_REQUIRED
    ending = asyncio.create_task(session.end())

    async def shown() -> str:
        [row] = (await session.show()).sandboxes
        return "" if row.error is None else row.error.message

    await eventually(shown, lambda message: "removed" in message, "the status says why the deletion waits")
    assert await held(elsewhere, session) == 1, "it is not taken for gone"
    await connect(stack, owner, elsewhere)
    await ending
    assert await held(elsewhere, session) == 0
    assert await leave(stack, owner) == []


async def test_a_key_that_stops_working_is_told_marked_and_replaced_while_the_session_runs(
    stack: Stack, owner: str, tmp_path: Path
) -> None:
    async with running_local_daytona(tmp_path / "daytona", api_key="first-key-of-the-owner") as server:
        port = int(server.origin.rpartition(":")[2])
        await connect(stack, owner, server)
        session = await stack.open(owner)
        await session.create_sandbox(sandbox_id="box")
        await session.exec("box", "echo kept > file")
    async with running_local_daytona(tmp_path / "daytona", api_key="second-key-of-the-owner", port=port) as server:
        failed = await session.call("daytona_exec", {"sandbox_id": "box", "command": "cat file"})
        assert failed.error is not None
        assert failed.error.code is ErrorCode.CONNECTION_REQUIRED
        assert f"sandhold connect daytona --owner {owner}" in (failed.error.hint or "")
        marked = await row_of(stack, owner)
        assert marked.last_failure == "connection_required"
        [capability, _git] = await capabilities_of(stack.settings, stack.vault, owner)
        assert (capability.available, capability.connection) == (False, "own")
        refused = await session.call("daytona_create_sandbox", {"sandbox_id": "other"})
        assert refused.error is not None
        assert refused.error.code is ErrorCode.CONNECTION_REQUIRED
        # By another process: the workers hear of it only because the old key, which they still have in their cache, is
        # refused once more.
        elsewhere = await open_vault(stack.settings, RING)
        try:
            replaced = await connect(stack, owner, server, vault=elsewhere)
        finally:
            await elsewhere.close()
        assert replaced.version == marked.version + 1
        assert (await session.exec("box", "cat file")).stdout == "kept\n"
        await eventually(
            lambda: row_of(stack, owner),
            lambda row: row.last_failure is None and row.last_used_at is not None,
            "no mark is left",
        )
        await session.end()


async def test_without_any_connection_a_create_asks_for_one_and_the_session_still_ends(
    temporal: WorkflowEnvironment, stack: Stack, elsewhere: LocalDaytona, owner: str, tmp_path: Path
) -> None:
    async with running_stack(
        temporal.client, stack.daytona, tmp_path, task_queue=f"unconnected-{owner}", is_connected=False
    ) as unconnected:
        session = await unconnected.open(owner)
        refused = await session.call("daytona_create_sandbox", {"sandbox_id": "box"})
        assert refused.error is not None
        assert (refused.error.code, refused.error.provider) == (ErrorCode.CONNECTION_REQUIRED, "daytona")
        assert f"sandhold connect daytona --owner {owner}" in (refused.error.hint or "")
        await connect(unconnected, owner, elsewhere)
        await session.create_sandbox(sandbox_id="box")
        outcome = await session.end(timeout=30)
        assert [each.outcome for each in outcome.sandboxes] == ["deleted"]
