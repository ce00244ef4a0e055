"""The requests behind streams: about the spool of one attempt, each made again by itself when it fails."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar, cast

from daytona import AsyncSandbox
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.deadlines import time_left_s
from activities.faults import ProviderError, request
from activities.provider import ProviderAccess
from activities.shown_texts import shown_here
from activities.stream_scripts import COMMAND, DROP, PREPARE, PUT, TAKE, Told, told
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure, as_application_error
from sandhold.contracts.excerpts import beginning_of
from sandhold.contracts.names import call_folder
from sandhold.contracts.steps import SandboxRef

T = TypeVar("T")

PARTS = 4
"""How many parts of a stream lie in the sandbox at a time."""
LEAST_PART_BYTES = 256 * 1024
"""Parts are made smaller down to this where the sandbox's disk is almost full."""
PATIENCE_S = 300
"""How long the program waits for us."""
QUIET_S = 600.0
"""How long we wait for a byte of the program."""
SAID_BYTES = 1024 * 1024
"""How much of what a program says beside its stream is kept: the beginning."""

REQUEST_WAIT_S = 8
REQUEST_MARGIN_S = 10.0
STALLED_S = 30.0
"""How long a part may stand still on its way."""
UPLOAD_WITHIN_S = 180.0
AGAIN_FOR_S = 60.0
"""How long a request is made again before the attempt is given up."""
FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_ASKED_PAUSE_S = 0.1, 5.0, 30.0


class StreamBroken(ApplicationError):
    """The program or its spool is gone: nothing of this attempt can go on, and another one starts over."""

    def __init__(self, why: str) -> None:
        error = ToolError(
            code=ErrorCode.PROVIDER_UNAVAILABLE, message=f"a stream of the sandbox broke: {why}", retryable=True
        )
        super().__init__(error.message, error, type=error.code)


@dataclass(frozen=True)
class StreamEnd:
    """How the program ended."""

    exit_code: int
    said: bytes
    """The beginning of what it wrote to stderr; of one that reads the stream, to stdout as well."""

    @property
    def is_said_cut(self) -> bool:
        """Whether it may have said more than was kept."""
        return len(self.said) >= SAID_BYTES


@dataclass
class Spool:
    """The folder of one attempt in the sandbox, and how its program ended once that is known."""

    ref: SandboxRef
    stream_id: str
    path: str
    part_bytes: int
    end: StreamEnd | None = None

    def environment(self) -> dict[str, str]:
        return {
            "SANDHOLD_SPOOL": self.path,
            "SANDHOLD_PART_BYTES": str(self.part_bytes),
            "SANDHOLD_PARTS": str(PARTS),
            "SANDHOLD_PATIENCE": str(PATIENCE_S),
            "SANDHOLD_SAID_BYTES": str(SAID_BYTES),
        }


