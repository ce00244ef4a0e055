"""`daytona_download_workspace` from a real sandbox into real session storage: a folder, and a bucket."""

from __future__ import annotations

import asyncio
import hashlib
import io
import subprocess
import tarfile
import uuid
from dataclasses import dataclass, field
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities import stream_requests as requests_module
from activities import streams as streams_module
from activities.streams import SandboxStreams
from activities.workspace import WorkspaceActivities
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.errors import ErrorCode, SandboxSignal
from sandhold.contracts.names import WORKSPACE_PATH
from sandhold.contracts.steps import DownloadStep, SandboxRef
from sandhold.contracts.workspaces import DownloadWorkspaceResult
from tests.activities.provider_under_test import ProviderUnderTest
from tests.local_daytona_faults import FaultPlan

pytestmark = pytest.mark.storage("folder", "s3")

MIB = 1024 * 1024
DOWNLOAD = {"method": "POST", "route": "/toolbox/{sandbox_id}/files/bulk-download"}


@dataclass
class Workspace:
    """A directory of its own in the shared sandbox, and where it is downloaded to."""

    provider: ProviderUnderTest
    ref: SandboxRef
    name: str = field(default_factory=lambda: f"w-{uuid.uuid4().hex[:12]}")

    def __post_init__(self) -> None:
        self.activities = WorkspaceActivities(self.provider.access, self.provider.storage)
        self.files = self.provider.storage.files(self.ref.session_id)
        self.path = f"{WORKSPACE_PATH}/{self.name}"

    async def make(self, script: str) -> None:
        """Run a script in the directory."""
        await self.provider.sh(self.ref, f"mkdir -p {self.path} && cd {self.path} && umask 022 && set -e\n{script}")

    def step(self, **arguments: Any) -> DownloadStep:
        quota = arguments.pop("file_quota_bytes", 1024 * MIB)
        session = arguments.pop("storage_quota_bytes", 5 * 1024 * MIB)
        arguments = {"sandbox_path": self.path, "session_path": f"/{self.name}", **arguments}
        return DownloadStep(
            ref=self.ref.model_copy(update={"storage_quota_bytes": session}),
            call_id=f"call-{uuid.uuid4().hex}",
            arguments={"sandbox_id": self.ref.sandbox_id, **arguments},
            file_quota_bytes=quota,
        )

    async def outcome(self, **arguments: Any) -> CallOutcome:
        return await self.provider.run(self.activities.download_workspace, self.step(**arguments))

    async def download(self, **arguments: Any) -> DownloadWorkspaceResult:
        outcome = await self.outcome(**arguments)
        assert outcome.error is None, outcome.error
        result = outcome.result
        if result is None:
            assert outcome.result_ref is not None
            result = await self.provider.storage.get_json(self.ref.session_id, outcome.result_ref)
        return DownloadWorkspaceResult.model_validate(result)

    async def stored(self) -> dict[str, bytes]:
        """The single files, by their paths in the directory."""
        prefix = f"{self.name}/"
        return {
            each.path.removeprefix(prefix): await self.bytes_of(each.path) async for each in self.files.list(self.name)
        }

    async def bytes_of(self, path: str) -> bytes:
        return b"".join([piece async for piece in self.files.read(path)])

    async def archive(self, result: DownloadWorkspaceResult) -> dict[str, tarfile.TarInfo]:
        """The members of the archive, by name; checked against its result."""
        data = await self.bytes_of(result.session_path)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (result.archive_bytes, result.sha256)
        with self.opened(data) as tar:
            return members_of(tar)

    def opened(self, data: bytes) -> tarfile.TarFile:
        plain = subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
        return tarfile.open(fileobj=io.BytesIO(plain))


