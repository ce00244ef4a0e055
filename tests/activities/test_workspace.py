"""`daytona_download_workspace` from a real sandbox into real session storage."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import uuid
from dataclasses import dataclass, field
from typing import Any

import pytest

from activities.workspace import WorkspaceActivities
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.names import WORKSPACE_PATH
from sandhold.contracts.steps import DownloadStep, SandboxRef
from sandhold.contracts.workspaces import DownloadWorkspaceResult
from tests.activities.provider_under_test import ProviderUnderTest

MIB = 1024 * 1024


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
        await self.provider.sh(self.ref, f"mkdir -p {self.path} && cd {self.path} && umask 022 && {{\n{script}\n}}")

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
            return {member.name: member for member in tar.getmembers()}

    def opened(self, data: bytes) -> tarfile.TarFile:
        plain = subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
        return tarfile.open(fileobj=io.BytesIO(plain))


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
