"""Files and saved workspaces from real session storage into a real sandbox."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import random
import subprocess
import tarfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment, WorkflowEnvironment

from activities.filling import FillingActivities
from activities.keeping import KeepingActivities
from activities.session_owners import SessionOwners
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.names import WORKSPACE_PATH
from sandhold.contracts.steps import CallStep, FillStep, SandboxRef, SaveStep
from sandhold.contracts.tools import CreateSandboxResult
from sandhold.contracts.transfers import PushFilesResult, RestoredWorkspace, RestoreFrom, SavedWorkspace, UploadFile
from sandhold.storage import Quota
from tests.activities.provider_under_test import ProviderUnderTest
from tests.local_daytona_faults import FaultPlan

pytestmark = pytest.mark.storage("folder", "s3")

MIB = 1024 * 1024
QUOTA = Quota(5 * 1024 * MIB, 1024 * MIB)


@dataclass
class Place:
    """A folder in session storage and a directory in the shared sandbox, both of the same name and the test's own."""

    provider: ProviderUnderTest
    filling: FillingActivities
    ref: SandboxRef
    name: str = field(default_factory=lambda: f"u-{uuid.uuid4().hex[:12]}")

    def __post_init__(self) -> None:
        self.files = self.provider.storage.files(self.ref.session_id)
        self.path = f"{WORKSPACE_PATH}/{self.name}"

    async def put(self, name: str, data: bytes) -> str:
        path = f"{self.name}/{name}"
        await self.files.write(path, data, QUOTA)
        return path

    async def sh(self, script: str) -> str:
        return await self.provider.sh(self.ref, f"mkdir -p {self.path} && cd {self.path} && {{\n{script}\n}}")

    async def sha(self, path: str) -> str:
        return (await self.sh(f"sha256sum <'{path}'")).split()[0]

    async def push(self, *pairs: tuple[str, str], **options: Any) -> PushFilesResult:
        arguments = {
            "sandbox_id": self.ref.sandbox_id,
            "files": [{"session_path": source, "sandbox_path": target} for source, target in pairs],
        }
        step = CallStep(ref=self.ref, call_id=f"call-{uuid.uuid4().hex}", arguments=arguments)
        return PushFilesResult.model_validate(
            await self._result(await self.provider.run(self.filling.push_files, step, **options))
        )

    async def fill(self, restore_from: RestoreFrom | None = None, *files: UploadFile) -> CreateSandboxResult:
        step = FillStep(
            ref=self.ref, call_id=f"call-{uuid.uuid4().hex}", restore_from=restore_from, upload_files=list(files)
        )
        return CreateSandboxResult.model_validate(
            await self._result(await self.provider.run(self.filling.fill_sandbox, step))
        )

    async def restore(self, source: str) -> RestoredWorkspace:
        restored = (await self.fill(RestoreFrom(session_path=source))).restored
        assert restored is not None
        return restored

    async def _result(self, outcome: CallOutcome) -> Any:
        assert outcome.error is None, outcome.error
        if outcome.result is not None:
            return outcome.result
        assert outcome.result_ref is not None
        return await self.provider.storage.get_json(self.ref.session_id, outcome.result_ref)


@pytest.fixture
def place(provider: ProviderUnderTest, shared_sandbox: SandboxRef, temporal: WorkflowEnvironment) -> Place:
    owners = SessionOwners(temporal.client, provider.storage, provider.access.deployment)
    return Place(provider, FillingActivities(provider.access, provider.storage, owners), shared_sandbox)


def codes(result: PushFilesResult | CreateSandboxResult) -> dict[str, ErrorCode]:
    return {failed.session_path.rpartition("/")[2]: failed.error.code for failed in result.files_failed}


async def test_files_of_any_size_arrive_byte_for_byte(place: Place) -> None:
    contents = {
        "none": b"",
        "one": b"\0",
        "ends of lines": b"a\r\n\n\xff",
        "several parts": random.Random(1).randbytes(20 * MIB + 7),
        "just a part": random.Random(2).randbytes(8 * MIB),
    }
    pairs = [(await place.put(name, data), f"{place.name}/deep/er/{name}") for name, data in contents.items()]
    result = await place.push(*pairs)
    assert (result.files_uploaded, result.bytes, result.files_failed) == (
        len(contents),
        sum(map(len, contents.values())),
        [],
    )
    for name, data in contents.items():
        assert await place.sha(f"deep/er/{name}") == hashlib.sha256(data).hexdigest()
    assert await place.sh("find . -name '.sandhold*'; ls ~/.sandhold/streams; stat -c %a deep deep/er/one") == (
        "755\n644\n"
    )