def members_of(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """All but the directory itself, by their names in it."""
    members = {member.name.removeprefix("./"): member for member in tar.getmembers()}
    members.pop(".", None)
    return members


@pytest.fixture
def workspace(provider: ProviderUnderTest, shared_sandbox: SandboxRef) -> Workspace:
    return Workspace(provider, shared_sandbox)


def reasons(result: DownloadWorkspaceResult) -> dict[str, str]:
    assert result.skipped_count == len(result.files_skipped)
    return {each.path: each.reason for each in result.files_skipped}


async def test_a_directory_becomes_single_files(workspace: Workspace) -> None:
    await workspace.make(
        "mkdir -p src/deep; echo one >src/a.txt; printf '\\000\\377' >src/deep/b; : >none; mkdir empty"
    )
    result = await workspace.download()
    assert await workspace.stored() == {"none": b"", "src/a.txt": b"one\n", "src/deep/b": b"\0\xff"}
    assert (result.session_path, result.files_downloaded, result.bytes) == (f"/{workspace.name}", 3, 6)
    assert (result.files_skipped, result.empty_directories, result.sha256) == ([], 1, None)


async def test_a_directory_becomes_one_archive(workspace: Workspace) -> None:
    await workspace.make(
        "mkdir -p src empty; echo one >src/a.txt; chmod 750 src/a.txt; ln -s src/a.txt link; ln src/a.txt src/hard"
    )
    result = await workspace.download(format="archive")
    members = await workspace.archive(result)
    assert result.session_path == f"/{workspace.name}.tar.zst"
    assert sorted(members) == ["empty", "link", "src", "src/a.txt", "src/hard"]
    assert (members["link"].issym(), members["link"].linkname) == (True, "src/a.txt")
    assert members["src/a.txt"].mode == 0o750 or members["src/hard"].mode == 0o750
    assert {members["src/a.txt"].islnk(), members["src/hard"].islnk()} == {False, True}
    assert (result.files_downloaded, result.bytes, result.files_skipped) == (3, 4, [])


async def test_a_single_file_is_downloaded_under_its_own_name(workspace: Workspace) -> None:
    await workspace.make("mkdir .cache; echo one >.cache/a; ln -s .cache/a link")
    assert (await workspace.download(sandbox_path=f"{workspace.path}/.cache/a")).files_downloaded == 1
    assert (await workspace.download(sandbox_path=f"{workspace.path}/link")).files_downloaded == 1
    assert await workspace.stored() == {"a": b"one\n", "link": b"one\n"}


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("missing", ErrorCode.PATH_NOT_FOUND),
        ("fifo", ErrorCode.INVALID_ARGUMENTS),
        ("closed", ErrorCode.PERMISSION_DENIED),
        ("unreadable", ErrorCode.PERMISSION_DENIED),
        ("/dev/null", ErrorCode.INVALID_ARGUMENTS),
    ],
)
async def test_what_cannot_be_downloaded_at_all_is_an_error(workspace: Workspace, path: str, code: ErrorCode) -> None:
    await workspace.make("mkdir closed; chmod 0 closed; echo >unreadable; chmod 0 unreadable; mkfifo fifo")
    target = path if path.startswith("/") else f"{workspace.path}/{path}"
    error = (await workspace.outcome(sandbox_path=target)).error
    assert error is not None
    assert error.code == code
    assert target in error.message


