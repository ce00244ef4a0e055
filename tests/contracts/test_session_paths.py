"""Names of files in session storage: one form for each, and nothing that leads elsewhere."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandhold.contracts.errors import ErrorCode
from sandhold.contracts.session_paths import (
    PART_LIMIT_BYTES,
    PATH_LIMIT_BYTES,
    InvalidSessionPath,
    session_folder,
    session_path,
)

TRICKY = st.sampled_from(
    [".", "..", "/", "", "\0", "\n", "\x7f", "\x85", "\u2028", "\ufffe", "\ud800", "e\u0301", "~#1"]
)
PATHS = st.one_of(st.text(), st.lists(st.one_of(TRICKY, st.text(max_size=3)), max_size=12).map("".join))


@given(PATHS)
def test_a_path_is_refused_or_brought_into_a_form_that_stays(given_path: str) -> None:
    try:
        path = session_path(given_path)
    except InvalidSessionPath as refused:
        error = refused.error
    else:
        error = None
    if error is not None:
        assert error.code is ErrorCode.INVALID_ARGUMENTS
        assert error.model_dump_json().encode()
        return
    assert session_path(path) == session_path(f"/{path}") == session_path(unicodedata.normalize("NFD", path)) == path
    assert session_folder(path) == session_folder(f"/{path}/") == path
    assert 0 < len(path.encode()) <= PATH_LIMIT_BYTES
    assert not {"", ".", ".."} & set(path.split("/"))
    assert all(character.isprintable() or unicodedata.category(character) != "Cc" for character in path)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "/",
        "//a",
        "a//b",
        "a/",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/./b",
        "/..",
        "a\0b",
        "a\nb",
        "a\x1b[2Jb",
        "a\u2029b",
        "\ud800",
        "a\uffff",
        "x" * (PART_LIMIT_BYTES + 1),
        "é" * (PART_LIMIT_BYTES // 2 + 1),
        "/".join(["x" * 100] * 8),
    ],
)
def test_what_cannot_be_a_path_is_refused_with_a_reason(wrong: str) -> None:
    with pytest.raises(InvalidSessionPath, match=r"cannot be a path in session storage: .+") as refused:
        session_path(wrong)
    assert len(refused.value.error.message) < 1000


@pytest.mark.parametrize(
    ("given_path", "path"),
    [
        ("/etc/passwd", "etc/passwd"),
        ("...", "..."),
        ("..a/b..", "..a/b.."),
        ("a b", "a b"),
        ("C:\\x", "C:\\x"),
        ("cafe\u0301", "caf\u00e9"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("x" * PART_LIMIT_BYTES, "x" * PART_LIMIT_BYTES),
    ],
)
def test_whatever_stays_inside_is_a_name(given_path: str, path: str) -> None:
    assert session_path(given_path) == path


def test_all_of_the_files_are_a_folder() -> None:
    assert session_folder("") == session_folder("/") == ""
    with pytest.raises(InvalidSessionPath):
        session_folder("a//")
