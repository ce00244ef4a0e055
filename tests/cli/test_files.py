"""`sandhold files` and `sandhold storage` as a script meets them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import pty
import random
import signal
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sandhold.client import Session
from sandhold.storage import SessionStorage
from sandhold.storage.claims import CLAIM
from sandhold.storage.session_keys import SESSION_KEY
from tests.cli.process import COMMAND, finished, sandhold, started
from tests.s3_server import S3Server
from tests.stack import RING, Stack, environment_of

pytestmark = pytest.mark.storage("folder", "s3")

DATA = random.Random(5).randbytes(11 * 1024 * 1024 + 3)


@pytest.fixture(scope="module")
def env(module_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return environment_of(module_stack, tmp_path_factory.mktemp("cli"))


@pytest.fixture
async def session(stack: Stack) -> AsyncIterator[Session]:
    session = await stack.open(storage_quota_bytes=40 * 1024 * 1024, file_quota_bytes=16 * 1024 * 1024)
    yield session
    await session.end()


@pytest.fixture
def unfinished(request: pytest.FixtureRequest, stack: Stack) -> Callable[[Session], int]:
    """How many writes have left something of a session that no listing shows."""
    place = urlsplit(stack.settings.storage_location)
    if place.scheme == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        return lambda session: server.unfinished_uploads(place.netloc, session.session_id)
    sessions = Path(place.path) / "sessions"
    return lambda session: sum(
        path.is_file() and path.name not in {CLAIM, SESSION_KEY} for path in (sessions / session.session_id).rglob("*")
    )


async def test_a_file_goes_in_and_out(env: Mapping[str, str], session: Session, tmp_path: Path) -> None:
    files = ("files", session.session_id)
    (tmp_path / "data.bin").write_bytes(DATA)
    put = await sandhold(*files, "put", str(tmp_path / "data.bin"), "/deep/data.bin", "--json", env=env)
    assert put.document == {"session_id": session.session_id, "files": 1, "bytes": len(DATA), "skipped": []}
    named, into = await asyncio.gather(
        sandhold(*files, "put", str(tmp_path / "data.bin"), env=env),
        sandhold(*files, "put", str(tmp_path / "data.bin"), "deep/er/", env=env),
    )
    assert (named.code, into.code) == (0, 0)
    listed = await sandhold(*files, "ls", "--json", env=env)
    rows = listed.document["files"]
    assert [row["path"] for row in rows] == ["data.bin", "deep/data.bin", "deep/er/data.bin"]
    assert {row["size"] for row in rows} == {len(DATA)}
    assert all(row["modified_at"].endswith("Z") for row in rows)
    first = await sandhold(*files, "ls", "--limit", "1", "--json", env=env)
    assert (len(first.document["files"]), first.document["next"]) == (1, "data.bin")
    rest = await sandhold(*files, "ls", "--after", "data.bin", "--limit", "2", "--json", env=env)
    assert (len(rest.document["files"]), rest.document["next"]) == (2, None)
    one = await sandhold(*files, "ls", "deep/data.bin", env=env)
    assert "deep/data.bin" in one.out
    got = await sandhold(*files, "get", "deep/data.bin", str(tmp_path / "got"), "--json", env=env)
    assert got.document["bytes"] == len(DATA)
    assert (tmp_path / "got").read_bytes() == DATA
    removed = await sandhold(*files, "rm", "-r", "deep", "--json", env=env)
    assert removed.document["removed"] == 2
    assert [each.path async for each in session.files.list()] == ["data.bin"]


async def test_standard_streams_stand_for_a_file(env: Mapping[str, str], session: Session) -> None:
    files = (*COMMAND, "files", session.session_id)
    data = DATA[: 6 * 1024 * 1024]
    put = await asyncio.create_subprocess_exec(*files, "put", "-", "piped", stdin=asyncio.subprocess.PIPE, env=env)
    await put.communicate(data)
    assert put.returncode == 0
    get = await asyncio.create_subprocess_exec(
        *files, "get", "piped", "-", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=env
    )
    out, err = await get.communicate()
    assert (get.returncode, out == data, err) == (0, True, b"")
    head = await asyncio.create_subprocess_shell(
        f"{' '.join(files)} get piped - | head -c 5; exit ${{PIPESTATUS[0]}}",
        executable="/bin/bash",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
    )
    out, err = await head.communicate()
    assert (head.returncode, out, err) == (141, data[:5], b"")


async def test_folders_are_copied_with_names_of_what_was_left_out(
    env: Mapping[str, str], session: Session, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    contents = {f"a/b/{number}": str(number).encode() * number for number in range(30)} | {"top#1": b"x", "a/é": b"y"}
    for name, data in contents.items():
        (tree / name).write_bytes(data)
    files = ("files", session.session_id)
    whole = await sandhold(*files, "put", "-r", str(tree), "copy", "--json", env=env)
    assert (whole.code, whole.document["files"], whole.document["skipped"]) == (0, len(contents), [])
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "folder-link").symlink_to("/etc")
    os.mkfifo(tree / "pipe")
    (Path(os.fsencode(tree).decode()) / os.fsdecode(b"bad-\xff")).write_bytes(b"1")
    (tree / "new\nline").write_bytes(b"1")
    part = await sandhold(*files, "put", "-r", str(tree), "copy", "--json", env=env)
    assert (part.code, part.document["files"]) == (1, len(contents))
    assert {each["path"].encode("ascii", "replace").decode() for each in part.document["skipped"]} == {
        "link",
        "folder-link",
        "pipe",
        "bad-\\udcff",
        "new\nline",
    }
    got = await sandhold(*files, "get", "-r", "copy", str(tmp_path / "back"), "--json", env=env)
    assert (got.code, got.document["files"]) == (0, len(contents))
    back = {
        path.relative_to(tmp_path / "back").as_posix(): path.read_bytes()
        for path in (tmp_path / "back").rglob("*")
        if path.is_file()
    }
    assert back == contents


async def test_all_files_are_removed_only_when_somebody_says_so_in_so_many_words(
    env: Mapping[str, str], session: Session
) -> None:
    for name in ("kept", "workspaces/box-g1.tar.zst"):
        await session.files.write(name, b"1")
    rm = ("files", session.session_id, "rm")
    refused = [
        await sandhold(*rm, *arguments, "--json", env=env)
        for arguments in (("-r", ""), ("-r", "", "--yes"), ("",), ("-r", "/"))
    ]
    assert [(each.code, each.document["error"]["code"]) for each in refused] == [(2, "usage")] * 4
    assert len([each async for each in session.files.list()]) == 2
    removed = await sandhold(*rm, "-r", "/", "--yes", "--json", env=env)
    assert (removed.code, removed.document["removed"]) == (0, 2)


async def test_a_device_or_a_pipe_is_written_to_and_stays_what_it_is(
    env: Mapping[str, str], session: Session, tmp_path: Path
) -> None:
    await session.files.write("folder/file", DATA)
    get = ("files", session.session_id, "get", "folder/file")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    unread = await sandhold(*get, str(pipe), "--json", env=env)
    assert (unread.code, unread.document["error"]["code"]) == (1, "local_file_unusable")
    with os.fdopen(os.open(pipe, os.O_RDWR), "rb", buffering=0) as reader:
        reading = asyncio.create_task(asyncio.to_thread(io.BufferedReader(reader).read, len(DATA)))
        got = await sandhold(*get, str(pipe), "--json", env=env)
        assert (got.code, got.document["bytes"], await reading == DATA) == (0, len(DATA), True)
    (tmp_path / "way").symlink_to("/dev/null")
    assert (await sandhold(*get, str(tmp_path / "way"), env=env)).code == 0
    in_a_tree = await sandhold(*get[:3], "-r", "folder", str(tmp_path / "tree"), env=env)
    assert in_a_tree.code == 0
    (tmp_path / "tree" / "file").unlink()
    os.mkfifo(tmp_path / "tree" / "file")
    left_out = await sandhold(*get[:3], "-r", "folder", str(tmp_path / "tree"), "--json", env=env)
    assert (left_out.code, [each["path"] for each in left_out.document["skipped"]]) == (1, ["folder/file"])
    assert pipe.is_fifo()
    assert (tmp_path / "way").is_symlink()
    assert (tmp_path / "tree" / "file").is_fifo()


async def test_a_link_is_stored_under_its_own_name(env: Mapping[str, str], session: Session, tmp_path: Path) -> None:
    (tmp_path / "app-2026.log").write_text("x")
    (tmp_path / "latest.log").symlink_to("app-2026.log")
    for path in ([], ["into/"]):
        put = await sandhold("files", session.session_id, "put", str(tmp_path / "latest.log"), *path, env=env)
        assert put.code == 0, put.err
    assert [each.path async for each in session.files.list()] == ["into/latest.log", "latest.log"]


async def test_errors_have_their_codes(env: Mapping[str, str], session: Session, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(17 * 1024 * 1024)
    files = ("files", session.session_id)
    answers = await asyncio.gather(
        sandhold("files", "never-was", "ls", "--json", env=env),
        sandhold(*files, "get", "nothing", str(tmp_path / "x"), "--json", env=env),
        sandhold(*files, "get", "-r", "nothing", str(tmp_path / "x"), "--json", env=env),
        sandhold(*files, "rm", "nothing", "--json", env=env),
        sandhold(*files, "put", str(large), "large", "--json", env=env),
        sandhold(*files, "put", str(large), "../large", "--json", env=env),
        sandhold(*files, "put", str(tmp_path / "missing"), "x", "--json", env=env),
        sandhold(*files, "put", "-", "--json", env=env),
        sandhold(*files, "get", "x", "-", "--json", env=env),
        sandhold(*files, "--json", env=env),
    )
    assert [(each.code, each.document["error"]["code"]) for each in answers] == [
        (3, "session_not_found"),
        (1, "path_not_found"),
        (1, "path_not_found"),
        (1, "path_not_found"),
        (1, "quota_exceeded"),
        (1, "invalid_arguments"),
        (1, "local_file_unusable"),
        (2, "usage"),
        (2, "usage"),
        (2, "usage"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large"]
    assert [each async for each in session.files.list()] == []


async def test_the_files_of_a_session_that_has_ended_are_there(
    env: Mapping[str, str], stack: Stack, tmp_path: Path
) -> None:
    session = await stack.open()
    await session.files.write("left", b"behind")
    await session.end()
    files = ("files", session.session_id)
    listed, got, put = await asyncio.gather(
        sandhold(*files, "ls", "--json", env=env),
        sandhold(*files, "get", "left", str(tmp_path / "left"), env=env),
        sandhold(*files, "put", "/etc/hostname", "more", "--json", env=env),
    )
    assert [row["path"] for row in listed.document["files"]] == ["left"]
    assert (got.code, (tmp_path / "left").read_bytes()) == (0, b"behind")
    assert (put.code, put.document["error"]["code"]) == (3, "session_ended")
    assert (await sandhold(*files, "rm", "left", env=env)).code == 0


async def test_an_interrupted_copy_leaves_nothing(
    env: Mapping[str, str], stack: Stack, session: Session, unfinished: Callable[[Session], int]
) -> None:
    put = await started("files", session.session_id, "put", "-", "piped", env=env)
    assert put.stdin is not None
    put.stdin.write(DATA)
    await put.stdin.drain()
    storage = SessionStorage.open(stack.settings.storage_location, RING)
    async with asyncio.timeout(30):
        while not [each async for each in storage.objects.list(session.session_id, "reservations")]:
            await asyncio.sleep(0.05)
    put.send_signal(signal.SIGINT)
    assert await put.wait() == 130
    assert [each.path async for each in storage.objects.list(session.session_id)] == [CLAIM]
    assert unfinished(session) == 0


@pytest.mark.storage("folder")
async def test_progress_is_for_people_and_for_what_takes_long(env: Mapping[str, str], session: Session) -> None:
    program = (
        "import sandhold.cli.progress as p; p.SHOWN_AFTER_S = 0.0\n"
        "import sys; from sandhold.cli import main; sys.argv[1:] = sys.argv[1:]; main()"
    )
    command = (COMMAND[0], "-c", program, "files", session.session_id, "put", "-", "x")
    ours, theirs = pty.openpty()
    for stderr, wanted in ((theirs, True), (asyncio.subprocess.PIPE, False)):
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=stderr, env=env
        )
        out, err = await process.communicate(DATA)
        assert (process.returncode, b"copied 1 files" in out) == (0, True)
        shown = os.read(ours, 100_000) if wanted else err
        assert (b"put x" in shown) is wanted
    os.close(ours)
    os.close(theirs)
    stored = await session.files.read("x")
    assert hashlib.sha256(stored).digest() == hashlib.sha256(DATA).digest()


async def test_a_push_shows_for_how_long_it_has_gone_on(env: Mapping[str, str], stack: Stack, session: Session) -> None:
    await session.create_sandbox(sandbox_id="box")
    await session.files.write("data", b"1")
    await stack.faults.add(path=r"/toolbox/[^/]+/files/.*upload.*", effect="delay", seconds=2.5, times=1)
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "files", session.session_id, "push", "box", "data", "x", stdout=DEVNULL, stderr=theirs, env=env
    )
    assert await process.wait() == 0
    os.set_blocking(ours, False)
    assert b"push to box" in os.read(ours, 100_000)
    os.close(ours)
    os.close(theirs)


async def test_storage_is_cleaned_by_hand(env: Mapping[str, str], stack: Stack, session: Session) -> None:
    await session.files.write("kept", b"1")
    told = await sandhold("storage", "clean", "--dry-run", "--json", env=env)
    assert (told.code, told.document["dry_run"]) == (0, True)
    assert told.document["kept_open"] >= 1
    done = await sandhold("storage", "clean", env=env)
    assert (done.code, "removed: 0 sessions" in done.out) == (0, True)
    assert await session.files.read("kept") == b"1"


async def test_a_listing_of_hostile_names_is_no_markup(env: Mapping[str, str], session: Session) -> None:
    await session.files.write("[red]x[/red]", b"1")
    listed = await sandhold("files", session.session_id, "ls", env=env)
    assert "[red]x[/red]" in listed.out
    document = await sandhold("files", session.session_id, "ls", "--json", env=env)
    assert json.loads(document.out)["files"][0]["path"] == "[red]x[/red]"


async def test_a_process_says_the_same(env: Mapping[str, str], session: Session) -> None:
    ended = await finished(await started("files", session.session_id, "ls", "--json", env=env))
    assert (ended.code, ended.document["files"]) == (0, [])


async def test_files_are_pushed_from_storage_and_from_here_into_a_sandbox(
    env: Mapping[str, str], session: Session, tmp_path: Path
) -> None:
    box = (await session.create_sandbox(sandbox_id="box")).sandbox_id
    for name in ("one", "folder/two", "folder/deep/three"):
        await session.files.write(name, name.encode())
    (tmp_path / "local").write_bytes(DATA)
    push = ("files", session.session_id, "push", box)
    single = await sandhold(*push, "/one", "first", "--json", env=env)
    assert (single.code, single.document) == (
        0,
        {
            "session_id": session.session_id,
            "sandbox_id": "box",
            "files_uploaded": 1,
            "bytes": 3,
            "files_failed": [],
        },
    )
    several = await sandhold(*push, "one", "folder", "none", "in", env=env)
    assert (several.code, "none" in several.err, "pushed 3 files" in several.out) == (1, True, True)
    local = await sandhold(*push, str(tmp_path / "local"), "in/", "--from-local", "--json", env=env)
    assert (local.code, local.document["bytes"]) == (0, len(DATA))
    assert (await session.files.find("pushed/local")).size == len(DATA)
    ran = await session.exec("box", "cat first; cd in; find . -type f | sort; sha256sum <local", output="normal")
    assert ran.stdout.splitlines() == [
        "one./folder/deep/three",
        "./folder/two",
        "./local",
        "./one",
        f"{hashlib.sha256(DATA).hexdigest()}  -",
    ]
    missing, alone = await asyncio.gather(
        sandhold("files", session.session_id, "push", "nobody", "one", "x", "--json", env=env),
        sandhold(*push, "one", "--json", env=env),
    )
    assert (missing.code, missing.document["error"]["code"]) == (3, "sandbox_not_found")
    assert (alone.code, alone.document["error"]["code"]) == (2, "usage")


async def test_the_end_tells_what_was_saved(env: Mapping[str, str], stack: Stack) -> None:
    session = await stack.open(on_end="download")
    await session.create_sandbox(sandbox_id="box")
    await session.exec("box", "echo work >work; mkfifo pipe")
    await session.manage_sandbox("box", "delete")
    shown = await sandhold("session", "show", session.session_id, "--json", env=env)
    [row] = shown.document["sandboxes"]
    ended = await sandhold("session", "end", session.session_id, "--json", env=env)
    assert ended.document["sandboxes"] == [{"sandbox_id": "box", "outcome": "deleted", "saved": row["saved"]}]
    assert row["saved"]["session_path"] == "/workspaces/box-g1.tar.zst"
    assert (row["saved"]["skipped_count"], row["saved"]["report_path"]) == (1, "/workspaces/box-g1.json")
    for people in (
        await sandhold("session", "end", session.session_id, env=env),
        await sandhold("session", "show", session.session_id, env=env),
    ):
        assert "/workspaces/box-g1.tar.zst" in people.out.replace("\n", "")
