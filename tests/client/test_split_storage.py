"""A client and workers that see different storages: what passes 16 KiB fails, and the error says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandhold.client import Sandhold
from sandhold.contracts.calls import INLINE_LIMIT_BYTES, CallEnvelope
from sandhold.contracts.errors import ErrorCode, ToolError
from tests.stack import Stack

LARGE = "0123456789abcde\n" * 1_280
SPLIT = "client and worker seem to see different storages"


def error_of(envelope: CallEnvelope) -> ToolError:
    assert envelope.error is not None, envelope
    return envelope.error


@pytest.mark.storage("folder", "s3")
async def test_split_storages_are_named_with_the_setting_that_joins_them(stack: Stack, tmp_path: Path) -> None:
    assert len(LARGE) > INLINE_LIMIT_BYTES
    joined = await stack.open()
    await joined.create_sandbox(sandbox_id="box")
    elsewhere = stack.settings.model_copy(update={"storage_url": (tmp_path / "storage").as_uri()})
    split = await Sandhold(stack.temporal, elsewhere).open_session(joined.session_id, owner="tests")

    def write(content: str) -> dict[str, str]:
        return {"sandbox_id": "box", "path": "a.txt", "content": content}

    assert (await split.call("daytona_write_file", write("small"))).ok
    unread = error_of(await split.call("daytona_write_file", write(LARGE)))
    assert (unread.code, unread.retryable) == (ErrorCode.INTERNAL, False)
    assert SPLIT in unread.message
    assert "SANDHOLD_STORAGE_URL" in str(unread.hint)
    assert (await joined.read_file("box", "a.txt")).content == "small"

    await joined.write_file("box", "a.txt", LARGE)
    unseen = error_of(await split.call("daytona_read_file", {"sandbox_id": "box", "path": "a.txt"}, "read-1"))
    assert (unseen.code, unseen.retryable) == (ErrorCode.INTERNAL, True)
    assert SPLIT in unseen.message
    assert "SANDHOLD_STORAGE_URL" in str(unseen.hint)
    assert (await joined.read_file("box", "a.txt", call_id="read-1")).content == LARGE
    await joined.end()