async def test_each_file_that_cannot_arrive_is_named_and_the_others_arrive(place: Place) -> None:
    await place.sh("mkdir dir; mkfifo fifo; echo x >file; mkdir locked; chmod 555 locked")
    good = await place.put("good", b"good")
    bad = {
        "missing": ("missing", ErrorCode.PATH_NOT_FOUND),
        "onto-directory": ("dir", ErrorCode.INVALID_ARGUMENTS),
        "onto-fifo": ("fifo", ErrorCode.INVALID_ARGUMENTS),
        "below-file": ("file/below", ErrorCode.INVALID_ARGUMENTS),
        "locked": ("locked/x", ErrorCode.PERMISSION_DENIED),
        "read-only": ("/proc/x/y", ErrorCode.PATH_NOT_FOUND),
        "too-long": ("n" * 300, ErrorCode.INVALID_ARGUMENTS),
    }
    for name in set(bad) - {"missing"}:
        await place.put(name, b"bad")
    result = await place.push(
        *(
            (f"{place.name}/{name}", target if target.startswith("/") else f"{place.path}/{target}")
            for name, (target, _) in bad.items()
        ),
        (good, f"{place.path}/good"),
        (good, f"{place.path}/dir/"),
    )
    assert codes(result) == {name: code for name, (_, code) in bad.items()}
    assert (result.files_uploaded, result.bytes) == (2, 8)
    assert await place.sh("cat good dir/good; ls -A; ls -A locked") == "goodgooddir\nfifo\nfile\ngood\nlocked\n"


async def test_a_file_is_replaced_through_a_link_and_keeps_its_mode(place: Place) -> None:
    await place.sh("echo old >target; chmod 751 target; ln -s target link; ln -s nowhere/deep broken")
    source = await place.put("new", b"new")
    result = await place.push((source, f"{place.name}/link"), (source, f"{place.name}/broken"))
    assert (result.files_uploaded, codes(result)) == (1, {"new": ErrorCode.PATH_NOT_FOUND})
    assert (
        await place.sh("cat target; readlink link; stat -c %a target")
        == "newlink\n".replace("link", "target") + "751\n"
    )


async def test_a_full_disk_refuses_and_keeps_what_was_there(place: Place) -> None:
    large = await place.put("large", bytes(2 * MIB))
    await place.sh(f"echo kept >/dev/shm/{place.name}; cat /dev/zero >/dev/shm/fill 2>/dev/null || true")
    try:
        result = await place.push((large, f"/dev/shm/{place.name}"))
        assert codes(result) == {"large": ErrorCode.STORAGE_FULL}
        assert await place.sh(f"cat /dev/shm/{place.name}; ls -A /dev/shm") == f"kept\nfill\n{place.name}\n"
    finally:
        await place.sh(f"rm -f /dev/shm/fill /dev/shm/{place.name}")


async def test_a_folder_arrives_with_all_that_lies_in_it(place: Place) -> None:
    contents = {f"tree/a/{number}": str(number).encode() * number for number in range(40)}
    contents |= {"tree/é/large": random.Random(3).randbytes(3 * MIB), "tree/top": b"", "tree/.sandhold/x": b"never"}
    for name, data in contents.items():
        await place.put(name, data)
    await place.sh("mkdir -p there/a; echo kept >there/mine; echo old >there/a/1")
    result = await place.push((f"{place.name}/tree", f"{place.name}/there"))
    assert (result.files_uploaded, result.files_failed) == (len(contents) - 1, [])
    assert (
        await place.sh("cd there; find . -type f | sort | head -3; ls -A")
    ) == "./a/0\n./a/1\n./a/10\na\nmine\ntop\né\n"
    assert await place.sh("cat there/mine there/a/1 there/a/3") == "kept\n1333"
    assert await place.sha("there/é/large") == hashlib.sha256(contents["tree/é/large"]).hexdigest()
    await place.sh("mkdir -p blocked/a/1/full")
    result = await place.push((f"{place.name}/tree", f"{place.name}/blocked"))
    [failed] = result.files_failed
    assert "a/1" in failed.error.message
    assert await place.sh("cat blocked/a/3") == "333"


