"""What `pack.sh` writes in a sandbox: a line about what was found, and a tar archive that may be compressed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from activities.tar import TarBroken, TarReader, Visitor
from activities.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
from sandhold.contracts.errors import ErrorCode, ToolFailure

STEP_BYTES = 128 * 1024
"""How much of the archive is read in one step: little, as a few compressed bytes may stand for gigabytes, and as what
fits into a processor's cache is worked on four times as fast as megabytes (measured)."""
_LONGEST_LINE = 8 * 1024
_WINDOW_LOG = 23
"""zstd -1 needs 512 KiB of what came before; 8 MiB are lent to a stream that says that it needs more."""


class Packed:
    """Reads the stream and shows its entries to a visitor."""

    def __init__(self, path: str, visitor: Visitor, tap: Callable[[bytes], None] | None = None) -> None:
        """`path` is what was asked for, for messages. `tap` is shown the archive as it comes, before its entries."""
        self._path = path
        self._reader = TarReader(visitor)
        self._tap = tap
        self._line = b""
        self._is_open = False
        self._decompressor: ZstdDecompressor | None = None
        self.is_canonical = False
        """Whether it may be the archive that we would write; known before its first entry is shown."""
        self.is_file = False
        """Whether it is a single file that was asked for; known before its entry is shown."""

    def feed(self, data: bytes) -> Iterator[None]:
        """Read on; comes back after every STEP_BYTES of the archive, and before its first byte.

        Raises ToolFailure when there is nothing to be had, and TarBroken.
        """
        if not self._is_open:
            self._line += data
            line, newline, data = self._line.partition(b"\n")
            if not newline:
                if len(self._line) > _LONGEST_LINE:
                    raise TarBroken("the sandbox answers with something else")
                return
            self._open(line)
            yield
        if self._tap is not None:
            self._tap(data)
        if self._decompressor is None:
            yield from self._read(data)
        else:
            yield from self._decompress(data)

    def close(self) -> None:
        """The stream has ended. Raises TarBroken when it should not have yet."""
        self._reader.close()

    def _open(self, line: bytes) -> None:
        words = line.decode("utf-8", "backslashreplace").split(" ", 2)
        match words:
            case ["sandhold-pack", "directory" | "file" as kind, "gnu zstd" | "zstd" | "none" as how]:
                self._is_open = True
                self.is_canonical = how == "gnu zstd"
                self.is_file = kind == "file"
                self._decompressor = None if how == "none" else _decompressor()
            case ["sandhold-pack", "missing"]:
                raise ToolFailure(ErrorCode.PATH_NOT_FOUND, f"{self._path} does not exist in the sandbox")
            case ["sandhold-pack", "special"]:
                raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"{self._path} is a device, pipe or socket")
            case ["sandhold-pack", "failed", why]:
                is_denied = "permission denied" in why.lower()
                code = ErrorCode.PERMISSION_DENIED if is_denied else ErrorCode.PATH_NOT_FOUND
                raise ToolFailure(code, f"{self._path} cannot be read: {why[-200:]}")
            case _:
                raise TarBroken("the sandbox answers with something else")

    def _read(self, data: bytes) -> Iterator[None]:
        for at in range(0, len(data), STEP_BYTES):
            self._reader.feed(data[at : at + STEP_BYTES])
            yield

    def _decompress(self, data: bytes) -> Iterator[None]:
        assert self._decompressor is not None
        while data or not self._decompressor.needs_input:
            if self._decompressor.eof:
                data = self._decompressor.unused_data + data
                self._decompressor = _decompressor()
                if not data:
                    return
            try:
                step = self._decompressor.decompress(data, STEP_BYTES)
            except ZstdError as error:
                raise TarBroken(f"the compressed archive is damaged ({error})") from error
            data = b""
            self._reader.feed(step)
            yield


def _decompressor() -> ZstdDecompressor:
    return ZstdDecompressor(options={DecompressionParameter.window_log_max: _WINDOW_LOG})