class StreamRequests:
    """The requests about spools. Raises as `ProviderAccess.toolbox` does, once repeating has not helped."""

    def __init__(self, access: ProviderAccess) -> None:
        self._access = access

    async def prepare(self, ref: SandboxRef, call_id: str, stream_id: str, part_bytes: int) -> list[Told]:
        environment = {
            "SANDHOLD_STREAM": call_folder(stream_id),
            "SANDHOLD_CALL_PREFIX": f"{call_folder(call_id)}%",
            "SANDHOLD_PART_BYTES": str(part_bytes),
            "SANDHOLD_PARTS": str(PARTS),
            "SANDHOLD_LEAST_BYTES": str(LEAST_PART_BYTES),
        }
        return await self._ask(ref, PREPARE, environment, sure=False)  # the sandbox is started then, and this repeated

    async def drop(self, ref: SandboxRef, paths: list[str]) -> None:
        await self._ask(ref, DROP, {"SANDHOLD_SPOOL": "\n".join(paths)})

    async def take(self, spool: Spool, wanted: int) -> Told:
        """Wait for part `wanted`, or the end. The parts before the one before it are not needed any more."""
        environment = {"SANDHOLD_WANTED": str(wanted), "SANDHOLD_TAKEN": str(wanted - 2)}
        return await self._news(spool, TAKE, environment)

    async def put(self, spool: Spool, number: int, block: bytes) -> Told:
        """Send a part, and wait until there is room for another one, or for the end."""

        async def upload() -> str:
            # Under a new name each time: a request that was given up may go on writing.
            path = f"{spool.path}/ready.{number}.{secrets.token_hex(4)}"
            within_s = min(UPLOAD_WITHIN_S, max(1.0, time_left_s()))
            await self._access.toolbox(spool.ref, lambda sandbox: sandbox.fs.upload_file(block, path), within_s)
            return path

        path = await again_and_again(upload)
        environment = {"SANDHOLD_UPLOAD": path, "SANDHOLD_NUMBER": str(number), "SANDHOLD_LAST": ""}
        return await self._news(spool, PUT, environment)

    async def finish(self, spool: Spool, number: int) -> Told:
        """Say how many parts there are, and wait for the end."""
        environment = {"SANDHOLD_UPLOAD": "", "SANDHOLD_NUMBER": "0", "SANDHOLD_LAST": str(number)}
        return await self._news(spool, PUT, environment)

    async def end(self, spool: Spool, news: Told) -> StreamEnd:
        """Note the end as it was told. Raises ToolFailure when the disk was full."""
        code, _, size = news.rest.partition(" ")
        if code == "full":
            raise ToolFailure(
                ErrorCode.STORAGE_FULL,
                "the sandbox's disk became full during the transfer",
                hint="Delete what is not needed in the sandbox, or use a larger one.",
            )

        async def download() -> bytes:
            said = b""
            async with aclosing(self.download(spool, "said")) as pieces:
                async for piece in pieces:
                    said += piece[: SAID_BYTES - len(said)]
                    if len(said) == SAID_BYTES:
                        break  # whatever the sandbox has made of the file
            return said

        said = b"" if size == "0" else await again_and_again(download)
        spool.end = StreamEnd(int(code), said)
        return spool.end

    async def download(self, spool: Spool, name: str) -> AsyncGenerator[bytes]:
        """The bytes of a file of the spool. Raises as `ProviderAccess.toolbox`, and StreamBroken when it has gone."""
        path = f"{spool.path}/{name}"
        try:
            pieces, piece = await self._access.toolbox(spool.ref, lambda sandbox: _opened(sandbox, path), STALLED_S)
            async with aclosing(pieces):
                while piece is not None:
                    yield piece
                    piece = await request(anext(pieces, None), STALLED_S)
        except ProviderError as error:
            if error.error.code is ErrorCode.PATH_NOT_FOUND:
                raise StreamBroken(f"{name} has gone") from error
            raise

    async def _news(self, spool: Spool, script: str, environment: Mapping[str, str]) -> Told:
        """Ask until there is something new. Raises StreamBroken when the program is gone, or does nothing."""
        quiet_since = time.monotonic()
        while True:
            answer = await again_and_again(
                lambda: self._ask(
                    spool.ref,
                    script,
                    {**spool.environment(), **environment, "SANDHOLD_WAIT": str(REQUEST_WAIT_S)},
                    REQUEST_WAIT_S,
                )
            )
            news = answer[-1]
            if news.word in {"dead", "gone"}:
                raise StreamBroken(f"its program is {news.word}")
            if news.word != "waiting":
                return news
            if time.monotonic() - quiet_since > QUIET_S:
                raise ToolFailure(
                    ErrorCode.TIMEOUT,
                    f"the transfer stood still in the sandbox for {QUIET_S:.0f} s",
                    hint="A file or disk in the sandbox does not answer. Leave it out.",
                )

    async def _ask(
        self, ref: SandboxRef, script: str, environment: Mapping[str, str], wait_s: float = 0.0, *, sure: bool = True
    ) -> list[Told]:
        """Make one request; what it tells, at least one line. `sure` is as for `ProviderAccess.toolbox`."""
        nonce = secrets.token_hex(8)
        variables = {"SANDHOLD_SCRIPT": script, "SANDHOLD_NONCE": nonce, **environment}
        within_s = wait_s + REQUEST_MARGIN_S

        async def execute(sandbox: AsyncSandbox) -> str:
            return (await sandbox.process.exec(COMMAND, "/", variables, math.ceil(within_s))).result

        output = await self._access.toolbox(ref, execute, min(within_s, max(1.0, time_left_s())), sure=sure)
        answer = list(told(nonce, output))
        if not answer:
            raise as_application_error(
                ToolError(
                    code=ErrorCode.PROVIDER_UNAVAILABLE,
                    message=f"a request to the sandbox was cut short; it printed {beginning_of(output, 200)!r}",
                    retryable=True,
                ),
                non_retryable=False,
            )
        return answer


async def _opened(sandbox: AsyncSandbox, path: str) -> tuple[AsyncGenerator[bytes], bytes | None]:
    """The download of a file, and its first piece: it is answered by then."""
    pieces = cast("AsyncGenerator[bytes]", await sandbox.fs.download_file_stream(path))
    try:
        return pieces, await anext(pieces, None)
    except BaseException:
        await pieces.aclose()
        raise


async def again_and_again(attempt: Callable[[], Awaitable[T]]) -> T:
    """Await attempts until one succeeds. Raises the last failure after AGAIN_FOR_S, and at once what no repeating
    mends: StreamBroken among others."""
    give_up_at = time.monotonic() + AGAIN_FOR_S
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await attempt()
        except StreamBroken:
            raise
        except ApplicationError as error:
            if error.non_retryable or time.monotonic() > give_up_at:
                raise
            asked = error.next_retry_delay
            asked_s = 0.0 if asked is None else min(asked.total_seconds(), LONGEST_ASKED_PAUSE_S)
            activity.logger.warning("a request of a stream is made again", extra={"error": await shown_here(error)})
            await asyncio.sleep(max(pause_s, asked_s))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
