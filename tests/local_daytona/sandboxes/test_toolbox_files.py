"""Files of a sandbox, through the official client and, where it cannot say it, by raw requests."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from daytona import DaytonaError
from daytona.common.errors import (
    DaytonaBadRequestError,
    DaytonaConflictError,
    DaytonaFileAccessDeniedError,
    DaytonaFileNotFoundError,
)
from daytona.common.filesystem import FileDownloadRequest, FileUpload

from tests.local_daytona.sandboxes.boxes import Box, Boxes, processes_named

EVERY_BYTE = bytes(range(256)) * 3
HOSTILE_NAMES = [
    "with space",
    "with \"quotes\" and 'these'",
    "line\nbreak",
    "carriage\r\nreturn",
    "ünïcödé 漢字 🎉",
    "-rf",
    "--",
    "semi;colon=equals&amp%20%0A",
    "back\\slash",
    "$(touch owned)`touch owned`",
    "a" * 240,
    "tab\tand\x01control",
    'filename="x"; name="y"',
]


@pytest.mark.parametrize("content", [b"", b"x", EVERY_BYTE, b"\r\n--boundary--\r\n", os.urandom(300_000)])
async def test_bytes_come_back_as_they_went(box: Box, content: bytes) -> None:
    await box.fs.upload_file(content, "there/and back.bin")
    assert await box.fs.download_file("there/and back.bin") == content
    assert await box.run("sha256sum < 'there/and back.bin'") == f"{hashlib.sha256(content).hexdigest()}  -\n"


@pytest.mark.parametrize("name", HOSTILE_NAMES)
async def test_any_name_works_in_every_operation(box: Box, name: str) -> None:
    content = f"hello {name}".encode()
    await box.fs.create_folder(f"folder/{name}", "755")
    path = f"folder/{name}/{name}"
    # The client's other upload repeats the path in a header and refuses control characters itself.
    await box.fs.upload_file_stream(content, path)
    assert await box.fs.download_file(path) == content
    assert [entry.name for entry in await box.fs.list_files("folder")] == [name]
    assert (await box.fs.get_file_info(path)).name == name
    assert [found.content for found in await box.fs.find_files("folder", "hello")]
    await box.fs.move_files(path, f"moved {name}")
    assert (await box.fs.search_files("/home/daytona", "moved*")).files == [f"/home/daytona/moved {name}"]
    await box.fs.delete_file(f"folder/{name}", recursive=True)
    assert await box.fs.list_files("folder") == []
    assert "owned" not in [entry.name for entry in await box.fs.list_files(".")]


async def test_a_file_is_described_as_the_client_expects(box: Box) -> None:
    await box.fs.upload_file(b"12345", "some/file.txt")
    await box.fs.set_file_permissions("some/file.txt", mode="640")
    info = await box.fs.get_file_info("some/file.txt")
    assert (info.name, info.size, info.is_dir) == ("file.txt", 5, False)
    assert (info.mode, info.permissions) == ("-rw-r-----", "0640")
    assert (info.owner, info.group) == ("daytona", "daytona")
    assert info.modified_at is not None
    assert info.modified_at.endswith("Z")
    folder = await box.fs.get_file_info("/home/daytona/some")
    assert (folder.name, folder.is_dir, folder.mode) == ("some", True, "drwxr-xr-x")


async def test_a_listing_goes_as_deep_as_asked(box: Box) -> None:
    await box.run("mkdir -p a/b/c; touch a/1 a/b/2 a/b/c/3")
    assert [entry.name for entry in await box.fs.list_files("a")] == ["1", "b"]
    assert [entry.path for entry in await box.fs.list_files("/home/daytona/a", depth=2)] == [
        f"/home/daytona/a/{name}" for name in ("1", "b", "b/2", "b/c")
    ]
    for depth in ("0", "-1", "x", "1.5", "999999999999999999999"):
        status, answer = await box.ask("GET", "/files", params={"path": "a", "depth": depth})
        assert (status, answer["code"]) == (400, "BAD_REQUEST")


async def test_a_tree_of_any_depth_or_width_is_no_danger(box: Box) -> None:
    nest = "import os\nfor _ in range(5000): os.mkdir('d'); os.chdir('d')"
    await box.run(f'mkdir wide deep; cd wide; seq 3000 | xargs mkdir; cd ../deep; python3 -c "{nest}"')
    assert len(await box.fs.list_files("deep", depth=1000)) == 1000
    assert len((await box.fs.search_files(".", "d")).files) > 1000
    assert await box.fs.find_files(".", "nothing") == []
    await box.fs.delete_file("wide", recursive=True)
    with pytest.raises(DaytonaError):
        await box.fs.delete_file("deep", recursive=True)
    await box.run("rm -rf deep && ls")


async def test_names_that_are_not_utf_8_do_not_break_a_listing(box: Box) -> None:
    await box.run("touch $(printf 'bad\\377name') good")
    assert [entry.name for entry in await box.fs.list_files(".")] == ["bad\ufffdname", "good"]


async def test_ten_thousand_files_are_listed_and_searched(box: Box) -> None:
    await box.run("mkdir many && cd many && seq -f 'file%.0f' 10000 | xargs touch")
    assert len(await box.fs.list_files("many")) == 10_000
    assert len((await box.fs.search_files("many", "*7")).files) == 1_000


async def test_find_names_file_line_and_content(box: Box) -> None:
    await box.run("mkdir -p src/deep; printf 'one\\nneedle two\\n' > src/a; printf 'x\\n\\nneedle' > src/deep/b")
    await box.run("printf 'needle\\0binary' > src/binary; ln -s a src/link; mkfifo src/pipe; chmod 000 src/deep/b || :")
    await box.run("chmod 644 src/deep/b; touch src/closed; chmod 000 src/closed")
    found = sorted((match.file, match.line, match.content) for match in await box.fs.find_files("src", "needle"))
    assert found == [("/home/daytona/src/a", 2, "needle two"), ("/home/daytona/src/deep/b", 3, "needle")]


async def test_replace_tells_for_each_file_what_happened(box: Box) -> None:
    await box.run("echo 'old and old' > one; echo nothing > two")
    results = await box.fs.replace_in_files(["one", "two", "three"], "old", "new")
    assert [(result.file, result.success) for result in results] == [("one", True), ("two", True), ("three", False)]
    assert "No such file" in str(results[2].error)
    assert await box.run("cat one two") == "new and new\nnothing\n"
    with pytest.raises(DaytonaBadRequestError):
        await box.fs.replace_in_files(["one"], "", "x")


async def test_a_move_replaces_a_file_and_crosses_file_systems(box: Box) -> None:
    await box.run("echo new > new; echo old > old; mkdir -p /tmp/tree/sub; echo deep > /tmp/tree/sub/file")
    await box.fs.move_files("new", "old")
    await box.fs.move_files("/tmp/tree", "tree")
    await box.fs.move_files("old", "/tmp/there")
    assert await box.run("cat /tmp/there tree/sub/file; ls; ls /tmp") == "new\ndeep\ntree\nthere\n"
    with pytest.raises(DaytonaFileNotFoundError):
        await box.fs.move_files("not there", "anywhere")
    await box.run("mkdir -p full/x other")
    with pytest.raises(DaytonaConflictError):
        await box.fs.move_files("other", "full")


async def test_a_folder_is_deleted_only_when_that_is_said(box: Box) -> None:
    await box.run("mkdir -p folder/x; ln -s folder link; touch folder/kept")
    with pytest.raises(DaytonaBadRequestError, match="recursive"):
        await box.fs.delete_file("folder")
    await box.fs.delete_file("link")
    assert await box.run("ls folder") == "kept\nx\n"
    await box.fs.delete_file("folder", recursive=True)
    with pytest.raises(DaytonaFileNotFoundError):
        await box.fs.delete_file("folder", recursive=True)


async def test_what_is_missing_or_forbidden_is_said_in_the_clients_types(box: Box) -> None:
    with pytest.raises(DaytonaFileNotFoundError):
        await box.fs.get_file_info("nowhere")
    with pytest.raises(DaytonaFileNotFoundError):
        await box.fs.list_files("nowhere")
    with pytest.raises(DaytonaFileNotFoundError, match="nowhere"):
        await box.fs.download_file("nowhere")
    with pytest.raises(DaytonaFileAccessDeniedError):
        await box.fs.create_folder("/usr/mine", "755")
    with pytest.raises(DaytonaFileAccessDeniedError):
        await box.fs.delete_file("/usr/bin/env")
    with pytest.raises(DaytonaFileAccessDeniedError):
        await box.fs.set_file_permissions("/home/daytona", owner="root")
    with pytest.raises(DaytonaBadRequestError):
        await box.fs.set_file_permissions("/home/daytona", owner="nobody-of-this-name")
    for mode in ("999", "rwx", "-1", "77777"):
        with pytest.raises(DaytonaBadRequestError, match="mode"):
            await box.fs.create_folder("folder", mode)


@pytest.mark.parametrize("path", ["nul\0byte", "x" * 300, "lone\ud800", "/dev/null", "pipe", ".", "file/below"])
async def test_a_path_that_is_no_file_is_a_typed_refusal(box: Box, path: str) -> None:
    await box.run("mkfifo pipe; touch file")
    status, answer = await box.ask("POST", "/files/bulk-download", json={"paths": [path]})
    assert (status, b'"statusCode": 400' in answer) == (200, True)
    if "\ud800" not in path:
        with pytest.raises(DaytonaError, match="400"):
            await box.fs.upload_file_stream(b"x", path)
    await box.run("true")


async def test_many_files_go_up_and_down_in_one_request(box: Box, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(EVERY_BYTE)
    await box.fs.upload_files([FileUpload(str(local), "up/one"), FileUpload(b"two", "/tmp/two")])
    wanted = [FileDownloadRequest("up/one", str(tmp_path / "back")), FileDownloadRequest("nowhere")]
    one, missing, two = await box.fs.download_files([*wanted, FileDownloadRequest("/tmp/two")])
    assert (tmp_path / "back").read_bytes() == EVERY_BYTE
    assert (one.error, two.result) == (None, b"two")
    assert missing.error_details is not None
    assert (missing.error_details.code, missing.error_details.status_code) == ("FILE_NOT_FOUND", 404)


async def test_an_upload_that_fails_for_one_file_names_it_and_writes_the_others(box: Box) -> None:
    with pytest.raises(DaytonaError, match=r"400: /usr/x: (Read-only|Permission denied)") as raised:
        await box.fs.upload_files(
            [FileUpload(b"1", "one"), FileUpload(b"2" * 100_000, "/usr/x"), FileUpload(b"3", "3")]
        )
    assert raised.value.status_code == 400
    assert await box.run("cat one 3") == "13"


async def test_streams_and_single_uploads_work(box: Box) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(5):
            yield bytes([number]) * 70_000

    await box.fs.upload_file_stream(pieces(), 'async "stream"')
    await box.fs.upload_file_stream(io.BytesIO(EVERY_BYTE), "sync\nstream")
    streamed = [piece async for piece in await box.fs.download_file_stream('async "stream"')]
    assert b"".join(streamed) == b"".join(bytes([number]) * 70_000 for number in range(5))
    assert await box.fs.download_file("sync\nstream") == EVERY_BYTE

    form = aiohttp.FormData()
    form.add_field("file", EVERY_BYTE, filename="x")
    status, answer = await box.ask("POST", "/files/upload-v2", params={"path": "single/file"}, data=form)
    assert (status, answer["path"]) == (200, "single/file")
    status, content = await box.ask("GET", "/files/download", params={"path": "single/file"})
    assert (status, content) == (200, EVERY_BYTE)


async def test_files_of_the_kernel_that_claim_to_be_empty_are_read_to_their_end(shared_box: Box) -> None:
    assert b"MemTotal" in (await shared_box.fs.download_file("/proc/meminfo"))
    status, content = await shared_box.ask("GET", "/files/download", params={"path": "/proc/self/status"})
    assert (status, b"Name:" in content) == (200, True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b\r\n",
        b'--b\r\nContent-Disposition: form-data; name="files[0].path"\r\n\r\ncut',
        b'--b\r\nContent-Disposition: form-data; name="files[0].file"\r\n\r\nno path\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="files[0].path"\r\n\r\n' + b"x" * 40_000 + b"\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="files[0].path"\r\n\r\n\xff\r\n--b--\r\n',
        b"--b\r\n" + b"X: y\r\n" * 20_000 + b"\r\n\r\n--b--\r\n",
        b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n--b--\r\n",
        b"garbage" * 10_000,
    ],
)
async def test_a_broken_form_is_a_400(shared_box: Box, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    for route in ("/files/bulk-upload", "/files/upload-v2?path=x"):
        status, _ = await shared_box.ask("POST", route, data=body, headers=headers)
        assert status == 400
    status, _ = await shared_box.ask("POST", "/files/bulk-upload", data=body, headers={"Content-Type": "text/plain"})
    assert status == 400
    await shared_box.run("true")


async def test_a_hundred_megabytes_pass_with_flat_memory(box: Box, boxes: Boxes, tmp_path: Path) -> None:
    size = 100_000_000
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(size)
    toolbox = int((await box.run("awk '/VmHWM/ {print $2}' /proc/1/status")).strip())
    # The server's own peak is reset, so that earlier tests do not hide this one's.
    server = Path(f"/proc/{boxes.server.pid}")
    before = _resident_kib(server)
    highest = before

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, _resident_kib(server))
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    await box.fs.upload_file(str(source), "large")
    await box.fs.download_file("large", str(tmp_path / "back"))
    watching.cancel()
    assert (tmp_path / "back").stat().st_size == size
    assert highest - before < 20_000
    assert int((await box.run("awk '/VmHWM/ {print $2}' /proc/1/status")).strip()) - toolbox < 10_000


def _resident_kib(process: Path) -> int:
    return int((process / "statm").read_text().split()[1]) * 4


async def test_a_caller_that_leaves_in_the_middle_of_a_transfer_disturbs_nobody(box: Box, boxes: Boxes) -> None:
    await box.run("head -c 50000000 /dev/zero > large")
    for _ in range(5):
        url = f"{boxes.url}/toolbox/{box.id}/files/download?path=large"
        async with boxes.http.get(url) as answer:
            await answer.content.read(10)
    for _ in range(5):
        with pytest.raises((TimeoutError, DaytonaError)):
            async with asyncio.timeout(0.02):
                await box.fs.upload_file(b"x" * 50_000_000, "gone")
    assert await box.fs.download_file("large") == bytes(50_000_000)
    # The toolbox has let go of every connection but the one that counts them.
    await box.run(
        "for i in $(seq 50); do [ $(awk '/Threads/ {print $2}' /proc/1/status) -le 4 ] && exit; sleep 0.1; done; exit 1"
    )
    assert processes_named("sandboxes/server.py")
