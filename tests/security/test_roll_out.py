"""While a new key is rolled out, some workers encrypt under it and others under the one before: they work together."""

from __future__ import annotations

import asyncio
from pathlib import Path

from temporalio.client import Client

from sandhold.client import Session
from sandhold.security.executions import keys_in
from sandhold.security.key_document import KeyDocument, RingKey
from sandhold.security.key_rings import EnvironmentKeyRing
from sandhold.temporal import data_converter
from tests.local_daytona_server import LocalDaytona
from tests.stack import running_stack, running_temporal
from tests.workflows.calls import creates, exec_ok

ROUNDS = 20


async def client_under(address: str, ring: str) -> Client:
    """On a connection of its own: two workers of one task queue cannot share one."""
    return await Client.connect(address, data_converter=data_converter(EnvironmentKeyRing(ring)))


async def keys_of_history(client: Client, workflow_id: str) -> set[str]:
    return {
        key async for event in client.get_workflow_handle(workflow_id).fetch_history_events() for key in keys_in(event)
    }


async def test_two_workers_and_two_clients_with_different_primary_keys_work_together(
    stack_daytona: LocalDaytona, tmp_path: Path
) -> None:
    document = KeyDocument.new().added(RingKey.new("decrypt_only"))
    old, new = document.keys
    rings = (document.dump(), document.promoted(new.id).dump())
    async with running_temporal() as server:
        address = server.client.service_client.config.target_host
        clients = [await client_under(address, ring) for ring in rings]
        async with (
            running_stack(clients[0], stack_daytona, tmp_path, task_queue="roll-out", keyring=rings[0]) as early,
            running_stack(clients[1], stack_daytona, tmp_path, task_queue="roll-out", keyring=rings[1]) as late,
        ):
            sessions = [await early.open(), await late.open()]
            boxes = [await creates(session) for session in sessions]

            async def work(number: int) -> None:
                """Every call of a session comes from the other one's client in turn."""
                for call in range(ROUNDS):
                    stack = (early, late)[call % 2]
                    session: Session = stack.sandhold.session(sessions[number].session_id)
                    said = await exec_ok(session, boxes[number], f"echo {call}", output="normal")
                    assert said["stdout"] == f"{call}\n"

            await asyncio.gather(work(0), work(1))
            await early.sandhold.session(sessions[0].session_id).files.write("note.txt", b"early")
            assert await late.sandhold.session(sessions[0].session_id).files.read("note.txt") == b"early"
            for session, box in zip(sessions, boxes, strict=True):
                sandbox = (await early.status(session, box)).workflow_id
                assert sandbox == (await late.status(session, box)).workflow_id
                assert await keys_of_history(clients[0], sandbox) == {old.id, new.id}
                assert (await session.end()).reason == "ended"
