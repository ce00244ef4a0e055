"""What connected clients are told, and that the official client acts on it instead of looking again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import socketio
from daytona import AsyncDaytona, CreateSandboxFromSnapshotParams

from tests.local_daytona.conftest import Trivial
from tests.local_daytona_server import API_KEY, LocalDaytona


class Listener:
    """A plain Socket.IO client that keeps what it hears."""

    def __init__(self) -> None:
        self.socket = socketio.AsyncClient(reconnection=False)
        self.heard: list[tuple[str, dict[str, Any]]] = []
        for event in ("sandbox.created", "sandbox.state.updated"):
            self.socket.on(event, lambda data, event=event: self.heard.append((event, data)))

    async def changes(self, last: str) -> list[tuple[str, str]]:
        """The changes of state so far, once there is one to `last`."""
        async with asyncio.timeout(20):
            while True:
                found = [(d["oldState"], d["newState"]) for event, d in self.heard if event.endswith("updated")]
                if any(new == last for _, new in found):
                    return found
                await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(url: str, token: object = API_KEY) -> AsyncIterator[Listener]:
    listener = Listener()
    await listener.socket.connect(
        url.removesuffix("/api"),
        socketio_path="/api/socket.io/",
        auth={"token": token},
        transports=["websocket"],
    )
    try:
        yield listener
    finally:
        await listener.socket.disconnect()


async def test_every_state_of_a_life_is_told_in_order(trivial: Trivial) -> None:
    async with listening(trivial.server.api_url) as listener:
        sandbox = await trivial.daytona.create(CreateSandboxFromSnapshotParams(name="observed"))
        await sandbox.stop()
        await sandbox.start()
        await sandbox.stop()
        await sandbox.archive()
        await sandbox.start()
        await sandbox.delete(wait=True)
        changes = await listener.changes("destroyed")

    assert changes == [
        ("creating", "started"),
        ("started", "stopping"),
        ("stopping", "stopped"),
        ("stopped", "starting"),
        ("starting", "started"),
        ("started", "stopping"),
        ("stopping", "stopped"),
        ("stopped", "archiving"),
        ("archiving", "archived"),
        ("archived", "restoring"),
        ("restoring", "started"),
        ("started", "destroying"),
        ("destroying", "destroyed"),
    ]
    event, created = listener.heard[0]
    assert event == "sandbox.created"
    assert (created["id"], created["name"], created["state"]) == (sandbox.id, "observed", "creating")
    assert listener.heard[1][1]["sandbox"]["id"] == sandbox.id


async def test_a_sandbox_that_dies_is_told(trivial: Trivial) -> None:
    async with listening(trivial.server.api_url) as listener:
        sandbox = await trivial.daytona.create()
        trivial.runtime.started[sandbox.id].die("crashed")

        assert (await listener.changes("stopped"))[-1] == ("started", "stopped")


@pytest.mark.parametrize("token", ["wrong", "", "schl\u00fcssel", None, 5])
async def test_a_listener_without_the_key_is_refused(trivial: Trivial, token: object) -> None:
    with pytest.raises(socketio.exceptions.ConnectionError):
        async with listening(trivial.server.api_url, token):
            pass


async def test_a_start_is_seen_when_it_happens_and_not_at_the_next_look(
    local_daytona: LocalDaytona, daytona: AsyncDaytona
) -> None:
    """The client looks once when it begins to wait, and then every second unless an event wakes it."""
    sandbox = await daytona.create()
    await sandbox.stop()
    await connected(daytona)
    await local_daytona.faults.add(effect="start_delay", seconds=0.3)
    await local_daytona.faults.forget_requests()

    await sandbox.start()

    assert sandbox.state == "started"
    looks = await local_daytona.faults.requests(method="GET", sandbox=sandbox.id)
    assert len(looks) == 1


async def test_a_delete_is_seen_when_it_happens(local_daytona: LocalDaytona, daytona: AsyncDaytona) -> None:
    sandbox = await daytona.create()
    await connected(daytona)
    await local_daytona.faults.add(effect="delete_hangs", seconds=0.3)
    await local_daytona.faults.forget_requests()

    await sandbox.delete(wait=True)

    looks = await local_daytona.faults.requests(method="GET", sandbox=sandbox.id)
    assert len(looks) == 1


async def connected(daytona: AsyncDaytona) -> None:
    """Returns when the client's event connection is up; it is opened in the background."""
    assert daytona._event_dispatcher is not None
    async with asyncio.timeout(20):
        while not daytona._event_dispatcher.is_connected:
            await asyncio.sleep(0.01)
