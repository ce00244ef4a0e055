"""Streams of any length out of and into a sandbox: what a program in it writes, and what it reads.

The program runs under the launcher, detached from every request, and a few parts of its stream at a time lie in the
sandbox. So neither side ever holds more than that, and a request that fails is made again. Each attempt has a program
and a spool of its own: it begins by ending what earlier attempts of the same call left, and ends by leaving nothing.
Should this process die, the program gives up after PATIENCE_S.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

from daytona import AsyncSandbox
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.deadlines import time_left_s
from activities.faults import ProviderError, request
from activities.launcher import Script, start_request, stop_request
from activities.launcher.access import Launcher
from activities.provider import ProviderAccess
from activities.refusals import start_refused
from activities.stream_scripts import COMMAND, DROP, PREPARE, PUT, RECEIVE, SEND, TAKE, Told, told
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure, as_application_error
from sandhold.contracts.names import call_folder
from sandhold.contracts.steps import SandboxRef

T = TypeVar("T")

PART_BYTES = 16 * 1024 * 1024
"""A part on its way out. Those on their way in are held here as a whole, and are half of it."""
PARTS = 4
LEAST_PART_BYTES = 256 * 1024
"""Parts are made smaller down to this where the sandbox's disk is almost full."""
PIECE_BYTES = 64 * 1024
"""Small on purpose: what fits into a processor's cache is worked on four times as fast as megabytes (measured)."""
PIECES_AHEAD = 128
"""How much is read ahead of whoever takes the pieces."""
PIECES_AT_ONCE = 16
PATIENCE_S = 300
"""How long the program waits for us."""
QUIET_S = 600.0
"""How long we wait for a byte of the program."""
SAID_BYTES = 1024 * 1024
"""How much of what a program says beside its stream is kept: the beginning."""
LONGEST_RUN_S = 24 * 3600.0

REQUEST_WAIT_S = 8
REQUEST_MARGIN_S = 10.0
STALLED_S = 30.0
"""How long a part may stand still on its way."""
UPLOAD_WITHIN_S = 180.0
AGAIN_FOR_S = 60.0
"""How long a request is made again before the attempt is given up."""
FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_ASKED_PAUSE_S = 0.1, 5.0, 30.0
LEAVE_WITHIN_S = 15.0
STOP_GRACE_S = 0.5


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


@dataclass
class _Spool:
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


class SandboxOutput:
    """What a program in the sandbox writes to stdout, to be iterated once."""

    def __init__(self, requests: _Requests, spool: _Spool) -> None:
        self._requests = requests
        self._spool = spool
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(PIECES_AHEAD)
        self._pump: asyncio.Task[None]

    @property
    def end(self) -> StreamEnd:
        """How the program ended, once all pieces were taken."""
        assert self._spool.end is not None
        return self._spool.end

    async def batches(self) -> AsyncIterator[list[bytes]]:
        """The bytes in pieces of about PIECE_BYTES, as many at once as are there, up to PIECES_AT_ONCE.

        Raises what broke the stream; what came before was right.
        """
        batch: list[bytes] = []
        while (piece := await self._pieces.get()) is not None:
            batch.append(piece)
            if self._pieces.empty() or len(batch) == PIECES_AT_ONCE:
                yield batch
                batch = []
        if batch:
            yield batch
        self._pump.result()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The same, one by one."""
        async for batch in self.batches():
            for piece in batch:
                yield piece

    @asynccontextmanager
    async def _flowing(self) -> AsyncIterator[None]:
        self._pump = asyncio.create_task(self._fill(), name="stream out of a sandbox")
        try:
            yield
        finally:
            await _given_up(self._pump)

    async def _fill(self) -> None:
        try:
            await self._take_all()
        except asyncio.CancelledError:
            raise  # nobody takes the pieces any more
        except BaseException:
            await self._pieces.put(None)
            raise
        await self._pieces.put(None)

    async def _take_all(self) -> None:
        number = 1
        news = await self._requests.take(self._spool, number)
        while news.word == "part":
            next_one = asyncio.create_task(self._requests.take(self._spool, number + 1))
            try:
                await self._fetch(number, news.number())
                news = await next_one
            finally:
                await _given_up(next_one)
            number += 1
        await self._requests.end(self._spool, news)

    async def _fetch(self, number: int, size: int) -> None:
        """Hand the part's bytes on. A download that broke off is made again, and goes on where it was."""
        gathered: list[bytes] = []
        weight = passed = 0

        async def download() -> None:
            nonlocal weight, passed
            at = 0
            async for piece in self._requests.download(self._spool, f"part.{number}"):
                fresh = piece[max(0, passed - at) :]
                at += len(piece)
                passed = max(passed, at)
                gathered.append(fresh)
                weight += len(fresh)
                if weight >= PIECE_BYTES:
                    await self._pieces.put(b"".join(gathered))
                    gathered.clear()
                    weight = 0
            if at != size:
                raise StreamBroken(f"part {number} has {at} bytes instead of {size}")

        await again_and_again(download)
        if weight:
            await self._pieces.put(b"".join(gathered))


