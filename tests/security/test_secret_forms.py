"""A value is found in every form that programs print it in."""

from __future__ import annotations

import base64
import html
import json
import secrets
import shlex
import subprocess
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.faults import readable
from sandhold.security.redaction import Redactor
from sandhold.security.secret_forms import LONGEST_PART, SHORTEST_SECRET, forms_of, is_searchable

VALUE = 'it\'s a "s3cret" of ours/with+signs=&more \\ $HOME %41'


def shown(value: str | bytes, text: str | bytes) -> str:
    return Redactor({"S": value}).redact(text.encode() if isinstance(text, str) else text).decode()


@pytest.mark.parametrize(
    "form",
    [
        VALUE,
        base64.b64encode(VALUE.encode()).decode(),
        base64.b64encode(VALUE.encode()).decode().rstrip("="),
        base64.urlsafe_b64encode(VALUE.encode()).decode(),
        VALUE.encode().hex(),
        VALUE.encode().hex().upper(),
        urllib.parse.quote(VALUE),
        urllib.parse.quote(VALUE, safe=""),
        urllib.parse.quote_plus(VALUE),
        urllib.parse.quote(VALUE, safe="!'()*"),
        urllib.parse.quote(VALUE, safe="")
        .replace("%2F", "%2f")
        .replace("%2B", "%2b")
        .replace("%3D", "%3d")
        .replace("%5C", "%5c"),
        json.dumps(VALUE)[1:-1],
        json.dumps(VALUE)[1:-1].replace("/", "\\/"),
        repr(VALUE)[1:-1],
        html.escape(VALUE),
        html.escape(VALUE, quote=False),
        shlex.quote(VALUE)[1:-1],
        VALUE.replace("'", "'\\''"),
    ],
)
def test_each_form_is_redacted(form: str) -> None:
    assert shown(VALUE, f"<{form}>") == "<[redacted:S]>"


@pytest.mark.parametrize("how", ['printf %q "$V"', 'set -x; : "$V"', "declare -p V"])
def test_what_bash_prints_of_it_is_redacted(how: str) -> None:
    ran = subprocess.run(["bash", "-c", how], env={"V": VALUE}, capture_output=True, text=True, check=True)
    text = shown(VALUE, ran.stdout + ran.stderr)
    assert "s3cret" not in text
    assert "[redacted:S]" in text


@settings(max_examples=200, deadline=None)
@given(
    before=st.binary(max_size=7),
    behind=st.binary(max_size=7),
    value=st.binary(min_size=8, max_size=60),
    url=st.booleans(),
)
def test_base64_of_a_longer_text_shows_at_most_bits_at_the_edges_of_it(
    before: bytes, behind: bytes, value: bytes, url: bool
) -> None:
    if value != value.strip():
        return
    encode = base64.urlsafe_b64encode if url else base64.b64encode
    encoded = encode(before + value + behind)
    pieces = Redactor({"S": value}).pieces(encoded)
    hidden = sum(piece.size for piece in pieces if piece.name)
    assert hidden * 6 >= len(value) * 8 - 2 * 5


@pytest.mark.parametrize("width", [76, 64])
def test_base64_of_it_is_redacted_over_line_ends(width: int) -> None:
    value = "".join(chr(33 + (7 * number) % 90) for number in range(150))
    encoded = base64.b64encode(value.encode()).decode()
    wrapped = "\n".join(encoded[at : at + width] for at in range(0, len(encoded), width))
    assert shown(value, wrapped) == "[redacted:S]"


def test_base64_that_is_broken_anywhere_shows_no_more_than_what_is_around_the_break() -> None:
    value = "".join(chr(33 + (7 * number) % 90) for number in range(48))
    encoded = base64.b64encode(f"PASSWORD={value}\n".encode())
    for at in range(1, len(encoded)):
        pieces = Redactor({"S": value}).pieces(encoded[:at] + b"\n" + encoded[at:])
        assert sum(piece.size for piece in pieces if piece.name is None) <= 13 + 5 + 2 * 16 + 1


def test_a_value_of_several_lines_is_found_line_by_line_and_with_other_line_ends() -> None:
    value = (
        "-----BEGIN X-----\n"
        + "\n".join(f"line-number-{n}-of-the-secret" for n in range(3))
        + "\nend\n-----END X-----\n"
    )
    assert shown(value, value) == "[redacted:S]\n"
    assert shown(value, value.strip().replace("\n", "\r\n")) == "[redacted:S]"
    assert shown(value, "> line-number-1-of-the-secret\n> end") == "> [redacted:S]\n> end"


def test_a_value_of_several_lines_is_found_in_one_line_as_errors_quote_it() -> None:
    value = "user-4711\npw-hunter2xyz\x01\x02end"
    assert shown(value, f"bad value {readable(value)} given") == "bad value [redacted:S] given"


def test_a_short_value_is_not_searched() -> None:
    assert not is_searchable("12345")
    assert not is_searchable(" 12345 \n")
    assert is_searchable("123456")
    assert forms_of("12345") == []
    assert SHORTEST_SECRET == 6
    assert all(len(form) >= SHORTEST_SECRET for form in forms_of("123456"))


def test_a_value_that_is_no_text_is_found_as_python_writes_it() -> None:
    value = bytes(range(200, 220))
    assert shown(value, repr(value)) == "b'[redacted:S]'"


def test_no_form_is_longer_than_its_part_may_become() -> None:
    assert max(map(len, forms_of("\x01" * (LONGEST_PART + 5)))) <= 6 * LONGEST_PART


@pytest.mark.parametrize("size", [1_000, 3_000, 64_000])
def test_what_is_searched_for_stays_in_proportion_to_the_secret(size: int) -> None:
    value = secrets.token_urlsafe(size)[:size]
    assert sum(map(len, forms_of(value))) < 80 * size
    assert sum(map(len, forms_of(f"{value[:4000]}\n" * (size // 4000)))) < 20 * size


def test_a_long_secret_is_found_as_it_is_by_its_lines_in_json_and_in_base64() -> None:
    lines = [secrets.token_urlsafe(48) for _ in range(100)]
    value = "\n".join(lines)
    redactor = Redactor({"KEY": value})
    for text in (value, lines[50], json.dumps({"key": value}), base64.b64encode(value.encode()).decode()):
        assert not any(line in redactor.redact_text(text) for line in lines)
        assert "[redacted:KEY]" in redactor.redact_text(f"before {text} behind")
