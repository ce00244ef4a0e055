"""The programs that read and write files inside a sandbox, on every shell that this machine has."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from activities.file_scripts import READ, WRITE, BrokenAnswer, ScriptAnswer, parse_answer

SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}
TOOLS = """
    cat chmod cp dd flock head mkdir mv od readlink rm sha256sum sleep stat tail wc
"""


@pytest.fixture(params=[name for name, command in SHELLS.items() if shutil.which(command[0])])
def shell(request: pytest.FixtureRequest) -> list[str]:
    return SHELLS[request.param]


def read(
    shell: list[str], path: Path, *, offset: int = 0, limit: int = 2000, bound: int = 1000, **more: str
) -> ScriptAnswer:
    environment = {"SANDHOLD_OFFSET": str(offset), "SANDHOLD_LIMIT": str(limit), "SANDHOLD_BOUND": str(bound)}
    return run(shell, READ, {"SANDHOLD_PATH": str(path), **environment, **more})


def write(
    shell: list[str],
    home: Path,
    path: Path | str,
    data: bytes,
    *,
    call: str = "call-1",
    append: bool = False,
    mode: str = "",
    upload: Path | None = None,
    **more: str,
) -> ScriptAnswer:
    if upload is not None:
        upload.write_bytes(data)
    return run(
        shell,
        WRITE,
        {
            "HOME": str(home),
            "SANDHOLD_PATH": str(path),
            "SANDHOLD_MODE": mode,
            "SANDHOLD_APPEND": "1" if append else "0",
            "SANDHOLD_CALL": call,
            "SANDHOLD_SIZE": str(len(data)),
            "SANDHOLD_SHA256": hashlib.sha256(data).hexdigest(),
            "SANDHOLD_DATA": "" if upload else base64.b64encode(data).decode(),
            "SANDHOLD_UPLOAD": str(upload or ""),
            **more,
        },
    )


def run(shell: list[str], script: str, environment: dict[str, str]) -> ScriptAnswer:
    done = subprocess.run(
        [*shell, "-c", script],
        env={"PATH": os.environ["PATH"], **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=30,
        check=False,
    )
    return parse_answer(done.stdout.decode())


# busybox brings the tools itself.
without_busybox = pytest.mark.parametrize("shell", ["dash", "bash"], indirect=True)


@pytest.fixture
def sparse_path(tmp_path: Path) -> str:
    """A PATH without base64, as some small images have it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS.split():
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    return str(folder)


def absolute_shell(shell: list[str]) -> list[str]:
    found = shutil.which(shell[0])
    assert found
    return [found, *shell[1:]]


def test_a_small_file_comes_whole_and_a_large_one_as_its_window(shell: list[str], tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(bytes(range(256)))
    answer = read(shell, small)
    assert (answer.kind, answer.data()) == ("whole", bytes(range(256)))
    large = tmp_path / "large"
    large.write_text("".join(f"line {number}\n" for number in range(500)) + "last")
    answer = read(shell, large, offset=498, limit=2)
    assert (answer.kind, answer.size, answer.third) == ("window", large.stat().st_size, "501")
    assert answer.data() == b"line 498\nline 499\n"
    assert read(shell, large, offset=500, limit=10).data() == b"last"
    assert read(shell, large, offset=501).data() == b""
    assert read(shell, large, offset=2**53).data() == b""


def test_a_line_without_end_is_cut_at_the_bound(shell: list[str], tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * 100_000)
    assert read(shell, large).data() == b"x" * 1001


@without_busybox
def test_reading_works_without_base64(shell: list[str], tmp_path: Path, sparse_path: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)))
    answer = read(absolute_shell(shell), file, PATH=sparse_path)
    assert (answer.encoding, answer.data()) == ("hex", bytes(range(256)))


