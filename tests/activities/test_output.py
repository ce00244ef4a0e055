"""What the caller reads of a command's output: within its budget, cleaned, errors kept, and counted."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.launcher import CallReport, Captured
from activities.output import (
    AUTO_FAILURE_BYTES,
    AUTO_SUCCESS_BYTES,
    BUDGETS,
    STDERR_BYTES,
    clean,
    exec_result,
    shown,
    status_of,
    whole_characters,
    with_files,
)

KIB = 1024


def whole(data: bytes) -> Captured:
    return Captured(len(data), data)


def ended(stdout: bytes = b"", stderr: bytes = b"", code: int | None = 0, **more: object) -> CallReport:
    return CallReport("c", "ended", code, 100, 350, stdout=whole(stdout), stderr=whole(stderr), **more)  # type: ignore[arg-type]


def left_out(text: str) -> int:
    """What the counting lines say was left out."""
    return sum(
        int(count) for count in re.findall(r"^\[\.\.\. (?:\d+ lines, )?(\d+) bytes left out \.\.\.\]$", text, re.M)
    )


def test_small_output_comes_as_it_is() -> None:
    result = exec_result("c-1", ended(b"hello\n", b"careful\n"), "auto")
    assert (result.status, result.exit_code, result.stdout, result.stderr) == ("completed", 0, "hello\n", "careful\n")
    assert (result.truncated, result.stdout_bytes, result.stderr_bytes) == (False, 6, 8)
    assert (result.duration_ms, result.hint, result.call_id) == (2500, None, "c-1")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x1b[31mred\x1b[0m \x1b[1;38;5;200mbold\x1b[m", "red bold"),
        (b"\x1b]0;a title\x07text \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "text link"),
        (b"10%\r50%\r100%\n", "100%\n"),
        (b"10%\r50%\r", "50%"),
        (b"dos\r\nlines\r\n", "dos\nlines\n"),
        (b"\x1b[2K\r\x1b[1Gdone\n", "done\n"),
        (b"nul\0inside", "nul\0inside"),
        (b"half a character \xe2\x82", "half a character \ufffd"),
        (b"latin \xe9t\xe9", "latin \ufffdt\ufffd"),
        ("snowman \u2603\n".encode(), "snowman \u2603\n"),
    ],
)
def test_colours_go_progress_collapses_and_no_byte_breaks_the_answer(raw: bytes, text: str) -> None:
    assert clean(raw) == text


@pytest.mark.parametrize(("detail", "budget"), [*BUDGETS.items(), ("auto", AUTO_SUCCESS_BYTES)])
def test_fifty_megabytes_are_told_within_the_budget_with_exact_counts(detail: str, budget: int) -> None:
    """Whatever was written, at most the window of the launcher arrives here."""
    head, tail = b"first line\n" + b"h" * 13_000, b"t\n" * 26_000 + b"last line\n"
    report = CallReport("c", "ended", 0, stdout=Captured(50_000_000, head, tail), stderr=whole(b"e" * 10_000))
    result = exec_result("c", report, detail)  # type: ignore[arg-type]
    assert len(result.stdout.encode()) <= budget
    assert len(result.stdout.encode()) > budget * 0.8 or budget == 64 * KIB
    assert result.stdout.startswith("first line\n")
    assert result.stdout.endswith("last line\n")
    assert len(result.stderr.encode()) <= min(budget, STDERR_BYTES)
    assert (result.truncated, result.stdout_bytes, result.stderr_bytes) == (True, 50_000_000, 10_000)
    assert left_out(result.stdout) > 49_000_000


def test_auto_is_short_on_success_and_longer_on_failure() -> None:
    output = b"a line of output\n" * 2000
    assert len(exec_result("c", ended(output), "auto").stdout) <= AUTO_SUCCESS_BYTES
    failed = exec_result("c", ended(output, code=1), "auto").stdout
    assert AUTO_FAILURE_BYTES * 0.8 < len(failed) <= AUTO_FAILURE_BYTES


def test_the_head_gets_a_fifth_and_the_tail_the_rest() -> None:
    output = "".join(f"line {n:05d}\n" for n in range(10_000)).encode()
    text = shown(whole(output), 8 * KIB, failed=False).text
    head, tail = re.split(r"\[\.\.\. .* left out \.\.\.\]\n", text)
    assert 0.15 < len(head) / len(text) < 0.25
    assert head.startswith("line 00000\n")
    assert head.endswith("\n")
    assert re.match(r"line \d{5}\n", tail)
    assert tail.endswith("line 09999\n")


def test_the_first_errors_of_a_failed_command_are_kept_before_anything_else() -> None:
    lines = [f"compiling part {n}\n" for n in range(4000)]
    lines[1500] = "parser.c:17: error: expected ';' before '}' token\n"
    lines[1501] = "   17 |   return x\n"
    report = ended("".join(lines).encode(), code=2)
    failed = exec_result("c", report, "concise").stdout
    assert "expected ';'" in failed
    assert "return x" in failed
    assert failed.startswith("compiling part 0\n")
    assert failed.endswith("compiling part 3999\n")
    assert len(failed) <= 2 * KIB
    assert "expected ';'" not in exec_result("c", ended("".join(lines).encode()), "concise").stdout


def test_a_traceback_in_the_middle_is_kept_with_its_end() -> None:
    trace = (
        'Traceback (most recent call last):\n  File "x.py", line 3, in <module>\n    f()\nValueError: no such thing\n'
    )
    report = ended(b"noise\n" * 5000 + trace.encode() + b"noise\n" * 5000, code=1)
    assert trace in exec_result("c", report, "normal").stdout


def test_output_that_is_all_errors_still_fits_and_keeps_its_end() -> None:
    report = ended(b"".join(b"error %d: it is broken\n" % n for n in range(9000)), code=1)
    text = exec_result("c", report, "normal").stdout
    assert len(text) <= 8 * KIB
    assert "error 0:" in text
    assert text.endswith("error 8999: it is broken\n")


def test_one_line_without_an_end_is_cut_between_characters() -> None:
    text = shown(whole("ä€😀".encode() * 20_000), 2 * KIB, failed=True).text
    assert len(text.encode()) <= 2 * KIB
    assert set(re.sub(r"\n\[.*\]\n", "", text)) == set("ä€😀")


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (126, "executable"),
        (127, "not found"),
        (137, "memory"),
        (139, "segmentation"),
        (141, "pipe"),
        (143, "SIGTERM"),
    ],
)
def test_exit_codes_that_say_more_come_with_a_hint(code: int, word: str) -> None:
    assert word in (exec_result("c", ended(code=code), "auto").hint or "")


def test_the_end_that_we_brought_about_is_told_as_such() -> None:
    timed_out = exec_result("c", ended(b"so far", code=137, reason="timed_out"), "auto")
    assert (timed_out.status, timed_out.exit_code, timed_out.stdout) == ("timed_out", 137, "so far")
    assert "timeout" in (timed_out.hint or "")
    assert exec_result("c", ended(code=143, reason="cancelled"), "auto").status == "cancelled"
    # It ended by itself before the request to end it arrived.
    assert exec_result("c", ended(code=0), "auto", asked_to_end=True).status == "completed"


def test_a_command_that_wrote_too_much_is_cancelled_and_its_hint_names_the_cap() -> None:
    report = ended(b"so far", code=143, reason="output_limit", cap_bytes=1_000_000)
    result = exec_result("c", report, "auto")
    assert (result.status, result.exit_code, result.stdout) == ("cancelled", 143, "so far")
    assert "1000000 bytes" in (result.hint or "")


def test_whole_output_in_storage_is_told_by_its_folders() -> None:
    files = with_files(exec_result("..", ended(), "auto")).output_files
    assert files is not None
    assert (files.stdout, files.stderr) == ("calls/%2E./stdout", "calls/%2E./stderr")


def test_a_running_command_is_told_as_running() -> None:
    assert status_of(CallReport("c", "running")) == "running"


@pytest.mark.parametrize("state", ["interrupted", "absent", "cleaned"])
def test_a_command_without_an_end_was_interrupted_unless_it_was_to_be_cancelled(state: str) -> None:
    report = CallReport("c", state, stdout=whole(b"until then"))  # type: ignore[arg-type]
    result = exec_result("c", report, "auto")
    assert (result.status, result.exit_code, result.stdout) == ("interrupted", None, "until then")
    assert "not run again" in (result.hint or "")
    assert exec_result("c", report, "auto", asked_to_end=True).status == "cancelled"
    assert exec_result("c", report, "auto", time_is_up=True).status == "timed_out"
    assert exec_result("c", report, "auto", asked_to_end=True, time_is_up=True).status == "cancelled"
    assert result.duration_ms is None


def test_what_could_not_be_killed_is_told() -> None:
    report = ended(code=None, reason="timed_out", left_alive=True)
    assert "may still run" in (exec_result("c", report, "auto").hint or "")
    assert "may still run" not in (exec_result("c", ended(code=None, reason="timed_out"), "auto").hint or "")


captures = st.one_of(
    st.binary(max_size=3000).map(whole),
    st.lists(st.sampled_from([b"a line\n", b"fatal error: x\n", b"\xe2\x82\xac", b"\r50%", b"\x1b[1m", b"x" * 300]))
    .map(b"".join)
    .map(whole),
    st.builds(
        lambda head, tail, unseen: Captured(len(head) + len(tail) + unseen, head, tail),
        st.binary(max_size=800),
        st.binary(min_size=1, max_size=2000),
        st.integers(1, 10**9),
    ),
)


@given(captures, st.integers(512, 4096), st.booleans())
def test_any_output_fits_its_budget_and_nothing_disappears_uncounted(
    captured: Captured, budget: int, failed: bool
) -> None:
    told = shown(captured, budget, failed=failed)
    assert len(told.text.encode()) <= budget
    complete = clean(captured.head) + clean(captured.tail)
    if not told.truncated:
        assert told.text == complete
        assert captured.unseen == 0
        return
    kept = re.sub(r"\n?^\[\.\.\. (?:\d+ lines, )?\d+ bytes left out \.\.\.\]\n", "", told.text, flags=re.M)
    missing = len(complete.encode()) + captured.unseen - len(kept.encode())
    # A counting line may bring a line break of its own.
    assert abs(missing - left_out(told.text)) <= told.text.count("bytes left out")


@given(st.binary(max_size=2000))
def test_cleaning_any_bytes_twice_changes_nothing_more(raw: bytes) -> None:
    once = clean(raw)
    assert "\r" not in once
    assert clean(once.encode()) == once or "\x1b" in raw.decode("utf-8", "replace")


def window(raw: bytes, limit: int, *, last: bool) -> tuple[str, int]:
    piece = raw[:limit] if last and len(raw) <= limit else raw[:limit][: whole_characters(raw[:limit])]
    return clean(piece), len(piece)


@given(st.text(max_size=400).map(str.encode), st.integers(4, 50), st.integers(0, 400))
def test_windows_of_text_join_to_the_text_without_cutting_a_character(text: bytes, limit: int, known: int) -> None:
    """Also while only a part of it is there yet."""
    told, at = "", 0
    for size in (min(known, len(text)), len(text)):
        last = size == len(text)
        while at < size:
            piece, taken = window(text[at:size], limit, last=last)
            assert taken <= limit
            assert "\ufffd" not in piece or "\ufffd" in text.decode()
            assert clean(text[at : at + taken]) == piece
            if not taken:
                assert not last
                assert size - at < 4
                break
            told, at = told + piece, at + taken
    assert at == len(text)
    if not {b"\r", b"\x1b"} & {text[n : n + 1] for n in range(len(text))}:
        assert told.encode() == text


@given(st.binary(max_size=300), st.integers(4, 50))
def test_windows_of_any_bytes_move_on_to_the_end(raw: bytes, limit: int) -> None:
    at = 0
    while at < len(raw):
        _, taken = window(raw[at:], limit, last=True)
        assert 0 < taken <= limit
        at += taken