class SandboxStreams:
    """Streams of any sandbox. A call has one at a time."""

    def __init__(self, access: ProviderAccess) -> None:
        self._launcher = Launcher(access)
        self._requests = _Requests(access)

    @asynccontextmanager
    async def read(
        self, ref: SandboxRef, call_id: str, program: str, environment: Mapping[str, str]
    ) -> AsyncIterator[SandboxOutput]:
        """Run a program (POSIX sh) in the sandbox's root, to read what it writes to stdout.

        Raises, here or from the iteration, StreamBroken when only another attempt may do, ToolFailure when none
        will, and as `ProviderAccess.sandbox` does. The program has ended when the context is left.
        """
        async with self._attempt(ref, call_id, SEND, PART_BYTES, program, environment) as spool:
            output = SandboxOutput(self._requests, spool)
            async with output._flowing():
                yield output

    async def write(
        self, ref: SandboxRef, call_id: str, program: str, environment: Mapping[str, str], pieces: AsyncIterable[bytes]
    ) -> StreamEnd:
        """Run a program (POSIX sh) in the sandbox's root with the pieces on its stdin; how it ended.

        The end of its input may also mean that the stream broke off. Only when the file $SANDHOLD_WHOLE is there has
        it been given everything, and may put something in place. It may end without having read everything. Raises
        as `read` does; the program has ended then.
        """
        async with self._attempt(ref, call_id, RECEIVE, PART_BYTES // 2, program, environment) as spool:
            blocks = _blocks(pieces, spool.part_bytes)
            number = 0
            coming = asyncio.ensure_future(anext(blocks, None))
            try:
                while block := await coming:
                    coming = asyncio.ensure_future(anext(blocks, None))
                    number += 1
                    news = await self._requests.put(spool, number, block)
                    if news.word == "end":
                        return await self._requests.end(spool, news)
            finally:
                await _given_up(coming)
            return await self._requests.end(spool, await self._requests.finish(spool, number))

    @asynccontextmanager
    async def _attempt(
        self,
        ref: SandboxRef,
        call_id: str,
        script: str,
        part_bytes: int,
        program: str,
        environment: Mapping[str, str],
    ) -> AsyncIterator[_Spool]:
        """A spool whose program runs. Afterwards neither is there, nor what earlier attempts of the call left."""
        spool = await self._prepared(ref, call_id, part_bytes)
        try:
            await self._start(spool, script, {**environment, "SANDHOLD_PROGRAM": program})
            yield spool
        finally:
            leaving = asyncio.ensure_future(self._leave(spool))
            await asyncio.wait([leaving], timeout=LEAVE_WITHIN_S)
            await _given_up(leaving)

    async def _prepared(self, ref: SandboxRef, call_id: str, part_bytes: int) -> _Spool:
        stream_id = f"{call_id}%{secrets.token_hex(8)}"  # no call id has a %
        answer = await again_and_again(lambda: self._requests.prepare(ref, call_id, stream_id, part_bytes))
        earlier = [each.rest.split(" ", 1) for each in answer if each.word == "earlier"]
        for folder, _ in earlier:
            order = stop_request(f"{call_id}%{folder.rpartition('%')[2]}", grace_s=STOP_GRACE_S)
            await again_and_again(lambda order=order: self._launcher.ask(ref, order))  # type: ignore[misc]
        if earlier:
            paths = [path for _, path in earlier]
            await again_and_again(lambda: self._requests.drop(ref, paths))
        for each in answer:
            if each.word == "ready":
                size, _, path = each.rest.partition(" ")
                return _Spool(ref, stream_id, path, int(size))
        raise ToolFailure(
            ErrorCode.STORAGE_FULL,
            "the sandbox's disk has no room for the transfer",
            hint="Delete what is not needed in the sandbox, or use a larger one.",
        )

    async def _start(self, spool: _Spool, text: str, environment: Mapping[str, str]) -> None:
        script = Script(text, "/")
        is_again = False

        async def start() -> None:
            nonlocal is_again
            order = start_request(
                spool.stream_id,
                script,
                wait_s=0.0,
                timeout_s=LONGEST_RUN_S,
                grace_s=STOP_GRACE_S,
                again=is_again,
                cap_bytes=SAID_BYTES,
            )
            is_again = True
            order = dataclasses.replace(order, env={**order.env, **environment, **spool.environment()})
            answer = await self._launcher.ask(spool.ref, order)
            if answer.refusal is not None:
                raise start_refused(answer.refusal, script)

        await again_and_again(start)

    async def _leave(self, spool: _Spool) -> None:
        """Leave nothing of the attempt. What cannot be done now, the program or the next attempt does."""
        try:
            if spool.end is None:
                await self._launcher.ask(spool.ref, stop_request(spool.stream_id, grace_s=STOP_GRACE_S))
            await self._requests.drop(spool.ref, [spool.path])
        except ApplicationError as error:
            activity.logger.warning("a stream was left in its sandbox", extra={"error": str(error)})


class _Requests:
    """The requests behind the streams; each but the first is made again by itself when it fails."""

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

    async def take(self, spool: _Spool, wanted: int) -> Told:
        """Wait for part `wanted`, or the end. The parts before the one before it are not needed any more."""
        environment = {"SANDHOLD_WANTED": str(wanted), "SANDHOLD_TAKEN": str(wanted - 2)}
        return await self._news(spool, TAKE, environment)

    async def put(self, spool: _Spool, number: int, block: bytes) -> Told:
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

    async def finish(self, spool: _Spool, number: int) -> Told:
        """Say how many parts there are, and wait for the end."""
        environment = {"SANDHOLD_UPLOAD": "", "SANDHOLD_NUMBER": "0", "SANDHOLD_LAST": str(number)}
        return await self._news(spool, PUT, environment)

    async def end(self, spool: _Spool, news: Told) -> StreamEnd:
        """Note the end as it was told. Raises ToolFailure when the disk was full."""
        code, _, size = news.rest.partition(" ")
        if code == "full":
            raise ToolFailure(
                ErrorCode.STORAGE_FULL,
                "the sandbox's disk became full during the transfer",
                hint="Delete what is not needed in the sandbox, or use a larger one.",
            )

        async def download() -> bytes:
            return b"".join([piece async for piece in self.download(spool, "said")])

        said = b"" if size == "0" else await again_and_again(download)
        spool.end = StreamEnd(int(code), said)
        return spool.end

    async def download(self, spool: _Spool, name: str) -> AsyncIterator[bytes]:
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

    async def _news(self, spool: _Spool, script: str, environment: Mapping[str, str]) -> Told:
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
                    message=f"a request to the sandbox was cut short; it printed {output[:200]!r}",
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
            activity.logger.warning("a request of a stream is made again", extra={"error": str(error)})
            await asyncio.sleep(max(pause_s, asked_s))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


async def _given_up(task: asyncio.Future[T]) -> None:
    """Cancel the task unless it is done, and forget how it ended: whoever calls has an outcome of his own."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


async def _blocks(pieces: AsyncIterable[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in blocks of `size`; the last one is shorter."""
    held: list[memoryview] = []
    weight = 0
    async for piece in pieces:
        view = memoryview(piece)
        while view:
            taken = view[: size - weight]
            held.append(taken)
            weight += len(taken)
            view = view[len(taken) :]
            if weight == size:
                yield b"".join(held)
                held, weight = [], 0
    if held:
        yield b"".join(held)
