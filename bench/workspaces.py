"""`python -m bench.workspaces`: download workspaces, beside the provider's own client in the same run.

The yardstick packs the same directories with `tar` into a file in the sandbox and downloads that file: what one would
do by hand. The ways are measured by turns, so that noise hits all alike. The memory is the worker's at its peak while
it worked, over what it had before. The archive is then restored into a new sandbox, beside an upload of the files by
hand that `tar` unpacks in another one. Ends with 1 when a tree misses what is wanted.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from daytona import AsyncDaytona, AsyncSandbox
from pydantic import BaseModel, computed_field
from rich.console import Console
from rich.table import Column, Table

from bench.report import Machine
from bench.running import leave, provider_of, run_bench
from sandhold.cli.stack.stack import Stack
from sandhold.client import Sandhold, Session
from sandhold.contracts.workspaces import DownloadWorkspaceResult

MIB = 1024 * 1024
WANTED_SHARE = 0.8
WANTED_GROWTH_BYTES = 64 * MIB
FILE_BYTES, FILES, TREE_BYTES = 2048 * MIB, 100_000, 5 * 1024 * MIB
"""The sizes for which a share is wanted: of smaller ones the fixed cost of a call is too much."""
FOLDERS = 5
"""A tree is downloaded by hand folder by folder: a sandbox of 10 GiB has no room for one of 5 GiB and its archive."""
_ARCHIVE = "/saved/archive.tar.zst"
_ROOM = {"idle_stop_s": 3600, "storage_quota_bytes": 128 * 1024 * MIB, "file_quota_bytes": 32 * 1024 * MIB}

_MAKE = """
import os, sys
kind, total, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
words = b" ".join(b"line %d of the sources" % n for n in range(4000))
for number in range(count):
    size = total // count
    folder = f"{number % 5}/{number % 100}"
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/file-{number}", "wb") as file:
        # Half of it is text, by files and within them, unless nothing is to be saved by compressing.
        pieces = number
        while size:
            piece = min(size, 1 << 20)
            pieces += 1
            at = os.getpid() * pieces % 1000
            is_text = kind == "mixed" and pieces % 2
            file.write((words[at:] * (piece // (len(words) - at) + 1))[:piece] if is_text else os.urandom(piece))
            size -= piece
"""


class Way(BaseModel):
    """One way to get a tree."""

    seconds: list[float]
    growth_mib: float | None = None
    """By how much the worker's memory grew at most."""

    @property
    def typical_s(self) -> float:
        return statistics.median(self.seconds)


class Tree(BaseModel):
    name: str
    files: int
    bytes: int
    raw: Way
    archive: Way
    single_files: Way
    raw_restore: Way
    restore: Way
    wanted_share: float | None = None
    """What `archive_share` should be at least."""
    wanted_growth_mib: float | None = None
    """What the worker's memory should grow by less than."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def archive_share(self) -> float:
        """Throughput of `archive` in terms of the yardstick's."""
        return self.raw.typical_s / self.archive.typical_s

    @computed_field  # type: ignore[prop-decorator]
    @property
    def files_share(self) -> float:
        return self.raw.typical_s / self.single_files.typical_s

    @computed_field  # type: ignore[prop-decorator]
    @property
    def restore_share(self) -> float:
        return self.raw_restore.typical_s / self.restore.typical_s

    @computed_field  # type: ignore[prop-decorator]
    @property
    def growth_mib(self) -> float:
        return max(way.growth_mib or 0.0 for way in (self.archive, self.single_files, self.restore))

    def missed(self) -> list[str]:
        """What is wanted and not so, a sentence each."""
        misses = []
        if self.wanted_share is not None and self.archive_share < self.wanted_share:
            misses.append(
                f"{self.name}: the archive comes at {self.archive_share:.2f} of the throughput by hand, "
                f"and at least {self.wanted_share} is wanted"
            )
        if self.wanted_growth_mib is not None and self.growth_mib >= self.wanted_growth_mib:
            misses.append(
                f"{self.name}: the worker's memory grew by {self.growth_mib:.0f} MiB, "
                f"and less than {self.wanted_growth_mib:.0f} is wanted"
            )
        return misses


class WorkspaceReport(BaseModel):
    machine: Machine
    trees: list[Tree]

    def missed(self) -> list[str]:
        return [miss for tree in self.trees for miss in tree.missed()]


class Measuring:
    """One sandbox, and the ways out of it and into others."""

    def __init__(
        self,
        session: Session,
        provider: AsyncDaytona,
        sandbox_id: str,
        sandbox: AsyncSandbox,
        worker_pid: int,
        folder: Path,
        rounds: int,
    ) -> None:
        self._session = session
        self._provider = provider
        self._sandbox_id = sandbox_id
        self._sandbox = sandbox
        self._worker_pid = worker_pid
        self._folder = folder
        self._rounds = rounds

    async def tree(self, name: str, kind: str, total: int, count: int) -> Tree:
        path = f"/home/daytona/{kind}-{count}"
        await self._run(
            f"mkdir {path} && cd {path} && cat >../make.py && python3 ../make.py {kind} {total} {count}", _MAKE
        )
        raw, archive, files = Way(seconds=[]), Way(seconds=[]), Way(seconds=[])
        for _ in range(self._rounds):
            raw.seconds.append(await _timed(self._by_hand(path)))
            await self._download(archive, path, "archive", count)
        raw.seconds.append(await _timed(self._by_hand(path)))
        await self._download(files, path, "files", count)
        await self._run(f"rm -rf {path}")
        raw_restore, restore = await self._restored(count)
        return Tree(
            name=name,
            files=count,
            bytes=total // count * count,
            raw=raw,
            archive=archive,
            single_files=files,
            raw_restore=raw_restore,
            restore=restore,
        )

    async def _by_hand(self, path: str) -> None:
        for number in range(FOLDERS):
            await self._run(f"cd {path} && if [ -d {number} ]; then tar -cf ~/by-hand.tar {number}; fi")
            if await self._run("test -e ~/by-hand.tar && echo yes || true"):
                with self._by_hand_tar(number).open("wb") as file:
                    async for piece in await self._sandbox.fs.download_file_stream("/home/daytona/by-hand.tar"):
                        file.write(piece)
                await self._run("rm ~/by-hand.tar")

    def _by_hand_tar(self, number: int) -> Path:
        return self._folder / f"by-hand-{number}.tar"

    async def _restored(self, count: int) -> tuple[Way, Way]:
        """Both ways once, each into a sandbox of its own and with its creation; what was saved is removed."""
        raw, ours = Way(seconds=[]), Way(seconds=[])
        before = _forget_peak(self._worker_pid)
        began = time.monotonic()
        box = await self._session.create_sandbox(size="large", restore_from=_ARCHIVE)
        ours.seconds.append(time.monotonic() - began)
        ours.growth_mib = (_memory(self._worker_pid, "VmHWM") - before) / MIB
        assert box.restored is not None
        assert (box.restored.files, box.restored.skipped_count) == (count, 0)
        await self._session.manage_sandbox(box.sandbox_id, "delete")
        await self._session.files.delete_folder("saved")

        began = time.monotonic()
        box = await self._session.create_sandbox(size="large")
        sandbox = await provider_sandbox(self._session, self._provider, box.sandbox_id)
        for number in range(FOLDERS):
            if self._by_hand_tar(number).exists():
                await sandbox.fs.upload_file(str(self._by_hand_tar(number)), "/home/daytona/by-hand.tar")
                answer = await sandbox.process.exec("cd && tar -xf by-hand.tar && rm by-hand.tar", timeout=1800)
                assert answer.exit_code == 0, answer.result
        raw.seconds.append(time.monotonic() - began)
        await self._session.manage_sandbox(box.sandbox_id, "delete")
        for number in range(FOLDERS):
            self._by_hand_tar(number).unlink(missing_ok=True)
        return raw, ours

    async def _download(self, way: Way, path: str, form: str, count: int) -> None:
        pid = self._worker_pid
        before = _forget_peak(pid)
        result: DownloadWorkspaceResult | None = None

        async def download() -> None:
            nonlocal result
            result = await self._session.download_workspace(
                self._sandbox_id,
                path,
                session_path=f"/saved/{form}",
                format="archive" if form == "archive" else "files",
            )

        way.seconds.append(await _timed(download()))
        way.growth_mib = max(way.growth_mib or 0.0, (_memory(pid, "VmHWM") - before) / MIB)
        assert result is not None
        assert (result.files_downloaded, result.skipped_count) == (count, 0)
        if form == "files":
            await self._session.files.delete_folder("saved/files")

    async def _run(self, command: str, stdin: str = "") -> str:
        script = f"{{ {command}; }} <<'END'\n{stdin}\nEND\n" if stdin else command
        answer = await self._sandbox.process.exec(script, timeout=1800)
        if answer.exit_code != 0:
            raise RuntimeError(f"{command}: {answer.result[-500:]}")
        return answer.result


async def provider_sandbox(session: Session, provider: AsyncDaytona, sandbox_id: str) -> AsyncSandbox:
    """The session's sandbox as the provider's own client has it."""
    [row] = [row for row in (await session.show()).sandboxes if row.sandbox_id == sandbox_id]
    assert row.provider_id is not None
    return await provider.get(row.provider_id)


async def _timed(work: Awaitable[None]) -> float:
    began = time.monotonic()
    await work
    return time.monotonic() - began


def _forget_peak(pid: int) -> int:
    """Let the peak of the process's memory begin anew; what it has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _memory(pid, "VmRSS")


def _memory(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


async def _measure(stack: Stack, given: argparse.Namespace, tell: Callable[[str], None]) -> WorkspaceReport:
    machine = Machine.this()
    with TemporaryDirectory(dir=stack.settings.data_dir) as folder:
        async with provider_of(stack) as provider:
            sandhold = await Sandhold.connect(stack.settings)
            session = await sandhold.open_session(owner="bench", policy=_ROOM)
            box = await session.create_sandbox(size="large")
            sandbox = await provider_sandbox(session, provider, box.sandbox_id)
            measuring = Measuring(
                session, provider, box.sandbox_id, sandbox, stack.pids()["worker"], Path(folder), given.rounds
            )
            # The first download loads what the worker needs; it is not measured.
            await measuring.tree("warming up", "random", MIB, 10)
            trees = []
            for name, kind, total, count, is_full_size in (
                ("one large file", "mixed", given.file_bytes, 1, given.file_bytes >= FILE_BYTES),
                ("one of noise alone", "random", given.file_bytes, 1, False),
                ("many small files", "mixed", given.files * 1024, given.files, given.files >= FILES),
                (
                    *("a tree", "mixed", given.tree_bytes, max(1, given.tree_bytes // (4 * MIB))),
                    given.tree_bytes >= TREE_BYTES,
                ),
            ):
                tell(f"measuring: {name}")
                tree = await measuring.tree(name, kind, total, count)
                # Noise is shown, and nothing is wanted of it.
                tree.wanted_share = WANTED_SHARE if is_full_size else None
                tree.wanted_growth_mib = None if kind == "random" else WANTED_GROWTH_BYTES / MIB
                trees.append(tree)
            await session.end()
    return WorkspaceReport(machine=machine, trees=trees)


def show(report: WorkspaceReport, console: Console) -> None:
    table = Table(
        Column("tree"),
        *(
            Column(name, justify="right")
            for name in (
                *("files", "MiB", "by hand", "archive", "files ", "of by hand"),
                *("restore by hand", "restore", "of by hand ", "memory"),
            )
        ),
    )
    for tree in report.trees:
        speed = [f"{tree.bytes / MIB / way.typical_s:.0f} MiB/s" for way in (tree.raw, tree.archive, tree.single_files)]
        back = [f"{tree.bytes / MIB / way.typical_s:.0f} MiB/s" for way in (tree.raw_restore, tree.restore)]
        shares = f"{tree.archive_share:.2f} / {tree.files_share:.2f}", f"{tree.restore_share:.2f}"
        growth = f"+{tree.growth_mib:.0f} MiB"
        table.add_row(
            *(tree.name, f"{tree.files:,}", f"{tree.bytes / MIB:.0f}"), *speed, shares[0], *back, shares[1], growth
        )
    console.print(table)
    console.print(
        f"wanted at full size, but of noise: archive at least {WANTED_SHARE} of by hand, "
        f"memory less than +{WANTED_GROWTH_BYTES // MIB} MiB; "
        f"{report.machine.cpus} processors, load {report.machine.load_before:.1f} before"
    )


def main() -> int:
    """Run the bench as the command line says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.workspaces", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    parser.add_argument("--file-bytes", type=int, default=FILE_BYTES, help="size of the large file")
    parser.add_argument("--files", type=int, default=FILES, help="how many small files of 1 KiB")
    parser.add_argument("--tree-bytes", type=int, default=TREE_BYTES, help="size of the tree of 4 MiB files")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()

    async def measure(stack: Stack, console: Console) -> WorkspaceReport:
        return await _measure(stack, given, lambda what: console.print(f"  [dim]bench: {what}[/]", highlight=False))

    return run_bench(measure, show, given.json, WorkspaceReport.missed)


if __name__ == "__main__":
    leave(main())
