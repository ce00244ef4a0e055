"""Bringing files into a sandbox: one file in the place of another, or a whole archive into a directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator

from activities.reasons import failure_for
from activities.stream_requests import StreamBroken, StreamEnd
from activities.stream_scripts import PLACE, UNPACK
from activities.streams import SandboxStreams
from activities.workspaces.packed import STEP_BYTES
from activities.zstd import ZstdDecompressor, ZstdError
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.steps import SandboxRef

_BROKE_OFF = 75
_KILLED = 128
_ZSTD = b"\x28\xb5\x2f\xfd"


class Arrivals:
    """Raises ToolFailure for what the caller can do something about, and ApplicationError where another attempt may do.

    Safe to repeat.
    """

    def __init__(self, streams: SandboxStreams) -> None:
        self._streams = streams

    async def place(
        self, ref: SandboxRef, call_id: str, path: str, pieces: AsyncIterable[bytes], *, mode: str | None = None
    ) -> None:
        """Make `pieces` the content of the file at `path` (absolute), as a whole or not at all."""
        environment = {"SANDHOLD_TARGET": path, "SANDHOLD_MODE": mode or ""}
        _check(path, await self._streams.write(ref, call_id, PLACE, environment, pieces))

    async def unpack(self, ref: SandboxRef, call_id: str, directory: str, pieces: AsyncIterable[bytes]) -> None:
        """Unpack a tar archive, compressed by zstd or not, into a directory (absolute).

        What it holds replaces what is there under the same names. A failure leaves what was unpacked by then.
        """
        environment = {"SANDHOLD_TARGET": directory}
        _check(directory, await self._streams.write(ref, call_id, UNPACK, environment, _plain(pieces)))


def _check(path: str, end: StreamEnd) -> None:
    if end.exit_code == _BROKE_OFF or end.exit_code > _KILLED:
        raise StreamBroken(f"what writes {path} ended with {end.exit_code}")
    if end.exit_code != 0:
        raise failure_for(path, end.said.decode("utf-8", "backslashreplace") or f"ended with {end.exit_code}")


async def _plain(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The archive without its compression, if it has one: not every sandbox has zstd."""
    decompressor: ZstdDecompressor | None = None
    begun = b""
    has_begun = False
    async for piece in pieces:
        if not has_begun:
            begun += piece
            if len(begun) < len(_ZSTD):
                continue
            has_begun, piece = True, begun  # noqa: PLW2901
            decompressor = ZstdDecompressor() if begun.startswith(_ZSTD) else None
        if decompressor is None:
            yield piece
            continue
        while piece or not decompressor.needs_input:
            if decompressor.eof:
                break
            try:
                yield await asyncio.to_thread(decompressor.decompress, piece, STEP_BYTES)
            except ZstdError as error:
                raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"the archive is damaged ({error})") from error
            piece = b""  # noqa: PLW2901
    if not has_begun and begun:
        yield begun
    if decompressor is not None and not decompressor.eof:
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, "the archive is damaged: it ends in the middle")
