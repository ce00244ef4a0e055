"""Any bytes of any size under any name, through the two file tools: what was written is there, and is what is read."""

from __future__ import annotations

import asyncio
import base64
import codecs
import hashlib
import itertools
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandhold.client import Session
from sandhold.contracts.names import WORKSPACE_PATH
from sandhold.contracts.tools import ReadFileResult, WriteFileResult
from tests.stack import Stack

KIB = 1024
TEXT_BOUND_BYTES, BINARY_BOUND_BYTES = 256 * KIB, 48 * KIB
EXAMPLES = int(os.environ.get("SANDHOLD_TEST_EXAMPLES", "0"))
"""How many examples of chance to try; by default few, and always the same."""
_numbers = itertools.count(1)

HOSTILE = [
    *(
        "-rf",
        "--",
        " ",
        " a b ",
        "'",
        '"',
        "\\",
        "$(id)",
        "`id`",
        "${HOME}",
        "a;b",
        "a&b",
        "*",
        "?",
        "[a]",
        "!",
        "#",
        "~",
    ),
    *("new\nline", "\n", "ends\n", "\r", "a\tb", "\x1b[31m", "\x7f", "...", "..a", ".hidden", "a=b", "%s", "x" * 255),
    *("sandhold-end", ".sandhold", "caf\u00e9", "cafe\u0301", "é" * 127, "日本", "😀", "\u202e", "\ufeff", "\u2028"),
]
PARTS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=60),
).filter(lambda part: part not in {".", ".."} and len(part.encode()) <= 255)
DEEPEST = (*["d" * 250] * 16, "e" * 30, "f")
"""Near the 4,095 bytes of a path."""
PATHS = st.lists(PARTS, min_size=1, max_size=4).map(tuple)


def _apart(paths: Sequence[tuple[str, ...]]) -> bool:
    """Whether none of the files would lie in another one."""
    return not any(one == other[: len(one)] for one, other in itertools.permutations(paths, 2))


def _of_size(size: int, of_what: str) -> bytes:
    """So many bytes: of any values, lines of text, or a single line."""
    chance = random.Random(size)
    if of_what == "bytes":
        return chance.randbytes(size)
    if of_what == "one line":
        return ("é" * size).encode()[:size].decode("utf-8", "ignore").encode()
    lines = "".join(f"{number} {'ü' * chance.randrange(60)}\r\n" for number in range(size // 30 + 1))
    return lines.encode()[:size].decode("utf-8", "ignore").encode()


# Around the sizes at which content and results take another way: in storage, as an upload, in windows, not at all.
_SIZES = [2 * KIB, 16 * KIB, BINARY_BOUND_BYTES, 64 * KIB, 96 * KIB, TEXT_BOUND_BYTES, KIB * KIB]
CONTENTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=200).map(str.encode),
    st.text(st.sampled_from("ab\n\n\r\té€😀\x0b\x1c\x85\u2028\ufeff"), max_size=100).map(str.encode),
    st.lists(st.sampled_from([b"one", b"", b"\xff", b"\0", b"two\r"]), max_size=40).map(b"\n".join),
    st.binary(max_size=300),
    st.builds(
        lambda size, more, of_what: _of_size(size + more, of_what),
        st.sampled_from(_SIZES),
        st.integers(-1, 1),
        st.sampled_from(["bytes", "lines", "one line"]),
    ),
)


@dataclass(frozen=True)
class Write:
    """A call of `daytona_write_file` on one of the example's files."""

    file: int
    content: bytes
    append: bool
    mode: str | None
    as_text: bool
    is_repeated: bool

    def arguments(self) -> Mapping[str, Any]:
        told = {"append": self.append, "mode": self.mode}
        if self.as_text and _text(self.content) is not None:
            return {**told, "content": self.content.decode(), "encoding": "text"}
        return {**told, "content": base64.b64encode(self.content).decode(), "encoding": "base64"}


def plain(file: int) -> Write:
    return Write(file, b"%d\n" % file, append=False, mode=None, as_text=True, is_repeated=False)


WRITES = st.builds(
    Write,
    file=st.integers(0, 1),
    content=CONTENTS,
    append=st.booleans(),
    mode=st.sampled_from([None, None, "600", "644", "0640", "755"]),
    as_text=st.booleans(),
    is_repeated=st.booleans(),
)
WINDOWS = st.tuples(
    st.one_of(st.just(0), st.integers(0, 40), st.integers(0, 40_000)),
    st.one_of(st.just(2000), st.integers(1, 10), st.integers(1, 100_000)),
)


