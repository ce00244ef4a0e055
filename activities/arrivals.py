"""Bringing files into a sandbox: one file in the place of another, or a whole archive into a directory."""

from __future__ import annotations

from collections.abc import AsyncIterable

from activities.reasons import failure_for
from activities.stream_requests import StreamBroken, StreamEnd
from activities.stream_scripts import PLACE, UNPACK
from activities.streams import SandboxStreams
from activities.workspaces.entries import readable
from sandhold.contracts.errors import ToolFailure
from sandhold.contracts.excerpts import beginning_of
from sandhold.contracts.names import call_folder
from sandhold.contracts.steps import SandboxRef

_BROKE_OFF = 75
_KILLED = 128
_TOLD_ENTRIES = 3
_TOLD_CHARS = 200


class Arrivals:
    """Raises ToolFailure for what the caller can do something about, and ApplicationError where another attempt may do.

    Safe to repeat.
    """

    def __init__(self, streams: SandboxStreams) -> None:
        self._streams = streams

    async def place(
        self,
        ref: SandboxRef,
        call_id: str,
        path: str,
        pieces: AsyncIterable[bytes],
        *,
        size: int | None = None,
        mode: str | None = None,
    ) -> None:
        """Make `pieces` the content of the file at `path` (absolute), as a whole or not at all.

        Pieces that do not make `size` bytes are taken for damaged on their way.
        """
        environment = {
            "SANDHOLD_TARGET": path,
            "SANDHOLD_MODE": mode or "",
            "SANDHOLD_SIZE": "" if size is None else str(size),
            "SANDHOLD_NAME": call_folder(call_id),
        }
        end = await self._streams.write(ref, call_id, PLACE, environment, pieces)
        if not _ended_well(path, end):
            raise failure_for(path, readable(end.said) or f"ended with {end.exit_code}")

    async def unpack(self, ref: SandboxRef, call_id: str, directory: str, pieces: AsyncIterable[bytes]) -> None:
        """Unpack a tar archive into a directory (absolute). Its names are believed.

        What it holds replaces what is there under the same names. A failure leaves what was unpacked by then, and names
        the first of what was not.
        """
        end = await self._streams.write(ref, call_id, UNPACK, {"SANDHOLD_TARGET": directory}, pieces)
        if not _ended_well(directory, end):
            raise _not_unpacked(directory, end)


def _ended_well(path: str, end: StreamEnd) -> bool:
    if end.exit_code == _BROKE_OFF or end.exit_code > _KILLED:
        raise StreamBroken(f"what writes {path} ended with {end.exit_code}")
    return end.exit_code == 0


def _not_unpacked(directory: str, end: StreamEnd) -> ToolFailure:
    lines = [line for line in readable(end.said).splitlines() if line.strip()]
    told = (
        "; ".join(beginning_of(line, _TOLD_CHARS) for line in lines[:_TOLD_ENTRIES])
        or f"tar ended with {end.exit_code}"
    )
    if len(lines) > _TOLD_ENTRIES:
        told = f"{told}; and {len(lines) - _TOLD_ENTRIES} more"
    meaning = failure_for(directory, told).error
    return ToolFailure(meaning.code, f"not everything could be unpacked into {directory}: {told}", hint=meaning.hint)
