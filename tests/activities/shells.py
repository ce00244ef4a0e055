"""A machine with one kind of sh, for the launcher: its requests run as a toolbox would run them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from activities.launcher import Answer, CallReport, LauncherRequest, Script, parse_answer, start_request

SHELLS = {"dash": "dash", "bash": "bash", "busybox": "busybox"}
"""What each shell's program is called. dash and bash must be there; busybox is tested where it is installed."""
_numbers = itertools.count(1)


def shells_present() -> list[str]:
    return [name for name, program in SHELLS.items() if name != "busybox" or shutil.which(program)]


@dataclass
class Machine:
    """A home folder and a PATH whose `sh` is the shell under test."""

    home: Path
    path: str
    env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def made_of(cls, folder: Path, shell: str, *, programs: Sequence[str] | None = None) -> Machine:
        """A machine with this shell; with `programs`, it has only those, beside the shell's own."""
        tools = folder / "bin"
        tools.mkdir(parents=True)
        home = folder / "home"
        home.mkdir()
        where = shutil.which(SHELLS[shell])
        assert where, f"{shell} is not installed"
        (tools / "sh").symlink_to(where)
        for program in programs or ():
            found = shutil.which(program)
            assert found, f"{program} is not installed"
            (tools / program).symlink_to(found)
        return cls(home, str(tools) if programs is not None else f"{tools}:/usr/local/bin:/usr/bin:/bin")

    async def begin(self, request: LauncherRequest) -> asyncio.subprocess.Process:
        """Start a request's process, in a session of its own as toolboxes do."""
        return await asyncio.create_subprocess_exec(
            str(Path(self.path.split(":")[0]) / "sh"),
            "-c",
            request.command,
            env={"PATH": self.path, "HOME": str(self.home), **self.env, **request.env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    async def ask(self, request: LauncherRequest) -> Answer:
        """The launcher's answer."""
        process = await self.begin(request)
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        return parse_answer(request.nonce, output.decode("utf-8", "replace"))

    async def ask_and_kill(self, request: LauncherRequest, after_s: float) -> None:
        """Make a request and kill everything of it, as a toolbox does whose caller or time ran out."""
        process = await self.begin(request)
        await asyncio.sleep(after_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()

    def request(
        self,
        script: str,
        *,
        call_id: str | None = None,
        cwd: str | None = None,
        wait_s: float = 30,
        timeout_s: float | None = 120,
        grace_s: float = 0.5,
        again: bool = False,
        cap_bytes: int = 2**30,
        keep_stdin: bool = False,
        upload_path: str | None = None,
    ) -> LauncherRequest:
        """A request that starts a script, under a call id of its own unless one is given."""
        return start_request(
            call_id or new_call_id(),
            Script(script, cwd or str(self.home)),
            wait_s=wait_s,
            timeout_s=timeout_s,
            grace_s=grace_s,
            again=again,
            cap_bytes=cap_bytes,
            keep_stdin=keep_stdin,
            upload_path=upload_path,
        )

    async def run(self, script: str, **options: object) -> CallReport:
        """Start a script and return what the same request says about it."""
        answer = await self.ask(self.request(script, **options))  # type: ignore[arg-type]
        assert answer.refusal is None, answer.refusal
        (report,) = answer.reports
        return report

    def folder(self, call_id: str) -> Path:
        return self.home / ".sandhold" / "calls" / call_id

    def owner_of(self, call_id: str) -> int:
        """The one process that has tried to run the call."""
        (owner,) = {int(path.name.split(".")[1]) for path in self.folder(call_id).glob("owner.*")}
        return owner


def new_call_id() -> str:
    return f"call-{os.getpid()}-{next(_numbers)}"


def processes_with(words: bytes) -> list[int]:
    """The live processes whose environment or command line holds `words`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(") ")[2][0]
            if state != "Z" and words in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
