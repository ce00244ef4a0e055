"""Whose session it is, by Temporal's record and by the mark that outlives it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from temporalio.testing import WorkflowEnvironment

from activities.session_owners import SessionOwners
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import SESSION_WORKFLOW, session_workflow_id
from sandhold.contracts.policy import Policy
from sandhold.contracts.sessions import SessionStart
from sandhold.storage import SessionStorage
from sandhold.storage.remains import EndMark, Remains
from tests.stack import RING

pytestmark = pytest.mark.storage("folder", "s3")


@pytest.fixture
def storage(storage_url: str) -> SessionStorage:
    return SessionStorage.open(storage_url, RING)


@pytest.fixture
def owners(temporal: WorkflowEnvironment, storage: SessionStorage) -> SessionOwners:
    return SessionOwners(temporal.client, storage, "here")


def new_id() -> str:
    return f"owned-{uuid.uuid4().hex[:12]}"


async def begun(temporal: WorkflowEnvironment, owner: str) -> str:
    """A session of which Temporal has a record; no worker knows it."""
    session_id = new_id()
    start = SessionStart(session_id=session_id, owner=owner, policy=Policy())
    handle = await temporal.client.start_workflow(
        SESSION_WORKFLOW, start, id=session_workflow_id(session_id), task_queue="nobody"
    )
    await handle.terminate("only its record is needed")
    return session_id


async def marked(storage: SessionStorage, session_id: str, owner: str | None, deployment: str = "here") -> str:
    mark = EndMark(deployment=deployment, ended_at=datetime.now(UTC), keep_days=1.0, owner=owner)
    await Remains(storage.objects, session_id).put_mark(mark)
    return session_id


async def is_refused(owners: SessionOwners, session_id: str, owner: str) -> bool:
    try:
        await owners.check(session_id, owner)
    except ToolFailure as failure:
        return failure.error.code is ErrorCode.SESSION_NOT_FOUND
    return False


async def test_temporals_record_tells(temporal: WorkflowEnvironment, owners: SessionOwners) -> None:
    session_id = await begun(temporal, "ada")
    assert not await is_refused(owners, session_id, "ada")
    assert await is_refused(owners, session_id, "bob")


async def test_once_temporal_has_forgotten_the_mark_tells(owners: SessionOwners, storage: SessionStorage) -> None:
    session_id = await marked(storage, new_id(), "ada")
    assert not await is_refused(owners, session_id, "ada")
    assert await is_refused(owners, session_id, "bob")


async def test_nobody_gets_what_nobody_can_attribute(
    temporal: WorkflowEnvironment, owners: SessionOwners, storage: SessionStorage
) -> None:
    unknown = new_id()
    without_owner = await marked(storage, new_id(), None)
    of_another_deployment = await marked(storage, new_id(), "ada", "elsewhere")
    reused = await marked(storage, await begun(temporal, "ada"), "bob")
    for session_id in (unknown, without_owner, of_another_deployment, reused):
        assert await is_refused(owners, session_id, "ada")