async def test_a_list_of_what_is_not_saved_that_is_not_whole_says_so(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    await workspace.make("for each in $(seq 200); do : >closed-$each; done; chmod 0 closed-*")
    assert ((whole := await workspace.download()).skipped_count, whole.more_skipped) == (200, False)
    monkeypatch.setattr(requests_module, "SAID_BYTES", 2000)
    cut = await workspace.download()
    assert 10 < cut.skipped_count < 100
    assert cut.more_skipped


HOSTILE = r"""
import os, socket
here = os.getcwd().encode()
def file(name, data=b"x"):
    with open(name, "wb") as file:
        file.write(data)
os.symlink("/etc/passwd", "absolute")
os.symlink("../../../../etc", "out")
os.symlink("loop2", "loop1"); os.symlink("loop1", "loop2")
os.symlink("nowhere", "dangling")
os.mkdir("inside"); file("inside/a", b"content"); os.symlink("inside", "into")
os.link("inside/a", "hard")
os.mkfifo("fifo")
unix = socket.socket(socket.AF_UNIX); unix.bind("sock")
file("new\nline"); file("tab\there: colon"); file(b"latin-\xe9"); file("..."); file("..a"); file("-rf"); file("a\\b")
os.mkdir("empty"); os.makedirs("hollow/deeper")
file("secret"); os.chmod("secret", 0)
os.mkdir("closed"); file("closed/x"); os.chmod("closed", 0)
with open("sparse", "wb") as file_: file_.truncate(3_000_000); file_.seek(1_000_000); file_.write(b"middle")
os.mkdir("deep"); os.chdir("deep")
left = 4095 - len(here) - len(b"/deep")
while left > 210:
    os.mkdir("d" * 200); os.chdir("d" * 200); left -= 201
file("f" * (left - 1), b"deep")
"""


@pytest.fixture(scope="session")
async def hostile_directory(any_provider: ProviderUnderTest, shared_sandbox: SandboxRef) -> str:
    workspace = Workspace(any_provider, shared_sandbox)
    await workspace.make(f"cat >make.py <<'END'\n{HOSTILE}\nEND\npython3 make.py && rm make.py")
    return workspace.name


@pytest.fixture
def hostile(provider: ProviderUnderTest, shared_sandbox: SandboxRef, hostile_directory: str) -> Workspace:
    return Workspace(provider, shared_sandbox, hostile_directory)


async def test_an_archive_of_a_hostile_tree_holds_what_is_safe_and_names_the_rest(hostile: Workspace) -> None:
    result = await hostile.download(format="archive")
    data = await hostile.bytes_of(result.session_path)
    with hostile.opened(data) as tar:
        members = members_of(tar)
        assert reasons(result) == {"fifo": "fifo", "sock": "socket", "secret": "unreadable", "closed": "unreadable"}
        # Links stay links, whatever they lead to.
        links = {name: member.linkname for name, member in members.items() if member.issym()}
        assert links == {
            "absolute": "/etc/passwd",
            "out": "../../../../etc",
            "loop1": "loop2",
            "loop2": "loop1",
            "dangling": "nowhere",
            "into": "inside",
        }
        assert not [name for name in members if name.startswith(("into/", "out/", "/")) or ".." in name.split("/")]
        # One name has the content, the other is a hard link to it.
        pair = {members["hard"].type, members["inside/a"].type}
        assert pair == {tarfile.REGTYPE, tarfile.LNKTYPE}
        # Names are kept byte for byte: those that are not UTF-8, too, and those as long as Linux takes them.
        for name in ("new\nline", "tab\there: colon", "latin-\udce9", "...", "..a", "-rf", "a\\b"):
            assert members[name].isreg(), name
        (deep,) = (name for name in members if name.startswith("deep/") and members[name].isreg())
        assert len(f"{hostile.path}/{deep}") == 4095
        assert read(tar, f"./{deep}") == b"deep"
        assert all(members[name].isdir() for name in ("empty", "hollow", "hollow/deeper"))
        sparse = read(tar, "./sparse")
        assert (len(sparse), sparse[1_000_000:1_000_006], sparse.count(0)) == (3_000_000, b"middle", 2_999_994)
        # Nothing comes with an owner, or with the rights of one.
        assert {(member.uid, member.gid, member.uname) for member in members.values()} == {(0, 0, "")}
    assert result.empty_directories == 2
    assert result.files_changed == []


def read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


async def test_single_files_of_a_hostile_tree_are_those_that_have_content_and_a_name(hostile: Workspace) -> None:
    result = await hostile.download(session_path=f"/{hostile.name}-files")
    told = reasons(result)
    deep = next(path for path in told if path.startswith("deep/"))
    assert told == {
        **dict.fromkeys(["absolute", "out", "loop1", "loop2", "dangling", "into"], "symlink"),
        **dict.fromkeys([deep, "new\nline", "tab\there: colon", "latin-\\xe9"], "name_not_storable"),
        "fifo": "fifo",
        "sock": "socket",
        "secret": "unreadable",
        "closed": "unreadable",
    }
    hostile_files = Workspace(hostile.provider, hostile.ref, f"{hostile.name}-files")
    stored = await hostile_files.stored()
    assert sorted(stored) == ["-rf", "...", "..a", "a\\b", "hard", "inside/a", "sparse"]
    assert stored["hard"] == stored["inside/a"] == b"content"
    assert len(stored["sparse"]) == 3_000_000
    assert result.files_downloaded == len(stored)
    assert result.bytes == sum(map(len, stored.values()))
    assert result.empty_directories == 2


@pytest.mark.parametrize(
    ("seldom", "exclude", "passes"),
    [
        ("true", [], 1),
        ("true", ["*.log"], 1),
        ("mkfifo fifo", [], 2),
        ("touch -d 1960-01-01 a", [], 2),
        ("truncate -s 1M sparse", [], 2),
    ],
)
async def test_an_archive_that_holds_anything_seldom_is_written_anew(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, seldom: str, exclude: list[str], passes: int
) -> None:
    """Both ways give the same archive; the quick one is given up for what only the other one can do."""
    begun = []
    read_stream = SandboxStreams.read
    monkeypatch.setattr(SandboxStreams, "read", lambda *given: begun.append(given) or read_stream(*given))
    await workspace.make(f"mkdir d; echo one >a; ln a d/b; ln -s a c; chmod 4755 a; chmod 1777 d; {seldom}")
    result = await workspace.download(format="archive", exclude=exclude)
    assert len(begun) == passes
    members = await workspace.archive(result)
    kept = {name: (member.mode, member.type, member.linkname, member.uid) for name, member in members.items()}
    kept.pop("sparse", None)
    first, second = sorted(["a", "d/b"], key=lambda name: kept[name][1])
    assert kept == {
        "d": (0o777, tarfile.DIRTYPE, "", 0),
        "c": (0o777, tarfile.SYMTYPE, "a", 0),
        first: (0o755, tarfile.REGTYPE, "", 0),
        second: (0o755, tarfile.LNKTYPE, f"./{first}", 0),
    }
    assert result.files_downloaded == len(members) - 1


@pytest.mark.storage("folder")
async def test_what_no_one_needs_is_left_out_and_patterns_say_what_else(workspace: Workspace) -> None:
    await workspace.make(
        "for d in .git node_modules src/node_modules .venv __pycache__ src/build docs; do\n"
        "mkdir -p $d; echo >$d/x; done\n"
        "echo >src/a.py; echo >src/a.pyc; echo >keep.log; echo >b.log; echo >src/.git"
    )

    async def taken(**arguments: Any) -> list[str]:
        found = sorted(await workspace.archive(await workspace.download(format="archive", **arguments)))
        return [name for name in found if name not in {"src", "docs", "src/build"}]

    assert await taken() == ["b.log", "docs/x", "keep.log", "src/a.py", "src/a.pyc", "src/build/x"]
    excluded = await taken(exclude=["*.log", "!keep.log", "build/", "/docs", "*.pyc"])
    assert excluded == ["keep.log", "src/a.py"]
    assert await taken(include=["/src"]) == ["src/a.py", "src/a.pyc", "src/build/x"]
    assert await taken(include=["*.py", "docs/"]) == ["docs/x", "src/a.py"]
    assert await taken(include=["src/build", "no/such"]) == ["src/build/x"]
    assert await taken(include=["/no/such"]) == []
    assert [name for name in await taken(exclude=["!.git"]) if ".git" in name] == [".git", ".git/x", "src/.git"]
    # What lies in a directory that is left out cannot be brought back by itself.
    assert await taken(exclude=["src", "!src/a.py"]) == ["b.log", "docs/x", "keep.log"]


async def test_includes_lead_through_no_link(workspace: Workspace) -> None:
    await workspace.make("ln -s /etc link; mkdir real; echo >real/a")
    result = await workspace.download(format="archive", include=["/link/passwd", "/real/a", "/link"])
    assert sorted(await workspace.archive(result)) == ["link", "real/a"]


async def test_our_own_folder_is_never_in_a_workspace(provider: ProviderUnderTest) -> None:
    workspace = Workspace(provider, await provider.created())
    await provider.sh(workspace.ref, "echo one >~/mine; mkdir -p ~/.sandhold ~/sub/.sandhold; echo >~/sub/.sandhold/x")
    await workspace.download(sandbox_path=WORKSPACE_PATH, exclude=["!.sandhold"])
    assert {name for name in await workspace.stored() if "sandhold" in name or name == "mine"} == {
        "mine",
        "sub/.sandhold/x",
    }
    await provider.delete(workspace.ref)


async def test_a_file_that_is_too_large_is_left_out_and_named(workspace: Workspace) -> None:
    await workspace.make("truncate -s 2G hole; head -c 2000000 /dev/urandom >large; echo one >small")
    result = await workspace.download(file_quota_bytes=MIB)
    assert reasons(result) == {"hole": "too_large", "large": "too_large"}
    assert await workspace.stored() == {"small": b"one\n"}
    result = await workspace.download(format="archive", file_quota_bytes=MIB)
    assert reasons(result) == {"hole": "too_large", "large": "too_large"}
    assert sorted(await workspace.archive(result)) == ["small"]


async def test_a_full_quota_is_an_error_and_leaves_nothing_half_written(workspace: Workspace) -> None:
    await workspace.make("for n in 1 2 3 4; do head -c 900000 /dev/urandom >$n; done")
    outcome = await workspace.outcome(format="archive", file_quota_bytes=2 * MIB)
    assert outcome.error is not None
    assert outcome.error.code == ErrorCode.QUOTA_EXCEEDED
    assert not [each.path async for each in workspace.files.list() if workspace.name in each.path]
    held = await workspace.provider.storage.usage.held(workspace.ref.session_id)
    outcome = await workspace.outcome(storage_quota_bytes=held + 2_000_000)
    assert outcome.error is not None
    assert outcome.error.code == ErrorCode.QUOTA_EXCEEDED
    stored = await workspace.stored()
    assert len(stored) in {1, 2}
    assert f"{len(stored)} files" in outcome.error.message
    assert all(len(data) == 900_000 for data in stored.values())
    # The sandbox and its session go on.
    assert (await workspace.download()).files_downloaded == 4


async def held_up(
    workspace: Workspace, faults: FaultPlan, monkeypatch: pytest.MonkeyPatch, meanwhile: str, **arguments: Any
) -> CallOutcome:
    """The outcome of a download during which a script runs, while tar waits in the middle of the only file."""
    monkeypatch.setattr(streams_module, "PART_BYTES", MIB // 4)
    await faults.add(**DOWNLOAD, effect="delay", seconds=2.0, times=1, sandbox=workspace.ref.provider_id)
    calling = asyncio.create_task(workspace.outcome(**arguments))
    await asyncio.sleep(1.0)
    await workspace.make(meanwhile)
    return await calling


@pytest.mark.storage("folder")
@pytest.mark.parametrize("change", ["truncate -s 5M large", "echo more >>large", "head -c 9M /dev/urandom >large"])
async def test_a_file_that_changes_while_it_is_read_is_kept_and_named(
    workspace: Workspace, faults: FaultPlan, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    await workspace.make("head -c 30M /dev/urandom >large")
    outcome = await held_up(workspace, faults, monkeypatch, change, format="archive")
    assert outcome.error is None, outcome.error
    result = DownloadWorkspaceResult.model_validate(outcome.result)
    assert (result.files_changed, result.changed_count) == (["large"], 1)
    assert (await workspace.archive(result))["large"].size == 30 * MIB


@pytest.mark.storage("folder")
async def test_a_file_that_vanishes_before_it_is_read_is_named(
    workspace: Workspace, faults: FaultPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    await workspace.make("for n in 1 2 3 4 5 6; do head -c 5M /dev/urandom >$n; done")
    outcome = await held_up(workspace, faults, monkeypatch, "rm 1 2 3 4 5 6")
    assert outcome.error is None, outcome.error
    result = DownloadWorkspaceResult.model_validate(outcome.result)
    stored = await workspace.stored()
    assert {**reasons(result), **dict.fromkeys(stored, "stored")} == {
        name: reasons(result).get(name, "stored") for name in "123456"
    }
    assert set(reasons(result).values()) == {"vanished"}


async def test_a_second_download_replaces_file_by_file_and_the_archive_as_a_whole(workspace: Workspace) -> None:
    await workspace.make("echo one >a; echo two >b; mkdir c; echo >c/x")
    await workspace.download()
    first = await workspace.download(format="archive")
    await workspace.make("echo new >a; rm -r b c; echo now a file >c; mkdir b; echo >b/y")
    second = await workspace.download()
    assert reasons(second) == {"b/y": "name_not_storable", "c": "name_not_storable"}
    assert await workspace.stored() == {"a": b"new\n", "b": b"two\n", "c/x": b"\n"}
    again = await workspace.download(format="archive")
    assert first.session_path == again.session_path
    assert sorted(await workspace.archive(again)) == ["a", "b", "b/y", "c"]


async def test_names_that_session_storage_takes_for_one_are_stored_once(workspace: Workspace) -> None:
    await workspace.make(
        "printf one >\"$(printf 'caf\\303\\251')\"; printf two >\"$(printf 'cafe\\314\\201')\"; ls | wc -l"
    )
    result = await workspace.download()
    assert list(reasons(result).values()) == ["duplicate_name"]
    assert list(await workspace.stored()) == ["caf\u00e9"]


async def test_a_stopped_sandbox_says_that_it_has_to_be_started(provider: ProviderUnderTest) -> None:
    workspace = Workspace(provider, await provider.created())
    await provider.stop(workspace.ref)
    with pytest.raises(ApplicationError) as failure:
        await workspace.outcome()
    assert failure.value.type == SandboxSignal.NOT_STARTED
    await provider.delete(workspace.ref)


async def test_what_is_stored_in_several_parts_is_whole_the_first_time_and_again(workspace: Workspace) -> None:
    await workspace.make("mkdir d; head -c 12M /dev/urandom >d/large; echo one >d/a; ln -s a d/link; : >none")
    archive = await workspace.download(format="archive")
    assert sorted(await workspace.archive(archive)) == ["d", "d/a", "d/large", "d/link", "none"]
    for _ in range(2):  # into a free folder, and over what is there
        files = await workspace.download()
        stored = await workspace.stored()
        assert (files.files_downloaded, sorted(stored)) == (3, ["d/a", "d/large", "none"])
        assert len(stored["d/large"]) == 12 * MIB


async def test_nothing_is_left_in_the_sandbox(workspace: Workspace) -> None:
    await workspace.make("echo one >a")
    await workspace.download()
    await workspace.download(format="archive")
    await workspace.outcome(sandbox_path="/nowhere")
    assert await workspace.provider.sh(workspace.ref, "ls -A ~/.sandhold/streams") == ""


@pytest.fixture(scope="session")
async def bare_sandbox(any_provider: ProviderUnderTest) -> SandboxRef:
    """A sandbox whose only programs are busybox's: no GNU tar, no zstd, and a tar that can leave nothing out."""
    ref = await any_provider.created(env={"PATH": f"{WORKSPACE_PATH}/bin"})
    sandbox = await any_provider.look(ref)
    assert sandbox is not None
    made = await sandbox.process.exec("/bin/mkdir bin && /bin/busybox --install -s bin", timeout=60)
    if made.exit_code != 0:
        pytest.skip("no busybox here")
    return ref


async def test_busybox_alone_saves_the_same(provider: ProviderUnderTest, bare_sandbox: SandboxRef) -> None:
    workspace = Workspace(provider, bare_sandbox)
    await workspace.make(
        "mkdir -p src node_modules empty .git; echo >node_modules/x; echo >.git/x; echo one >src/a; ln src/a hard\n"
        "ln -s /etc/passwd link; mkfifo fifo; echo >secret; chmod 0 secret; truncate -s 3M sparse; echo >'new\nline'"
    )
    archive = await workspace.download(format="archive")
    members = await workspace.archive(archive)
    assert sorted(members) == ["empty", "hard", "link", "new\nline", "sparse", "src", "src/a"]
    assert {members["hard"].islnk(), members["src/a"].islnk()} == {True, False}
    assert reasons(archive) == {"fifo": "fifo", "secret": "unreadable"}
    files = await workspace.download()
    stored = await workspace.stored()
    assert sorted(stored) == ["hard", "sparse", "src/a"]
    assert stored["hard"] == stored["src/a"] == b"one\n"
    assert stored["sparse"] == bytes(3 * MIB)
    assert reasons(files) == {
        "fifo": "fifo",
        "secret": "unreadable",
        "link": "symlink",
        "new\nline": "name_not_storable",
    }
    assert await provider.sh(bare_sandbox, "ls -A .sandhold/streams") == ""


@pytest.mark.storage("folder")
async def test_a_file_that_busyboxs_tar_gives_up_over_is_told(
    provider: ProviderUnderTest, bare_sandbox: SandboxRef, faults: FaultPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(provider, bare_sandbox)
    await workspace.make("head -c 30000000 /dev/urandom >large")
    # With a pattern of which tar cannot be told the archive is written anew at once.
    arguments = {"format": "archive", "exclude": ["*.log"]}
    error = (await held_up(workspace, faults, monkeypatch, "truncate -s 5000000 large", **arguments)).error
    assert error is not None
    assert error.code == ErrorCode.CONFLICT
    assert "shorter" in error.message
    assert not [each.path async for each in workspace.files.list() if workspace.name in each.path]