async def test_another_attempt_goes_on_where_the_one_before_was(place: Place) -> None:
    first, second = await place.put("first", b"first"), await place.put("second", b"second")
    environment = ActivityEnvironment()
    done = {"restored": None, "settled": {"0": {"files": 1, "bytes": 5, "error": None}}}
    environment.info = environment.info.__class__(**{**environment.info.__dict__, "heartbeat_details": [done]})
    result = await place.push((first, f"{place.name}/first"), (second, f"{place.name}/second"), environment=environment)
    assert (result.files_uploaded, result.bytes) == (2, 11)
    assert await place.sh("ls; cat second") == "second\nsecond"


async def test_connections_that_break_cost_no_byte(place: Place, faults: FaultPlan) -> None:
    data = random.Random(4).randbytes(20 * MIB)
    source = await place.put("data", data)
    for route in ("/toolbox/{id}/files/upload", "/toolbox/{id}/files/bulk-upload", "/toolbox/{id}/process/execute"):
        await faults.add(route=route, effect="answer_lost", skip=1, times=1)
        await faults.add(route=route, effect="reset_before", skip=2, times=1)
    result = await place.push((source, f"{place.name}/data"))
    assert (result.files_uploaded, result.files_failed) == (1, [])
    assert await place.sha("data") == hashlib.sha256(data).hexdigest()
    assert await place.sh("ls -A; ls ~/.sandhold/streams") == "data\n"


