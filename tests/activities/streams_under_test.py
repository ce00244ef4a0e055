"""Streams on a machine with one kind of sh, without a provider: its requests run as a toolbox would run them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from daytona import DaytonaNotFoundError

from activities.faults import request
from sandhold.contracts.steps import SandboxRef
from tests.activities.shells import Machine

T = TypeVar("T")
REF = SandboxRef(session_id="s", sandbox_id="box", owner="me", generation=1, provider_id="p")


class MachineAccess:
    """Stands for `ProviderAccess`: the sandbox is a machine here, behind the client's own methods."""

    request_timeout_s = 30.0

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.process = self
        self.fs = self
        self.before_request: Callable[[str], Awaitable[None]] | None = None
        """Awaited with `exec`, `upload` or `download`, and may raise what the client would."""

    async def toolbox(self, ref: SandboxRef, use: Callable[[Any], Awaitable[T]], within_s: float, **_: Any) -> T:
        return await request(use(self), within_s)

    async def exec(self, command: str, cwd: str, env: dict[str, str], timeout: int) -> Any:
        await self._before("exec")
        asked = SimpleNamespace(command=command, env=env)
        process = await self.machine.begin(asked)  # type: ignore[arg-type]
        output, _ = await asyncio.wait_for(process.communicate(), timeout)
        return SimpleNamespace(result=output.decode("utf-8", "replace"), exit_code=process.returncode)

    async def upload_file(self, data: bytes, path: str) -> None:
        await self._before("upload")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)  # as the provider does
        target.write_bytes(data)

    async def download_file_stream(self, path: str) -> AsyncIterator[bytes]:
        await self._before("download")

        async def pieces() -> AsyncIterator[bytes]:
            try:
                with open(path, "rb") as file:
                    while piece := file.read(65536):
                        yield piece
            except FileNotFoundError as error:
                raise DaytonaNotFoundError("no such file", 404, code="FILE_NOT_FOUND") from error

        return pieces()

    async def _before(self, what: str) -> None:
        if self.before_request is not None:
            await self.before_request(what)


@dataclass
class Spools:
    """What streams leave on a machine."""

    machine: Machine

    @property
    def folder(self) -> Path:
        return self.machine.home / ".sandhold" / "streams"

    def left(self) -> list[str]:
        """Everything below the folder of spools, but for the programs' own names."""
        return (
            sorted(str(each.relative_to(self.folder)) for each in self.folder.rglob("*"))
            if self.folder.exists()
            else []
        )

    async def until_gone(self, within_s: float = 20.0) -> None:
        async with asyncio.timeout(within_s):
            while self.left():
                await asyncio.sleep(0.05)

    def remove(self) -> None:
        shutil.rmtree(self.folder)
