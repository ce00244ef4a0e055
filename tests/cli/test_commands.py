"""The command line on the real stack: what it prints and how it exits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path

import pytest

from sandhold.client import Session
from tests.cli.process import sandhold
from tests.stack import Stack, environment_of

ENVELOPE = {"call_id", "session_id", "sandbox_id", "tool", "status", "ok", "result", "error"}


@pytest.fixture(scope="module")
def env(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return environment_of(shared_stack, tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
async def session(shared_stack: Stack) -> AsyncIterator[Session]:
    """A session with one started sandbox, `box`."""
    session = await shared_stack.open()
    await session.create_sandbox(sandbox_id="box")
    yield session
    await session.end()


async def test_a_session_from_start_to_end(env: Mapping[str, str]) -> None:
    start = await sandhold("session", "start", "--session", "by-hand", "--owner", "ada", "--json", env=env)
    assert start.document == {
        "session_id": "by-hand",
        "workflow_id": "session/by-hand",
        "owner": "ada",
        "state": "open",
    }
    create = await sandhold("call", "by-hand", "daytona_create_sandbox", '{"sandbox_id": "box"}', env=env)
    assert (create.code, set(create.document), create.document["ok"]) == (0, ENVELOPE, True)
    show, listed, other = await asyncio.gather(
        sandhold("session", "show", "by-hand", "--json", env=env),
        sandhold("session", "list", "--owner", "ada", "--json", env=env),
        sandhold("session", "start", "--session", "by-hand", "--owner", "bob", env=env),
    )
    assert {"policy", "capabilities", "sandboxes"} < set(show.document)
    [row] = show.document["sandboxes"]
    assert (row["sandbox_id"], row["state"], row["generation"]) == ("box", "started", 1)
    assert row["created_at"].endswith("Z")
    assert datetime.fromisoformat(row["created_at"]).utcoffset() is not None
    assert isinstance(listed.document["sessions"], list)
    assert (other.code, "belong" in other.err) == (1, True)
    end = await sandhold("session", "end", "by-hand", "--reason", "enough", "--json", env=env)
    assert end.document == {
        "session_id": "by-hand",
        "state": "ended",
        "reason": "enough",
        "sandboxes": [{"sandbox_id": "box", "outcome": "deleted"}],
    }
    again, call, new, unknown = await asyncio.gather(
        sandhold("session", "end", "by-hand", "--json", env=env),
        sandhold("call", "by-hand", "daytona_list_sandboxes", env=env),
        sandhold("session", "start", "--session", "by-hand", "--owner", "ada", "--json", env=env),
        sandhold("session", "show", "never-was", "--json", env=env),
    )
    assert (again.code, again.document) == (0, end.document)
    assert (call.code, call.document["error"]["code"]) == (3, "session_ended")
    assert (new.code, new.document["error"]["code"]) == (3, "session_ended")
    assert (unknown.code, unknown.document["error"]["code"]) == (3, "session_not_found")


async def test_arguments_come_from_the_command_line_a_file_or_stdin(
    env: Mapping[str, str], session: Session, tmp_path: Path
) -> None:
    def written(path: str) -> str:
        return json.dumps({"sandbox_id": "box", "path": path, "content": "x" * 50_000})

    file = tmp_path / "arguments.json"
    file.write_text(written("from-file"))
    ended = await asyncio.gather(
        sandhold("call", session.session_id, "daytona_write_file", f"@{file}", env=env),
        sandhold("call", session.session_id, "daytona_write_file", "-", env=env, stdin=written("from-stdin")),
        sandhold("call", session.session_id, "daytona_read_file", '{"sandbox_id":"box","path":"missing"}', env=env),
        sandhold("call", session.session_id, "daytona_exec", '{"sandbox_id":"bex","command":"true"}', env=env),
    )
    assert [each.document["ok"] for each in ended] == [True, True, False, False]
    assert [each.code for each in ended] == [0, 0, 1, 3]
    assert ended[3].document["error"]["sandbox_ids"] == ["box"]
    assert (await session.read_file("box", "from-stdin")).bytes == 50_000


async def test_one_call_id_is_one_call_also_without_waiting(env: Mapping[str, str], session: Session) -> None:
    command = '{"sandbox_id": "box", "command": "echo once >> counted; sleep 1; echo done"}'
    call = ("call", session.session_id, "daytona_exec", command, "--call-id", "one")
    begun = await sandhold(*call, "--no-wait", env=env)
    assert (begun.code, begun.document["status"]) == (0, "running")
    ended = await sandhold(*call, env=env)
    assert (ended.code, ended.document["result"]["stdout"]) == (0, "done\n")
    assert (await session.read_file("box", "counted")).content == "once\n"


async def test_setup_and_doctor_find_a_healthy_stack(env: Mapping[str, str]) -> None:
    setup, doctor = await asyncio.gather(sandhold("setup", "--json", env=env), sandhold("doctor", "--json", env=env))
    assert (setup.code, setup.document["current_build"]) == (0, None)
    wrong = [check for check in doctor.document["checks"] if check["ok"] is False]
    assert (doctor.code, doctor.document["ok"], wrong) == (0, True, [])
