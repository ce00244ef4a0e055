"""What kind of file it is that is no text, as far as its first bytes or its name tell."""

from __future__ import annotations

import mimetypes

UNKNOWN = "application/octet-stream"

_BEGINNINGS = (
    (b"\x7fELF", "application/x-executable"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
    (b"BZh", "application/x-bzip2"),
    (b"\xfd7zXZ\0", "application/x-xz"),
    (b"\x28\xb5\x2f\xfd", "application/zstd"),
    (b"SQLite format 3\0", "application/vnd.sqlite3"),
    (b"\0asm", "application/wasm"),
)


def media_type(path: str, beginning: bytes) -> str:
    """The media type. The name decides first: it tells a document from the archive that it is packed in."""
    by_name, packed = mimetypes.guess_type(path, strict=False)
    if by_name is not None and packed is None:
        return by_name
    return next((kind for begins, kind in _BEGINNINGS if beginning.startswith(begins)), UNKNOWN)
