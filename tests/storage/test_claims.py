"""What lies under a session's id is one session's: the next one of this id is refused it, whoever asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.policy import Policy
from sandhold.contracts.sessions import SessionRecord, SessionStart
from sandhold.storage import Quota, SessionStorage
from sandhold.storage.claims import CLAIM
from sandhold.storage.errors import StorageOfAnother
from sandhold.storage.objects import SessionObjects
from sandhold.storage.remains import EndMark, Remains
from tests.storage.conftest import SESSION, Place

MANY = Quota(2**40, 2**40)
LATER = timedelta(days=2)


def record(run_id: str, owner: str, age: timedelta = timedelta(0)) -> SessionRecord:
    """What Temporal knows of a session that began so long ago; in the future by a negative age."""
    start = SessionStart(session_id=SESSION, owner=owner, policy=Policy())
    return SessionRecord(start=start, run_id=run_id, created_at=datetime.now(UTC) - age)


def used_by(place: Place, known: SessionRecord | None) -> SessionStorage:
    """The storage as a process sees it that works for this session."""

    async def lookup(session_id: str) -> SessionRecord | None:
        assert session_id == SESSION
        return known

    return place.open().guarded(lookup)


ALICE = record("run-1", "alice", age=timedelta(minutes=1))
BOB = record("run-2", "bob")

WAYS: dict[str, Callable[[SessionStorage], Awaitable[Any]]] = {
    "put": lambda storage: storage.put_bytes(SESSION, "calls/c/x", b"1"),
    "put new": lambda storage: storage.put_new(SESSION, "calls/c/y", b"1"),
    "get": lambda storage: storage.get_bytes(SESSION, "files/secret"),
    "delete": lambda storage: storage.delete(SESSION, "files/secret"),
    "output": lambda storage: storage.read_output(SESSION, "c", "stdout", 0, 10),
    "usage": lambda storage: storage.usage.held(SESSION),
}


async def test_a_session_uses_what_it_has_stored_also_after_it_was_forgotten(place: Place) -> None:
    assert await used_by(place, ALICE).files(SESSION).write("secret", b"1", MANY)
    for known in (ALICE, None):
        files = used_by(place, known).files(SESSION)
        assert [each.path async for each in files.list()] == ["secret"]
        assert [each async for each in files.read("secret")] == [b"1"]
    assert await used_by(place, ALICE).usage.held(SESSION) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_the_next_session_of_the_same_id_is_refused_what_another_claimed(place: Place, way: str) -> None:
    await used_by(place, ALICE).put_bytes(SESSION, "files/secret", b"1")
    with pytest.raises(StorageOfAnother):
        await WAYS[way](used_by(place, BOB))
    # Not even the same owner: what is left is kept as long as the earlier session's policy says.
    with pytest.raises(StorageOfAnother):
        await WAYS[way](used_by(place, record("run-3", "alice")))
    assert await used_by(place, ALICE).get_bytes(SESSION, "files/secret") == b"1"


async def test_a_refusal_is_a_typed_error_with_a_way_out(place: Place) -> None:
    await used_by(place, ALICE).put_bytes(SESSION, "files/secret", b"1")
    files = used_by(place, BOB).files(SESSION)
    for work in (files.find("secret"), files.write("mine", b"1", MANY), files.delete_folder()):
        with pytest.raises(ToolFailure) as failure:
            await work
        assert (failure.value.error.code, failure.value.error.retryable) == (ErrorCode.CONFLICT, False)
        assert "another id" in str(failure.value.error.hint)


async def test_what_bears_no_claim_is_an_earlier_sessions_when_it_is_older(place: Place) -> None:
    await place.open().put_bytes(SESSION, "files/secret", b"1")
    for way in WAYS.values():
        with pytest.raises(StorageOfAnother):
            await way(used_by(place, record("run-2", "bob", age=-LATER)))
    # A session that began before it was written, with a worker of an earlier version, goes on with it.
    own = used_by(place, record("run-1", "alice", age=LATER))
    assert await own.get_bytes(SESSION, "files/secret") == b"1"
    assert await place.open().get_bytes(SESSION, CLAIM) is None, "reading lays no claim"
    await own.put_bytes(SESSION, "files/more", b"1")
    assert await place.open().get_bytes(SESSION, CLAIM) is not None


async def test_a_mark_from_before_the_session_tells_that_another_has_ended(place: Place) -> None:
    await place.open().put_bytes(SESSION, "files/secret", b"1")
    mark = EndMark(deployment="d", ended_at=datetime.now(UTC) - timedelta(seconds=5), keep_days=30, owner="alice")
    await Remains(place.open().objects, SESSION).put_mark(mark)
    with pytest.raises(StorageOfAnother):
        await used_by(place, record("run-2", "bob")).get_bytes(SESSION, "files/secret")
    own = used_by(place, record("run-1", "alice", age=timedelta(minutes=1)))
    assert await own.get_bytes(SESSION, "files/secret") == b"1"


async def test_a_claim_that_nobody_can_read_is_nobodys(place: Place) -> None:
    await place.open().put_bytes(SESSION, CLAIM, b"")
    with pytest.raises(StorageOfAnother):
        await used_by(place, ALICE).get_bytes(SESSION, "files/secret")


async def test_of_two_that_claim_at_once_one_does(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    put_new = SessionObjects.put_new

    async def overtaken(objects: SessionObjects, session_id: str, path: str, data: bytes) -> bool:
        monkeypatch.setattr(SessionObjects, "put_new", put_new)
        await used_by(place, ALICE).put_bytes(SESSION, "files/secret", b"1")
        return await put_new(objects, session_id, path, data)

    monkeypatch.setattr(SessionObjects, "put_new", overtaken)
    with pytest.raises(StorageOfAnother):
        await used_by(place, BOB).put_bytes(SESSION, "files/mine", b"1")
    assert await place.open().get_bytes(SESSION, "files/mine") is None