@pytest.mark.parametrize(
    "name", ["a b'c\"d$(touch x)`e`;f", "-rf", "new\nline", "ünïcødé", "back\\slash", "*?[x]", "end\n"]
)
def test_hostile_names_are_names(shell: list[str], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert write(shell, tmp_path, path, b"content", call="call-1").kind == "written"
    assert path.read_bytes() == b"content"
    assert read(shell, path).data() == b"content"
    link = tmp_path / "link"
    link.symlink_to(path)
    assert write(shell, tmp_path, link, b"by the link", call="call-2").kind == "written"
    assert link.is_symlink()
    assert path.read_bytes() == b"by the link"


def test_what_cannot_be_read_says_why(shell: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert read(shell, tmp_path).kind == "directory"
    assert read(shell, tmp_path / "pipe").kind == "special"
    assert read(shell, Path("/dev/zero")).kind == "special"
    for missing in ("missing", "file/below", "missing/below"):
        answer = read(shell, tmp_path / missing)
        assert answer.kind == "failed"
        assert "no such file" in answer.body.lower() or "not a directory" in answer.body.lower()
    assert "symbolic links" in read(shell, tmp_path / "loop").body


def test_a_written_file_replaces_the_old_one_and_keeps_its_mode(shell: list[str], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    data = bytes(range(256)) * 20
    answer = write(shell, tmp_path, path, data, call="1")
    assert (answer.size, answer.third) == (len(data), hashlib.sha256(data).hexdigest())
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o7777 == 0o644
    path.chmod(0o750)
    assert write(shell, tmp_path, path, b"new", call="2").kind == "written"
    assert path.stat().st_mode & 0o7777 == 0o750
    assert write(shell, tmp_path, path, b"", call="3", mode="0600").size == 0
    assert path.stat().st_mode & 0o7777 == 0o600
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["file"], "no temporary file stays"


def in_front(folder: Path, tool: str, script: str) -> str:
    """A PATH on which a tool does this instead."""
    folder.mkdir()
    (folder / tool).write_text(f"#!/bin/sh\n{script}\n")
    (folder / tool).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@without_busybox
def test_what_a_killed_write_leaves_is_gone_after_the_next_attempt(shell: list[str], tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    other = path.with_name(".sandhold-other-call-1~7")
    other.touch()
    killing = in_front(tmp_path / "bin", "cat", "/bin/cat; printf half; kill -9 0")
    with pytest.raises(BrokenAnswer):
        write(["setsid", *shell], tmp_path, path, b"content", upload=tmp_path / "upload", PATH=killing)
    assert len(list(path.parent.iterdir())) == 2, "the test kills nothing"
    assert write(shell, tmp_path, path, b"content", upload=tmp_path / "upload").kind == "written"
    assert sorted(path.parent.iterdir()) == [other, path]


def test_a_write_is_done_once_for_a_call_id(shell: list[str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    first = write(shell, tmp_path, path, b"ours")
    path.write_bytes(b"changed by somebody since")
    assert write(shell, tmp_path, path, b"ours") == first
    assert path.read_bytes() == b"changed by somebody since"


def test_content_can_come_as_an_uploaded_file_which_is_removed(shell: list[str], tmp_path: Path) -> None:
    folder = tmp_path / ".sandhold" / "calls" / "call-1"
    folder.mkdir(parents=True)
    (folder / "upload-of-an-attempt-that-was-killed").touch()
    data = os.urandom(300_000)
    assert write(shell, tmp_path, tmp_path / "file", data, upload=folder / "upload-2").kind == "written"
    assert (tmp_path / "file").read_bytes() == data
    assert not list(folder.glob("upload*"))


def test_a_damaged_upload_is_not_written(shell: list[str], tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    answer = write(shell, tmp_path, tmp_path / "file", b"content", upload=upload, SANDHOLD_SHA256="0" * 64)
    assert answer.kind == "damaged"
    assert not (tmp_path / "file").exists()


@without_busybox
def test_without_base64_an_upload_is_asked_for(shell: list[str], tmp_path: Path, sparse_path: str) -> None:
    shell = absolute_shell(shell)
    assert write(shell, tmp_path, tmp_path / "file", b"x", PATH=sparse_path).kind == "need-upload"
    assert write(shell, tmp_path, tmp_path / "file", b"x", upload=tmp_path / "u", PATH=sparse_path).kind == "written"


def test_bytes_are_appended_once_for_a_call_id(shell: list[str], tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert write(shell, tmp_path, path, b"one\n", call="1", append=True).size == 4
    assert path.stat().st_mode & 0o7777 == 0o644
    inode = path.stat().st_ino
    for _ in range(3):
        answer = write(shell, tmp_path, path, b"two\n", call="2", append=True)
        assert (answer.size, answer.third) == (8, hashlib.sha256(b"one\ntwo\n").hexdigest())
    assert path.read_bytes() == b"one\ntwo\n"
    assert path.stat().st_ino == inode, "a program that holds the file open goes on writing to it"


@pytest.mark.parametrize("there", [b"", b"tw", b"two\n", b"two\nthree by another\n"])
def test_an_append_that_was_killed_half_way_is_completed(shell: list[str], tmp_path: Path, there: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n" + there)
    call = tmp_path / ".sandhold" / "calls" / "call-1"
    call.mkdir(parents=True)
    (call / "append").write_text("4\n")
    assert write(shell, tmp_path, path, b"two\n", append=True).kind == "written"
    assert path.read_bytes() == b"one\n" + (there if len(there) > 4 else b"two\n")


@pytest.mark.parametrize("now", [b"on", b"one\nanother", b"another beginning"])
def test_an_append_of_which_the_file_no_longer_tells_is_not_repeated(
    shell: list[str], tmp_path: Path, now: bytes
) -> None:
    path = tmp_path / "log"
    path.write_bytes(now)
    call = tmp_path / ".sandhold" / "calls" / "call-1"
    call.mkdir(parents=True)
    (call / "append").write_text("4\n")
    assert write(shell, tmp_path, path, b"two\n", append=True).kind == "changed"
    assert path.read_bytes() == now


@without_busybox
@pytest.mark.parametrize("is_new", [False, True])
def test_an_append_that_fails_takes_back_its_own_bytes_alone(shell: list[str], tmp_path: Path, is_new: bool) -> None:
    path = tmp_path / "log"
    before = b"" if is_new else b"one\n"
    path.write_bytes(before)
    if is_new:
        path.unlink()

    def failing(name: str, meanwhile: str) -> str:
        """A PATH whose disk becomes full after two bytes."""
        is_of_the_content = '[ $# = 2 ] || exec /usr/bin/tail "$@"'
        return in_front(tmp_path / name, "tail", f"{is_of_the_content}\n/usr/bin/head -c 2\n{meanwhile}\nexit 1")

    alone = write(shell, tmp_path, path, b"two\n", call="1", append=True, PATH=failing("alone", ""))
    assert alone.kind == "failed"
    assert path.exists() != is_new
    assert is_new or path.read_bytes() == before
    busy = failing("busy", f"echo another >>{path}")
    assert write(shell, tmp_path, path, b"two\n", call="2", append=True, PATH=busy).kind == "changed"
    assert path.read_bytes() == before + b"twanother\n"
    assert write(shell, tmp_path, path, b"two\n", call="2", append=True).kind == "changed", "never a second half"
    assert path.read_bytes() == before + b"twanother\n"


def test_ten_attempts_at_once_append_once(shell: list[str], tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    data = b"x" * 40_000
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SANDHOLD_PATH": str(path),
        "SANDHOLD_MODE": "",
        "SANDHOLD_APPEND": "1",
        "SANDHOLD_CALL": "c",
        "SANDHOLD_SIZE": str(len(data)),
        "SANDHOLD_SHA256": hashlib.sha256(data).hexdigest(),
        "SANDHOLD_DATA": base64.b64encode(data).decode(),
        "SANDHOLD_UPLOAD": "",
    }
    attempts = [subprocess.Popen([*shell, "-c", WRITE], env=environment, stdout=subprocess.PIPE) for _ in range(10)]
    answers = [parse_answer(attempt.communicate(timeout=60)[0].decode()) for attempt in attempts]
    assert {(answer.kind, answer.size) for answer in answers} == {("written", 7 + len(data))}
    assert path.read_bytes() == b"before\n" + data


def test_what_cannot_be_written_says_why_and_leaves_the_old_file(shell: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "target")
    assert write(shell, tmp_path, tmp_path, b"x").kind == "directory"
    assert write(shell, tmp_path, f"{tmp_path}/new/", b"x").kind == "directory"
    assert write(shell, tmp_path, tmp_path / "pipe", b"x").kind == "special"
    assert write(shell, tmp_path, Path("/dev/null"), b"x").kind == "special"
    assert write(shell, tmp_path, Path("/dev/full"), b"x", append=True).kind == "special"
    below = write(shell, tmp_path, tmp_path / "file" / "below", b"x")
    assert below.kind == "failed"
    assert "File exists" in below.body or "Not a directory" in below.body
    assert write(shell, tmp_path, tmp_path / ("n" * 300), b"x").kind == "failed"
    assert write(shell, tmp_path, tmp_path / "loop", b"x").kind == "failed"
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("append", [False, True])
def test_a_file_is_written_under_a_path_as_long_as_linux_takes(shell: list[str], tmp_path: Path, append: bool) -> None:
    folder = f"{tmp_path}/" + "d" * 200
    folder += ("/" + "d" * 200) * ((4095 - len(folder) - 3) // 201 - 1)
    path = f"{folder}/{'e' * (4095 - len(folder) - 3)}/f"
    assert len(path) == 4095
    assert write(shell, tmp_path, path, b"one", append=append, call="c" * 128).size == 3
    assert read(shell, Path(path)).data() == b"one"
    assert os.listdir(os.path.dirname(path)) == ["f"]


def test_a_killed_program_gives_no_answer() -> None:
    for output in ("", "Killed\n", "\nsandhold-file whole 10 0 base64\nAAAA"):
        with pytest.raises(BrokenAnswer):
            parse_answer(output)