def _text(data: bytes, is_whole: bool = True) -> str | None:
    """The bytes as text, but for a character that is cut at the end of what is not whole; None when they are none."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data, is_whole)
    except UnicodeDecodeError:
        return None


@dataclass
class File:
    """What a file has to hold, and what a reader has to be shown of it."""

    data: bytes = b""
    mode: int = 0o644

    def take(self, write: Write) -> None:
        self.data = self.data + write.content if write.append else write.content
        if write.mode is not None:
            self.mode = int(write.mode, 8)

    def shown(self, path: str, offset: int, limit: int) -> Mapping[str, Any]:
        lines = re.findall(rb"[^\n]*\n|[^\n]+", self.data)
        asked = b"".join(lines[offset : offset + limit])
        is_small = len(self.data) <= TEXT_BOUND_BYTES
        judged = self.data if is_small else asked[: TEXT_BOUND_BYTES + 1]
        told: dict[str, Any] = {"path": path, "bytes": len(self.data)}
        if b"\0" in judged or _text(judged, is_whole=is_small or judged == asked) is None:
            comes = len(self.data) <= BINARY_BOUND_BYTES
            content = base64.b64encode(self.data).decode() if comes else None
            return {**told, "encoding": "base64", "content": content, "total_lines": None, "truncated": not comes}
        content = _text(asked[:TEXT_BOUND_BYTES], is_whole=False)
        assert content is not None
        if len(asked) > TEXT_BOUND_BYTES and "\n" in content:
            content = content[: content.rindex("\n") + 1]
        is_cut = len(content.encode()) < len(asked) or offset + limit < len(lines)
        return {**told, "encoding": "text", "content": content, "total_lines": len(lines), "truncated": is_cut}


@dataclass
class Folder:
    """A directory of the example's own."""

    session: Session
    form: str
    name: str = field(default_factory=lambda: f"example-{next(_numbers)}")

    def path(self, parts: Sequence[str]) -> str:
        return self.form.format(self.name) + "/".join(parts)

    def resolved(self, parts: Sequence[str]) -> str:
        return f"{WORKSPACE_PATH}/" + self.path(parts).removeprefix(f"{WORKSPACE_PATH}/").removeprefix("~/")

    async def files(self) -> Mapping[tuple[str, ...], tuple[int, int]]:
        """What lies in it, by its path: size and mode."""
        script = f"cd {self.name} && find . ! -type d -printf '%P\\0%s\\0%m\\0' | base64"
        listed = await self.session.exec("box", script, output="full")
        words = base64.b64decode(listed.stdout).decode().split("\0")[:-1]
        rows = zip(words[::3], words[1::3], words[2::3], strict=True)
        return {tuple(path.split("/")): (int(size), int(mode, 8)) for path, size, mode in rows}


@pytest.fixture
async def session(stack: Stack) -> Session:
    """One for all examples, with a sandbox."""
    session = await stack.open()
    await session.create_sandbox(sandbox_id="box", size="large")
    return session


# A failure is made small before it is told, which takes a while.
@pytest.mark.timeout(900)
@settings(
    max_examples=EXAMPLES or 30,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(form="./{}/./", names=[DEEPEST], writes=[plain(0)], windows=[])
@example(form="{}/", names=[(each, each) for each in HOSTILE], writes=list(map(plain, range(len(HOSTILE)))), windows=[])
@given(
    form=st.sampled_from(["{}/", "~/{}/", WORKSPACE_PATH + "/{}/", "{}//", "./{}/./"]),
    names=st.lists(PATHS, min_size=1, max_size=2, unique=True).filter(_apart),
    writes=st.lists(WRITES, min_size=1, max_size=3),
    windows=st.lists(WINDOWS, max_size=2),
)
async def test_what_was_written_is_there_and_is_what_is_read(
    session: Session,
    form: str,
    names: Sequence[tuple[str, ...]],
    writes: Sequence[Write],
    windows: Sequence[tuple[int, int]],
) -> None:
    folder = Folder(session, form)
    files: dict[tuple[str, ...], File] = {}
    for number, write in enumerate(writes):
        name = names[write.file % len(names)]
        file = files.setdefault(name, File())
        file.take(write)
        call_id = f"{folder.name}-{number}"
        path, expected = folder.path(name), hashlib.sha256(file.data).hexdigest()
        for _ in range(2 if write.is_repeated else 1):
            written = await session.write_file("box", path, **write.arguments(), call_id=call_id)
            assert written == WriteFileResult(path=folder.resolved(name), bytes=len(file.data), sha256=expected)
    assert await folder.files() == {name: (len(file.data), file.mode) for name, file in files.items()}

    async def is_read(name: tuple[str, ...], offset: int, limit: int) -> None:
        read = await session.read_file("box", folder.path(name), offset=offset, limit=limit)
        told = ReadFileResult(**files[name].shown(folder.resolved(name), offset, limit))
        assert read.model_copy(update={"hint": None, "media_type": None}) == told

    await asyncio.gather(*(is_read(name, *window) for name in files for window in [(0, 2000), *windows]))
