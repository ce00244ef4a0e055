"""Tokens of known shapes are found wherever they stand, and words that look like them are left."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandhold.security.redaction import Redactor
from sandhold.security.token_shapes import SHAPES, Shape
from tests.security.redaction_cases import HEX, MIXED, TOKENS, in_parts, joined

REDACTOR = Redactor({})
KINDS = [(name, token) for name, tokens in TOKENS.items() for token in tokens]


@pytest.mark.parametrize(("name", "token"), KINDS)
@pytest.mark.parametrize("around", ["{}", 'export TOKEN="{}"\n', "a={}&b=c", "\x1b[31m{}\x1b[0m", "\n{}\n\n"])
def test_a_token_is_found_wherever_it_stands(name: str, token: str, around: str) -> None:
    assert REDACTOR.redact_text(around.format(token)) == around.format(f"[redacted:{name}]")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc-123.x", "Authorization: Bearer [redacted:authorization]"),
        ("authorization: basic dXNlcjpwYXNz==", "authorization: basic [redacted:authorization]"),
        ('{"Authorization": "token 0123456789"}', '{"Authorization": "token [redacted:authorization]"}'),
        ("-H 'AUTHORIZATION:Bearer abcdef'", "-H 'AUTHORIZATION:Bearer [redacted:authorization]'"),
        (f"bearer {MIXED}", "bearer [redacted:authorization]"),
        (f"AWS_SECRET_ACCESS_KEY={MIXED}", "AWS_SECRET_ACCESS_KEY=[redacted:aws-secret-key]"),
        (f'"SecretAccessKey": "{MIXED}",', '"SecretAccessKey": "[redacted:aws-secret-key]",'),
        (f"aws_secret_access_key = {MIXED}\n", "aws_secret_access_key = [redacted:aws-secret-key]\n"),
        (f"aws_session_token = {MIXED * 4}\n", "aws_session_token = [redacted:aws-session-token]\n"),
        ("git clone https://me:pw@host/r.git", "git clone https://[redacted:url-password]@host/r.git"),
        ("postgresql://u:p%40ss@db:5432/x", "postgresql://[redacted:url-password]@db:5432/x"),
        (f"https://{TOKENS['github-token'][0]}@host", "https://[redacted:github-token]@host"),
        (f"x{TOKENS['github-token'][0]}y", "x[redacted:github-token]"),
    ],
)
def test_what_tells_of_a_secret_is_shown(text: str, shown: str) -> None:
    assert REDACTOR.redact_text(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "task-runner-deployment-7d8f9c6b5d-x2x4z risk-assessment-of-the-whole disk-d41d8cd98f00b204e9800998ecf8427e",
        "ghp_ short, npm_config_registry=x, npm_lifecycle_event_of_this_very_long_name, hf_transfer, sk_live_x",
        "see https://host:8080/path@v1 and ssh://git@github.com/a/b.git and http://[::1]:80/ a@b.c",
        "the bearer of this letter; bearer internationalization-of-everything; Authorization: none",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        'if "-----BEGIN RSA PRIVATE KEY-----" in text: eyJhbGciOiJIUzI1NiJ9 alone',
        "AKIASHORT ASIAN-FOOD pypi-server 2.0 xoxo-gossip",
        "AWS_SECRET_ACCESS_KEY=$KEY aws_secret_access_key: (none)",
    ],
)
def test_words_that_look_like_tokens_are_left(text: str) -> None:
    assert REDACTOR.redact_text(text) == text


def test_a_key_that_never_ends_is_redacted_as_far_as_it_looks_like_one() -> None:
    text = f"-----BEGIN EC PRIVATE KEY-----\n{HEX}\n{HEX}\n(cut)"
    assert REDACTOR.redact_text(text) == "[redacted:private-key](cut)"


@pytest.mark.parametrize(("name", "token"), KINDS)
def test_a_token_arrives_byte_by_byte(name: str, token: str) -> None:
    data = f"<{token}>{token} {token}".encode()
    whole = REDACTOR.pieces(data)
    assert [piece.name for piece in whole].count(name) == 3
    assert joined(in_parts(REDACTOR, data, list(range(len(data))))) == joined(whole)


@pytest.mark.parametrize(("name", "token"), KINDS)
def test_the_beginning_of_a_token_at_the_end_of_a_window_is_not_shown(name: str, token: str) -> None:
    last = {end: REDACTOR.pieces(b"<" + token[:end].encode(), ends=False)[-1].name for end in range(len(token))}
    visible = max(end for end, shown in last.items() if shown is None)
    # As far as the shape is known from, and three bytes of what is behind.
    assert visible <= len(token) // 2 + 3
    assert all(last[end] == name for end in range(visible + 1, len(token)))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{MIXED[7:]} and more", "[redacted:cut-off] and more"),
        (f"{HEX[:40]}\n", "[redacted:cut-off]\n"),
        (f"{MIXED}\n{HEX}\n{HEX[:9]}\n-----END RSA PRIVATE KEY-----\nx", "[redacted:private-key]\nx"),
        (f"{MIXED}\n{HEX}\n{HEX[:9]}", f"[redacted:cut-off]\n{HEX[:9]}"),
        ("-words-that-are-cut-here-but-are-just-words", "-words-that-are-cut-here-but-are-just-words"),
        ("2026-11-23T10:00:00Z an ordinary line", "2026-11-23T10:00:00Z an ordinary line"),
    ],
)
def test_what_looks_like_the_rest_of_a_token_at_the_front_of_a_window_is_not_shown(text: str, shown: str) -> None:
    assert b"".join(piece.data for piece in REDACTOR.pieces(text.encode(), begins=False)).decode() == shown
    assert REDACTOR.redact_text(text) == text or "END" in text


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_where_a_shape_is_decided_no_byte_changes_it(shape: Shape, data: st.DataObject) -> None:
    """Whatever begins with one of its triggers and is not undecided is the same whatever follows."""
    bits = st.sampled_from(
        [w for part in shape.parts for w in getattr(part, "words", ())] + [b"a1B", b"\n", b" ", b":", b"-"]
    )
    text = data.draw(st.sampled_from(shape.triggers)) + b"".join(data.draw(st.lists(bits, max_size=12)))
    more = data.draw(st.sampled_from([b"a1B2" * 10, b"-----END RSA PRIVATE KEY-----", b"@", b" ", b".eyJabcdef.x"]))

    def span(whole: bytes) -> tuple[int, int] | None:
        found = shape.pattern.match(whole)
        return found and found.span()

    if not shape.is_undecided(text, 0):
        assert span(text) == span(text + more)


def test_no_trigger_begins_with_another_of_its_shape_and_each_is_of_one_shape() -> None:
    for shape in SHAPES:
        for one in shape.triggers:
            assert not any(other != one and other.startswith(one) for other in shape.triggers)
    words = [trigger for shape in SHAPES for trigger in shape.triggers]
    assert len(words) == len(set(words))
    assert all(re.fullmatch(r"[a-z0-9-]+", shape.name) for shape in SHAPES)


def test_tokens_among_very_many_triggers_are_found() -> None:
    [token] = TOKENS["npm-token"]
    text = "npm_ " * 5000 + token + " npm_" * 5000
    assert REDACTOR.redact_text(text) == text.replace(token, "[redacted:npm-token]")
