"""What a reader is shown of a file, whatever its bytes are."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from activities import file_windows
from activities.file_windows import BINARY_LIMIT_BYTES, WINDOW_BOUND_BYTES, shown_file, shown_window

TEXT = st.text(alphabet=st.sampled_from("ab\n\r\té€😀\x0b\x1c"), max_size=200)


@given(TEXT, st.integers(1, 7))
def test_windows_one_after_the_other_give_the_whole_file(text: str, limit: int) -> None:
    data = text.encode()
    offset, read = 0, []
    while True:
        result = shown_file("/f", data, offset, limit)
        assert result.encoding == "text"
        assert result.bytes == len(data)
        read.append(result.content or "")
        offset += limit
        if not result.truncated:
            break
    assert "".join(read) == text
    assert result.total_lines == data.count(b"\n") + (not data.endswith(b"\n") and data != b"")


@given(TEXT.map(str.encode), st.integers(0, 30))
def test_a_cut_never_splits_a_character(data: bytes, at: int) -> None:
    whole = file_windows._whole_characters(data[:at])
    whole.decode()
    assert len(data[:at]) - len(whole) < 4


@given(st.binary(max_size=300))
def test_every_byte_of_a_small_binary_file_comes_back(data: bytes) -> None:
    result = shown_file("/f", data, 0, 2000)
    if result.encoding == "text":
        assert (result.content or "").encode() == data
    else:
        assert base64.b64decode(result.content or "") == data


def test_only_a_newline_ends_a_line() -> None:
    result = shown_file("/f", b"one\r\ntwo\x0bstill two\x1cand\xe2\x80\xa8still\n", 1, 1)
    assert result.total_lines == 2
    assert (result.content or "").startswith("two\x0bstill two")


def test_an_empty_file_has_no_lines() -> None:
    result = shown_file("/f", b"", 0, 10)
    assert (result.content, result.total_lines, result.truncated) == ("", 0, False)


def test_a_window_beyond_the_end_says_how_many_lines_there_are() -> None:
    result = shown_file("/f", b"a\nb\n", 5, 10)
    assert (result.content, result.truncated) == ("", False)
    assert result.hint == "The file has only 2 lines."


def test_a_truncated_window_says_where_to_go_on() -> None:
    result = shown_file("/f", b"a\n" * 10, 2, 3)
    assert result.truncated
    assert result.hint == "5 more lines; go on with offset 5."


def test_a_window_above_the_bound_ends_at_its_last_whole_line() -> None:
    line = b"x" * 999 + b"\n"
    result = shown_window("/f", (line * 400)[: WINDOW_BOUND_BYTES + 1], 10**6, 1000, 100, 400)
    assert result.truncated
    assert (result.content or "").endswith("x\n")
    lines = len(result.content or "") // 1000
    assert result.hint == f"{1000 - 100 - lines} more lines; go on with offset {100 + lines}."


def test_a_line_above_the_bound_is_cut_at_a_character_and_says_so() -> None:
    result = shown_window("/f", ("é" * WINDOW_BOUND_BYTES).encode()[: WINDOW_BOUND_BYTES + 1], 10**9, 1, 0, 1)
    assert result.truncated
    assert set(result.content or "") == {"é"}
    assert "Line 0 is longer" in (result.hint or "")


def test_a_large_binary_file_is_only_described() -> None:
    small = shown_file("/f", b"\0" * BINARY_LIMIT_BYTES, 0, 1)
    assert len(base64.b64decode(small.content or "")) == BINARY_LIMIT_BYTES
    for result in (
        shown_file("/f", b"\0" * (BINARY_LIMIT_BYTES + 1), 0, 1),
        shown_window("/f", b"\xff\xfe" * 10, 10**7, 1, 0, 1),
        shown_window("/f", b"\xff" * (WINDOW_BOUND_BYTES + 1), 10**7, 1, 0, 1),
    ):
        assert (result.content, result.encoding, result.truncated, result.total_lines) == (None, "base64", True, None)
        assert result.bytes > BINARY_LIMIT_BYTES
        assert "daytona_download_workspace" in (result.hint or "")
        assert result.media_type == "application/octet-stream"


def test_what_kind_of_file_is_no_text_is_told_by_its_name_or_its_first_bytes() -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(BINARY_LIMIT_BYTES)
    assert shown_file("/no-suffix", png, 0, 1).media_type == "image/png"
    assert shown_window("/no-suffix", png, 10**7, 5, 0, 1).media_type == "image/png"
    assert shown_window("/no-suffix", png, 10**7, 5, 3, 1).media_type == "application/octet-stream", "its middle"
    assert shown_file("/a.tar.gz", b"\x1f\x8b\0", 0, 1).media_type == "application/gzip"
    assert shown_file("/a.pdf", b"\0", 0, 1).media_type == "application/pdf"
    assert shown_file("/text.png", b"text", 0, 1).media_type is None
