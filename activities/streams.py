"""Streams of any length out of and into a sandbox: what a program in it writes, and what it reads.

The program runs under the launcher, detached from every request, and a few parts of its stream at a time lie in the
sandbox. So neither side ever holds more than that, and a request that fails is made again. Each attempt has a program
and a spool of its own: it begins by ending what earlier attempts of the same call left, and ends by leaving nothing.
Should this process die, the program gives up after PATIENCE_S.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.launcher import Script, start_request, stop_request
from activities.launcher.access import Launcher
from activities.provider import ProviderAccess
from activities.refusals import start_refused
from activities.shown_texts import shown_here
from activities.stream_requests import SAID_BYTES, Spool, StreamBroken, StreamEnd, StreamRequests, again_and_again
from activities.stream_scripts import RECEIVE, SEND
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.steps import SandboxRef
from sandhold.storage.blocks import in_blocks

T = TypeVar("T")

PART_BYTES = 16 * 1024 * 1024
"""A part on its way out. Those on their way in are held here as a whole, and are half of it."""
PIECE_BYTES = 64 * 1024
"""Small on purpose: what fits into a processor's cache is worked on four times as fast as megabytes (measured)."""
PIECES_AHEAD = 128
"""How much is read ahead of whoever takes the pieces."""
PIECES_AT_ONCE = 16
LONGEST_RUN_S = 24 * 3600.0
LEAVE_WITHIN_S = 15.0
STOP_GRACE_S = 0.5


class SandboxOutput:
    """What a program in the sandbox writes to stdout, to be iterated once."""

    def __init__(self, requests: StreamRequests, spool: Spool) -> None:
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
        self._requests = StreamRequests(access)

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
            blocks = in_blocks(pieces, spool.part_bytes)
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
    ) -> AsyncIterator[Spool]:
        """A spool whose program runs. Afterwards neither is there, nor what earlier attempts of the call left."""
        spool = await self._prepared(ref, call_id, part_bytes)
        try:
            await self._start(spool, script, {**environment, "SANDHOLD_PROGRAM": program})
            yield spool
        finally:
            leaving = asyncio.ensure_future(self._leave(spool))
            await asyncio.wait([leaving], timeout=LEAVE_WITHIN_S)
            await _given_up(leaving)

    async def _prepared(self, ref: SandboxRef, call_id: str, part_bytes: int) -> Spool:
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
                return Spool(ref, stream_id, path, int(size))
        raise ToolFailure(
            ErrorCode.STORAGE_FULL,
            "the sandbox's disk has no room for the transfer",
            hint="Delete what is not needed in the sandbox, or use a larger one.",
        )

    async def _start(self, spool: Spool, text: str, environment: Mapping[str, str]) -> None:
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

    async def _leave(self, spool: Spool) -> None:
        """Leave nothing of the attempt. What cannot be done now, the program or the next attempt does."""
        try:
            if spool.end is None:
                await self._launcher.ask(spool.ref, stop_request(spool.stream_id, grace_s=STOP_GRACE_S))
            await self._requests.drop(spool.ref, [spool.path])
        except ApplicationError as error:
            activity.logger.warning("a stream was left in its sandbox", extra={"error": await shown_here(error)})


async def _given_up(task: asyncio.Future[T]) -> None:
    """Cancel the task unless it is done, and forget how it ended: whoever calls has an outcome of his own."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
