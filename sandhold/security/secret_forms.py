"""The forms in which a secret's value turns up in text: as it is, encoded, quoted, line by line."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

SHORTEST_SECRET = 6
"""Bytes. A shorter value is in too much that is not secret: replacing it would leave no text readable."""
SHORTEST_LINE = 16
"""Bytes of a line of a secret of several lines that is searched on its own."""
LONGEST_PART = 16 * 1024
"""Bytes. What is longer is searched as parts of this size, each on its own."""
EVERY_FORM_BYTES = 1024
"""Up to this size a value is searched in every form. Longer ones are keys and documents, which nobody types into an
address or a shell: they are searched as they are, line by line, in JSON and in base64. All forms of a value of 64 KiB
would take seconds, and hundreds of megabytes, to be made ready."""
MANY_FORMS_BYTES = 4 * 1024
"""Up to this size base64 is searched at each of its three alignments, above only as the whole value's own."""

_BLOCK = 16
_MOST_BLOCKS = EVERY_FORM_BYTES * 4 // 3 // _BLOCK + 1
"""Of a text in base64 that is searched block by block too."""
_WRAPPED_AT = (76, 64)
"""Where `base64` and `openssl base64` break their lines."""
_CONTROLS = re.compile(rb"(?:[\x00-\x1f\x7f]|\xc2[\x80-\x9f])+")
_PERCENT = re.compile(r"%[0-9A-F]{2}")
# What bash's `printf %q` and `set -x` leave as it is.
_BARE = re.compile(r"([^A-Za-z0-9_@%+=:,./-])")


def is_searchable(value: str | bytes) -> bool:
    """Whether a secret of this value is long enough to be redacted from output."""
    return len(_bytes(value).strip()) >= SHORTEST_SECRET


def forms_of(value: str | bytes) -> list[bytes]:
    """Every form to search for, each at least `SHORTEST_SECRET` bytes long, without repetition.

    The first is the value itself, without white space around it. Empty for a value that is too short.
    """
    stripped = _bytes(value).strip()
    if len(stripped) < SHORTEST_SECRET:
        return []
    parts = [stripped[at : at + LONGEST_PART] for at in range(0, len(stripped), LONGEST_PART)]
    found = dict.fromkeys(form for part in parts for form in _forms(part))
    return [form for form in found if len(form) >= SHORTEST_SECRET]


def _bytes(value: str | bytes) -> bytes:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _forms(value: bytes) -> Iterator[bytes]:
    yield value
    # In one line, as errors quote a text of several.
    yield _CONTROLS.sub(b" ", value)
    if b"\n" in value:
        lines = [line.strip() for line in value.splitlines()]
        yield b"\r\n".join(lines)
        # The first and the last line of a key say only what it is.
        yield from (line for line in lines if len(line) >= SHORTEST_LINE and not line.startswith(b"-----"))
    if len(value) > EVERY_FORM_BYTES:
        yield from _base64(value) if len(value) <= MANY_FORMS_BYTES else _whole_base64(value)
        yield json.dumps(value.decode("utf-8", "replace"))[1:-1].encode()
        return
    yield from _base64(value)
    yield value.hex().encode()
    yield value.hex().upper().encode()
    yield from _percent(value)
    try:
        text = value.decode()
    except UnicodeDecodeError:
        yield repr(value)[2:-1].encode()
    else:
        for form in _quoted(text):
            yield form.encode()


def _base64(value: bytes) -> Iterator[bytes]:
    """The encodings of the value, and what of them stays the same wherever it stands in a longer text."""
    yield from _whole_base64(value)
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + value)
        # Only characters all of whose six bits are bits of the value.
        middle = encoded[-(-8 * before // 6) : 8 * (before + len(value)) // 6]
        yield from _with_blocks(middle)
        urlsafe = middle.translate(bytes.maketrans(b"+/", b"-_"))
        if urlsafe != middle:
            yield from _with_blocks(urlsafe)


def _whole_base64(value: bytes) -> Iterator[bytes]:
    """The encodings of the value alone, also in lines."""
    whole = base64.b64encode(value)
    for alphabet in (whole, base64.urlsafe_b64encode(value)):
        yield alphabet
        yield alphabet.rstrip(b"=")
    for width in _WRAPPED_AT:
        if len(whole) > width:
            lines = [whole[at : at + width] for at in range(0, len(whole), width)]
            yield b"\n".join(lines)
            yield b"\r\n".join(lines)


def _with_blocks(encoded: bytes) -> Iterator[bytes]:
    """The text and its blocks: when it is broken over two lines, anywhere, only the block with the break is left."""
    yield encoded
    blocks = len(encoded) // _BLOCK
    if 1 < blocks <= _MOST_BLOCKS:
        for number in range(blocks):
            end = (number + 1) * _BLOCK if number + 1 < blocks else len(encoded)
            yield encoded[number * _BLOCK : end]


def _percent(value: bytes) -> Iterator[bytes]:
    # As form fields, path segments, whole paths, and by JavaScript's encodeURIComponent and encodeURI.
    for encoded in (
        quote_plus(value),
        quote(value, safe=""),
        quote(value, safe="/"),
        quote(value, safe="!'()*"),
        quote(value, safe=";,/?:@&=+$-_.!~*'()#"),
    ):
        yield encoded.encode()
        yield _PERCENT.sub(lambda found: found[0].lower(), encoded).encode()


def _quoted(text: str) -> Iterator[str]:
    # JSON and what is written like it, Python, HTML and XML.
    escaped = json.dumps(text)[1:-1]
    yield escaped
    yield escaped.replace("/", "\\/")
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield repr(text)[1:-1]
    yield html.escape(text)
    yield html.escape(text, quote=False)
    # Shells: in single quotes by Python and by bash, in double quotes, with backslashes.
    yield shlex.quote(text).strip("'")
    yield text.replace("'", "'\\''")
    yield re.sub(r'([\\"$`])', r"\\\1", text)
    yield _BARE.sub(r"\\\1", text)
