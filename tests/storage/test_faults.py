"""A storage that does not do its part: said in our words, with what helps, and nothing of what the store said."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError, NotFoundError

from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.storage import Quota, SessionStorage
from sandhold.storage.errors import StorageError, StorageFull, StorageRefused, StorageUnavailable
from tests.stack import RING
from tests.storage.conftest import SESSION, Place

SECRETS = ("AKIACANARY", "AWS4-HMAC", "canary-bucket", "127.0.0.1", "Debug source", "prefix")
MANY = Quota(2**40, 2**40)

Work = Callable[[SessionStorage], Awaitable[Any]]


async def listed(storage: SessionStorage) -> list[str]:
    return [each.path async for each in storage.files(SESSION).list()]


async def read(storage: SessionStorage) -> bytes:
    return b"".join([piece async for piece in storage.files(SESSION).read("a")])


FILE_WORK: dict[str, Work] = {
    "list": listed,
    "read": read,
    "find": lambda storage: storage.files(SESSION).find("a"),
    "write": lambda storage: storage.files(SESSION).write("a", b"1", MANY),
    "write large": lambda storage: storage.files(SESSION).write("a", bytes(6 * 2**20), MANY),
    "delete": lambda storage: storage.files(SESSION).delete("a"),
    "delete folder": lambda storage: storage.files(SESSION).delete_folder(),
}
OBJECT_WORK: dict[str, Work] = {
    "put": lambda storage: storage.put_bytes(SESSION, "a", b"1"),
    "put new": lambda storage: storage.put_new(SESSION, "a", b"1"),
    "get": lambda storage: storage.get_bytes(SESSION, "a"),
    "delete": lambda storage: storage.delete(SESSION, "a"),
    "sessions": lambda storage: storage.objects.sessions(),
    "claim": lambda storage: storage.objects.claim("here"),
    "claimed by": lambda storage: storage.objects.claimed_by(),
}


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[SessionStorage]:
    """A bucket that refuses everything, and quotes the request as real ones do."""

    class Refusal(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            body = (
                b"<Error><Code>SignatureDoesNotMatch</Code><Message>it does not match</Message>"
                b"<AWSAccessKeyId>AKIACANARY</AWSAccessKeyId>"
                b"<StringToSign>AWS4-HMAC canary-bucket</StringToSign></Error>"
            )
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(403)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = refuse  # noqa: N815 - the names that the server calls

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    Thread(target=server.serve_forever, daemon=True).start()
    at_bucket(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield SessionStorage.open("s3://canary-bucket/prefix", RING)
    server.shutdown()
    server.server_close()


def at_bucket(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIACANARY",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(name, value)


def holds_no_secret(*texts: str) -> bool:
    return not any(secret in text for secret in SECRETS for text in texts)


@pytest.mark.parametrize("work", FILE_WORK)
async def test_wrong_credentials_are_not_to_be_tried_again_and_are_quoted_nowhere(
    refusing: SessionStorage, caplog: pytest.LogCaptureFixture, work: str
) -> None:
    with caplog.at_level(logging.DEBUG, "sandhold"), pytest.raises(ToolFailure) as failure:
        await FILE_WORK[work](refusing)
    error = failure.value.error
    assert (error.code, error.retryable) == (ErrorCode.INTERNAL, False)
    assert "refuses" in error.message
    assert "AWS_" in str(error.hint)
    assert "SANDHOLD_STORAGE_URL" in str(error.hint)
    assert holds_no_secret(error.message, str(error.hint), *causes(failure.value))
    told = caplog.records[-1].__dict__
    assert told["status"] == "403"
    assert holds_no_secret(str(told))


def causes(error: BaseException) -> list[str]:
    """The texts of everything that the history of a workflow would keep of an error."""
    texts = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        texts.append(str(error))
    return texts


@pytest.mark.parametrize("work", OBJECT_WORK)
async def test_every_way_to_a_bucket_tells_a_refusal_by_the_same_type(refusing: SessionStorage, work: str) -> None:
    with pytest.raises(StorageRefused) as failure:
        await OBJECT_WORK[work](refusing)
    assert holds_no_secret(*causes(failure.value))


@pytest.mark.parametrize("work", {**FILE_WORK, **OBJECT_WORK})
async def test_a_storage_that_does_not_answer_may_be_tried_again(monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise GenericError("Generic S3 error: HTTP error: AKIACANARY at http://127.0.0.1:9/canary-bucket")

    async def broken_later(*args: Any, **kwargs: Any) -> Any:
        broken()

    at_bucket(monkeypatch, "http://127.0.0.1:9")
    storage = SessionStorage.open("s3://canary-bucket/prefix", RING)
    monkeypatch.setattr(obstore, "list", broken)
    for name in ("get_async", "put_async", "head_async", "delete_async", "list_with_delimiter_async"):
        monkeypatch.setattr(obstore, name, broken_later)
    with pytest.raises((ToolFailure, StorageUnavailable)) as failure:
        await (FILE_WORK | OBJECT_WORK)[work](storage)
    assert holds_no_secret(*causes(failure.value))
    if isinstance(failure.value, ToolFailure):
        assert (failure.value.error.code, failure.value.error.retryable) == (ErrorCode.INTERNAL, True)


async def test_a_bucket_that_does_not_exist_is_no_missing_file(place: Place) -> None:
    if place.server is None:
        pytest.skip("a folder is made when it is missing")
    storage = SessionStorage.open("s3://no-such-bucket/prefix", RING)
    for work in (listed, read, OBJECT_WORK["put"], OBJECT_WORK["get"]):
        with pytest.raises((ToolFailure, StorageError)) as failure:
            await work(storage)
        assert "refuses" in str(failure.value)


async def test_a_full_disk_is_told_as_one(
    place: Place, storage: SessionStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*args: Any, **kwargs: Any) -> Any:
        raise GenericError("Generic LocalFileSystem error: Unable to write: No space left on device (os error 28)")

    monkeypatch.setattr(obstore, "put_async", full)
    with pytest.raises(ToolFailure) as failure:
        await storage.files(SESSION).write("a", b"1", MANY)
    assert (failure.value.error.code, failure.value.error.retryable) == (ErrorCode.STORAGE_FULL, True)
    with pytest.raises(StorageFull):
        await storage.put_bytes(SESSION, "a", b"1")


async def test_a_folder_that_may_not_be_read_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    storage = SessionStorage.open(tmp_path.as_uri(), RING)
    monkeypatch.setattr(os, "scandir", denied)  # The tests may be root's, whom no mode keeps out.
    with pytest.raises(ToolFailure) as failure:
        await listed(storage)
    assert (failure.value.error.code, failure.value.error.retryable) == (ErrorCode.INTERNAL, False)
    assert "permission denied" in failure.value.error.message


async def test_the_errors_of_who_writes_are_their_own(storage: SessionStorage) -> None:
    async def gone(size: int) -> AsyncIterator[bytes]:
        yield bytes(size)
        raise FileNotFoundError("the source is gone")

    for size in (1, 6 * 2**20):
        with pytest.raises(FileNotFoundError, match="the source is gone"):
            await storage.files(SESSION).write("a", gone(size), MANY)


@pytest.mark.parametrize("was_stored", [True, False])
async def test_an_upload_whose_last_answer_was_lost_is_looked_for(
    storage: SessionStorage, monkeypatch: pytest.MonkeyPatch, was_stored: bool
) -> None:
    """Asked once more a bucket says that there is no such upload."""
    before, behind = b"before" * 2**20, b"behind" * 2**20
    await storage.files(SESSION).write("file", before, MANY)
    store = obstore.put_async

    async def unheard(*given: Any, **options: Any) -> None:
        if not given[1].endswith("/file"):
            await store(*given, **options)
            return
        if was_stored:
            await store(*given, **options)
        else:
            async for _ in given[2]:
                pass
        raise NotFoundError("no such upload")

    monkeypatch.setattr(obstore, "put_async", unheard)
    if was_stored:
        await storage.files(SESSION).write("file", behind, MANY)
    else:
        with pytest.raises(ToolFailure):
            await storage.files(SESSION).write("file", behind, MANY)
    monkeypatch.undo()
    held = b"".join([bytes(piece) async for piece in storage.files(SESSION).read("file")])
    assert held == (behind if was_stored else before)
