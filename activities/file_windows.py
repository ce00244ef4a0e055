"""What a reader is shown of a file: lines, or base64, or only its size. Pure functions of the bytes."""

from __future__ import annotations

import base64

from activities.media_types import media_type
from sandhold.contracts.tools import ReadFileResult

WINDOW_BOUND_BYTES = 256 * 1024
"""The most text that one read returns; files up to this size cross the network whole."""
BINARY_LIMIT_BYTES = 48 * 1024
"""The largest binary file that is returned at all."""
_LONGEST_CHARACTER = 4


def shown_file(path: str, data: bytes, offset: int, limit: int) -> ReadFileResult:
    """The window of a file that is known as a whole."""
    if not is_text(data):
        return _binary(path, data, len(data), media_type(path, data))
    lines = _lines(data)
    window = b"".join(lines[offset : offset + limit])
    return _text(path, window, len(data), len(lines), offset, limit)


def shown_window(path: str, window: bytes, size: int, total_lines: int, offset: int, limit: int) -> ReadFileResult:
    """The window of a larger file: its lines from `offset` on, at most `limit`, cut after WINDOW_BOUND_BYTES + 1."""
    was_cut = len(window) > WINDOW_BOUND_BYTES
    if not is_text(_whole_characters(window) if was_cut else window):
        return _binary(path, None, size, media_type(path, b"" if offset else window))
    return _text(path, window, size, total_lines, offset, limit)


def is_text(data: bytes) -> bool:
    """UTF-8 without NUL, which no text has and every common binary format does."""
    if b"\0" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _lines(data: bytes) -> list[bytes]:
    """The lines with their ends; only a newline ends one, so that numbers agree with what `sed` and `wc` count."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _text(path: str, window: bytes, size: int, total_lines: int, offset: int, limit: int) -> ReadFileResult:
    hint = None
    shown = window
    if len(window) > WINDOW_BOUND_BYTES:
        shown = window[:WINDOW_BOUND_BYTES]
        end = shown.rfind(b"\n") + 1
        if end:
            shown = shown[:end]
            hint = _go_on(offset + shown.count(b"\n"), total_lines)
        else:
            shown = _whole_characters(shown)
            hint = (
                f"Line {offset} is longer than {WINDOW_BOUND_BYTES} bytes and cut; "
                "read other parts of it with daytona_exec, for example with `cut -c`."
            )
    elif offset >= total_lines > 0:
        hint = f"The file has only {total_lines} lines."
    elif offset + limit < total_lines:
        hint = _go_on(offset + limit, total_lines)
    return ReadFileResult(
        path=path,
        content=shown.decode(),
        encoding="text",
        bytes=size,
        total_lines=total_lines,
        truncated=len(shown) < len(window) or offset + limit < total_lines,
        hint=hint,
    )


def _go_on(next_line: int, total_lines: int) -> str:
    return f"{total_lines - next_line} more lines; go on with offset {next_line}."


def _whole_characters(data: bytes) -> bytes:
    """The data without a UTF-8 character that was cut at its end."""
    for length in range(1, min(_LONGEST_CHARACTER, len(data)) + 1):
        byte = data[-length]
        if byte & 0xC0 == 0x80:
            continue
        needs = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        return data if needs == length else data[:-length]
    return data


def _binary(path: str, data: bytes | None, size: int, kind: str) -> ReadFileResult:
    if data is not None and size <= BINARY_LIMIT_BYTES:
        content = base64.b64encode(data).decode()
        return ReadFileResult(path=path, content=content, encoding="base64", bytes=size, media_type=kind)
    return ReadFileResult(
        path=path,
        encoding="base64",
        bytes=size,
        media_type=kind,
        truncated=True,
        hint=f"Not text (it holds NUL or is not UTF-8), and above {BINARY_LIMIT_BYTES} bytes nothing of such a file "
        "is returned. Bring it to session storage with daytona_download_workspace, or look at parts of it with "
        "daytona_exec, for example with `head -c`, `od` or `strings`.",
    )