def tar_of(*members: tuple[str, bytes | str], mode: str = "w") -> bytes:
    """An archive of files (bytes) and links (text)."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.mode = 0o640
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return written.getvalue()


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "two gzip members": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    "zstd": zstd,
    "two zstd frames": lambda data: zstd(data[:700]) + zstd(data[700:]),
}


@pytest.mark.parametrize("form", FORMS)
async def test_an_archive_of_any_form_is_unpacked_into_the_workspace(place: Place, form: str) -> None:
    large = random.Random(5).randbytes(3 * MIB)
    archive = tar_of(
        (f"{place.name}/a", b"new"), (f"{place.name}/deep/large", large), (f"{place.name}/link", "../../etc/passwd")
    )
    await place.sh("echo old >a; echo kept >b")
    source = await place.put("saved", FORMS[form](archive))
    restored = await place.restore(source)
    assert (restored.files, restored.bytes, restored.skipped_count, restored.error) == (3, 3 + len(large), 0, None)
    assert (restored.session_id, restored.session_path) == (place.ref.session_id, source)
    assert await place.sh("cat a b; readlink link; stat -c %a a") == "newkept\n../../etc/passwd\n640\n"
    assert await place.sha("deep/large") == hashlib.sha256(large).hexdigest()


@pytest.mark.parametrize("form", FORMS)
async def test_a_damaged_archive_is_an_error_that_says_so(place: Place, form: str) -> None:
    archive = FORMS[form](tar_of((f"{place.name}/a", b"first"), (f"{place.name}/b", random.Random(6).randbytes(MIB))))
    restored = await place.restore(await place.put("cut", archive[: len(archive) // 2]))
    assert restored.error is not None
    assert restored.error.code is ErrorCode.INVALID_ARGUMENTS
    assert "damaged" in restored.error.message
    damaged = bytearray(archive)
    damaged[len(archive) // 3 :] = bytes(len(archive) - len(archive) // 3)
    restored = await place.restore(await place.put("zeros", bytes(damaged)))
    assert (restored.error is None) == (form == "plain"), "zeros in a plain file are its content"
    assert await place.sh("ls -A ~/.sandhold/streams") == ""


@pytest.mark.parametrize(
    "content", [b"", b"x", b"no archive " * 100, b"\x28\xb5\x2f\xfd nonsense", b"\x1f\x8b nonsense"]
)
async def test_what_is_no_archive_is_an_error(place: Place, content: bytes) -> None:
    restored = await place.restore(await place.put("x", content))
    assert restored.error is not None
    assert restored.error.code is ErrorCode.INVALID_ARGUMENTS
    missing = await place.restore(f"{place.name}/nothing")
    assert missing.error is not None
    assert missing.error.code is ErrorCode.PATH_NOT_FOUND


@pytest.mark.storage("folder")
async def test_files_with_holes_are_restored_as_readers_see_them(place: Place) -> None:
    await place.sh(
        f"mkdir {place.name}; truncate -s 300M {place.name}/holes; printf end >>{place.name}/holes\n"
        f"tar --sparse -cf ~/{place.name}.tar {place.name}; rm -r {place.name}"
    )
    archive = base64.b64decode(await place.sh(f"base64 ~/{place.name}.tar"))
    assert len(archive) < MIB
    restored = await place.restore(await place.put("sparse.tar", archive))
    assert (restored.files, restored.bytes, restored.error) == (1, 300 * MIB + 3, None)
    assert await place.sh("stat -c %s holes; tail -c 3 holes; rm holes") == f"{300 * MIB + 3}\nend"


async def test_nothing_of_a_hostile_archive_leaves_the_workspace(place: Place) -> None:
    name = place.name
    archive = tar_of(
        (f"/tmp/{name}-absolute", b"x"),
        (f"../../tmp/{name}-above", b"x"),
        (f"{name}/../../../tmp/{name}-through", b"x"),
        (f"{name}/way", "/tmp"),
        (f"{name}/way/{name}-link", b"x"),
        (".sandhold/ours", b"x"),
        (f"{name}/fine", b"fine"),
    )
    restored = await place.restore(await place.put("hostile", archive))
    assert (restored.files, restored.skipped_count, restored.error) == (2, 4, None)
    assert [each.reason for each in restored.files_skipped] == ["unsafe_name"] * 3 + ["below_a_link"]
    assert await place.sh("cat fine; ls -A; ls /tmp ~/.sandhold | grep -e ours -e absolute -e above || true") == (
        "finefine\nway\n"
    )


async def test_a_workspace_comes_back_as_it_was_saved(place: Place) -> None:
    place.ref = await place.provider.created()  # with nothing else in its workspace
    saving = KeepingActivities(place.provider.access, place.provider.storage)
    await place.sh(
        "mkdir -p .git node_modules empty; echo ref >.git/HEAD; echo big >node_modules/x; ln -s /etc/passwd out\n"
        "printf x >\"$(printf 'new\\nline')\"; printf y >\"$(printf 'bad-\\377')\"; ln .git/HEAD hard\n"
        "chmod 711 .git/HEAD; mkfifo fifo"
    )
    shown = "find . ! -name fifo ! -path './node_modules*'"
    listing = f"{shown} -type f -printf '%m %n %s %P\\n' | sort; {shown} ! -type f -printf '%y %m %P %l\\n' | sort"
    before = await place.sh(listing)
    step = SaveStep(ref=place.ref)
    saved: SavedWorkspace = await place.provider.run(saving.save_workspace, step)
    assert saved.error is None
    path = f"/workspaces/{place.ref.sandbox_id}-g1"
    assert (saved.session_path, saved.report_path) == (f"{path}.tar.zst", f"{path}.json")
    data = b"".join([piece async for piece in place.files.read(f"{path}.tar.zst")])
    assert (len(data), hashlib.sha256(data).hexdigest()) == (saved.archive_bytes, saved.sha256)
    report = json.loads(b"".join([piece async for piece in place.files.read(f"{path}.json")]))
    assert {"path": f"{place.name}/fifo", "reason": "fifo"} in report["files_skipped"]
    await place.sh(f"rm -rf ~/{place.name}")
    restored = await place.restore(f"{path}.tar.zst")
    assert (restored.error, restored.files) == (None, saved.files)
    assert await place.sh(listing) == before
    poor = step.model_copy(update={"ref": place.ref.model_copy(update={"storage_quota_bytes": 256})})
    refused: SavedWorkspace = await place.provider.run(saving.save_workspace, poor)
    assert refused.error is not None
    assert refused.error.code is ErrorCode.QUOTA_EXCEEDED


async def test_a_new_sandbox_gets_its_workspace_first_and_then_its_files(place: Place) -> None:
    source = await place.put("saved.tar", tar_of((f"{place.name}/a", b"of the workspace"), (f"{place.name}/b", b"b")))
    mine = await place.put("mine", b"mine")
    result = await place.fill(
        RestoreFrom(session_path=source),
        UploadFile(session_path=mine, sandbox_path=f"{place.name}/a"),
        UploadFile(session_path=f"{place.name}/none", sandbox_path="x"),
    )
    assert result.restored is not None
    assert (result.restored.files, result.files_uploaded, codes(result)) == (2, 1, {"none": ErrorCode.PATH_NOT_FOUND})
    assert await place.sh("cat a b") == "mineb"
