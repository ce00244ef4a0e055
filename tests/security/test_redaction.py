"""What is shown depends on the bytes alone, and no byte of a secret is among it."""

from __future__ import annotations

import os
import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.redactors import KEPT_BYTES
from sandhold.security.known_values import JoinedValues, KnownValues
from sandhold.security.redaction import Redactor
from sandhold.security.secret_forms import forms_of
from sandhold.security.token_shapes import LONGEST_SHAPE
from sandhold.vault.records import (
    RETIRED_BYTES_PER_SESSION,
    RETIRED_PER_SESSION,
    SECRET_BYTES,
    SECRETS_PER_SESSION,
)
from tests.process_memory import memory_now
from tests.security.redaction_cases import TOKENS, chains, in_parts, joined, redactions, shown

EXAMPLES = int(os.environ.get("SANDHOLD_TEST_EXAMPLES", "100"))


@settings(max_examples=EXAMPLES, deadline=None)
@given(case=redactions() | chains(), data=st.data())
def test_any_cutting_of_a_stream_gives_the_same_pieces(case: tuple[Redactor, dict, bytes], data: st.DataObject) -> None:
    redactor, _, text = case
    whole = redactor.pieces(text)
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    assert joined(in_parts(redactor, text, places)) == joined(whole)
    assert joined(in_parts(redactor, text, list(range(len(text))))) == joined(whole)


@settings(max_examples=EXAMPLES, deadline=None)
@given(case=redactions() | chains())
def test_the_pieces_stand_for_all_bytes_and_no_occurrence_of_a_secret_is_shown(
    case: tuple[Redactor, dict, bytes],
) -> None:
    redactor, known, text = case
    at = 0
    hidden = bytearray(len(text))
    for piece in redactor.pieces(text):
        if piece.name is None:
            assert piece.data == text[at : at + piece.size]
        else:
            assert piece.size <= redactor.longest
            assert b"[redacted:" in piece.data
            hidden[at : at + piece.size] = b"\1" * piece.size
        at += piece.size
    assert at == len(text)
    for value in known.values():
        for form in forms_of(value):
            start = text.find(form)
            while start >= 0:
                assert all(hidden[start : start + len(form)])
                start = text.find(form, start + 1)


@settings(max_examples=EXAMPLES, deadline=None)
@given(case=redactions() | chains(), data=st.data())
def test_reading_that_begins_anywhere_outside_of_matches_finds_the_same_ones(
    case: tuple[Redactor, dict, bytes], data: st.DataObject
) -> None:
    redactor, _, text = case
    pieces = redactor.pieces(text)
    at = 0
    for number, piece in enumerate(pieces):
        inside = data.draw(st.integers(0, piece.size - 1)) if piece.name is None else 0
        rest = redactor.pieces(text[at + inside :])
        assert shown(rest) == piece.data[inside:] + shown(pieces[number + 1 :])
        at += piece.size


@settings(max_examples=EXAMPLES, deadline=None)
@given(case=redactions() | chains(), data=st.data())
def test_a_window_shows_no_part_of_a_value_that_is_cut_at_its_edges(
    case: tuple[Redactor, dict, bytes], data: st.DataObject
) -> None:
    redactor, known, text = case
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    pieces = redactor.pieces(text[start:end], begins=False, ends=False)
    assert sum(piece.size for piece in pieces) == end - start
    visible = bytearray(len(text))
    at = start
    for piece in pieces:
        if piece.name is None:
            visible[at : at + piece.size] = b"\1" * piece.size
        at += piece.size
    for value in known.values():
        for form in forms_of(value):
            found = text.find(form)
            while found >= 0:
                seen = visible[max(found, start) : max(min(found + len(form), end), start)]
                # Three bytes of one that is cut are no secret; one that is whole is hidden.
                whole = start <= found and found + len(form) <= end
                assert not any(seen) if whole else sum(seen) <= 3
                found = text.find(form, found + 1)


@settings(max_examples=EXAMPLES, deadline=None)
@given(case=redactions() | chains())
def test_what_is_held_back_is_bounded(case: tuple[Redactor, dict, bytes]) -> None:
    redactor, _, text = case
    stream = redactor.stream()
    for byte in text:
        stream.feed(bytes([byte]))
        assert stream.held <= 2 * redactor.longest
    stream.end()
    assert stream.held == 0


@pytest.mark.parametrize(
    ("secrets", "text", "expected"),
    [
        ({"A": "password"}, "the password, twice: passwordpassword", "the [A], twice: [A][A]"),
        ({"A": "secret", "B": "secret-and-more"}, "secret-and-mor secret-and-more", "[A]-and-mor [B]"),
        ({"A": "abcdef", "B": "defghi"}, "xabcdefghix", "x[A]x"),
        ({"A": "cdefgh", "B": "abcdefghij"}, "abcdefghij abcdefgh", "[B] ab[A]"),
        ({"A": "hunter2hunter2"}, "hunter2hunter2hunter2", "[A]"),
        ({"A": "redacted"}, "redacted [redacted:A]", "[secret] [[secret]:A]"),
        ({"NAME": "NAME-NAME"}, "NAME-NAME", "[NAME]"),
        ({"A": "", "B": "short"}, "short and empty", "short and empty"),
        ({"B": "the-same", "A": "the-same"}, "the-same", "[A]"),
        ({"A": b"\xff\xfe\x00\x01\x02\x80"}, b"\x80\xff\xfe\x00\x01\x02\x80\xff", b"\x80[A]\xff"),
        ({"A": "pässwörd"}, "pässwörd", "[A]"),
        ({"A": "  padded \n"}, "<padded>", "<[A]>"),
        ({"bad name]\n[": "some-value"}, "some-value", "[bad_name___]"),
    ],
)
def test_values_are_found_whatever_they_do_to_each_other(
    secrets: dict, text: str | bytes, expected: str | bytes
) -> None:
    raw = text.encode() if isinstance(text, str) else text
    wanted = expected.encode() if isinstance(expected, str) else expected
    if "redacted" not in secrets.values():
        wanted = wanted.replace(b"[", b"[redacted:")
    else:
        wanted = b"[redacted:A] [[redacted:A]:A]"
    assert Redactor(secrets).redact(raw) == wanted


def test_text_is_redacted_as_its_bytes_are() -> None:
    redactor = Redactor({"KEY": "wörd-of-mine"})
    assert redactor.redact_text("a wörd-of-mine – b \ud800") == "a [redacted:KEY] – b \ud800"


def test_a_known_value_gives_its_name_to_the_token_that_holds_it() -> None:
    [token] = TOKENS["npm-token"]
    redactor = Redactor({"PUBLISH": token})
    assert redactor.redact_text(f"Authorization: Bearer {token}") == "Authorization: Bearer [redacted:PUBLISH]"
    assert redactor.redact_text(f"https://user:{token}@registry/") == "https://[redacted:PUBLISH]@registry/"


def test_the_words_around_a_token_are_not_shown_when_they_hold_a_secret() -> None:
    redactor = Redactor({"ODD": "Authorization", "HALF": "Bearer abcd"})
    assert redactor.redact_text("Authorization: Basic abcdefgh") == "[redacted:ODD]"
    assert redactor.redact_text("uthorization: Bearer abcdefgh") == "[redacted:HALF]"


def test_counts_are_by_name() -> None:
    stream = Redactor({"A": "secret-a", "B": "secret-b"}).stream()
    stream.feed(b"secret-a secret-b secret-")
    assert stream.held == len("secret-")
    stream.feed(b"a ")
    assert dict(stream.counts) == {"A": 2, "B": 1}


def test_a_chain_of_overlapping_secrets_is_cut_where_it_becomes_too_long() -> None:
    redactor = Redactor({"A": "aaaaaa"})
    text = b"a" * 20_000
    pieces = redactor.pieces(text)
    assert {piece.name for piece in pieces} == {"A"}
    assert all(piece.size <= redactor.longest for piece in pieces)
    assert joined(in_parts(redactor, text, list(range(0, len(text), 777)))) == pieces


@pytest.mark.parametrize("size", [8, 300, 3000])
def test_the_last_secrets_of_a_chain_are_hidden_as_a_whole(size: int) -> None:
    """Each begins with the end of the one before, and the chain is longer than a match may be."""
    rng = random.Random(size)
    links = [rng.randbytes(3).hex() for _ in range(8)]
    middles = [rng.randbytes(size).hex() for _ in links]
    values = [links[n] + middles[n] + links[(n + 1) % len(links)] for n in range(len(links))]
    redactor = Redactor({f"S{n}": value for n, value in enumerate(values)})
    chain = "".join(links[n] + middles[n] for n in range(len(links)))
    text = f"<{chain * (4 * redactor.longest // len(chain) + 1)}{links[0]}>".encode()
    pieces = redactor.pieces(text)
    assert [piece.data for piece in pieces if piece.name is None] == [b"<", b">"]
    assert len(pieces) > 3, "or there was no chain that is too long"
    assert all(piece.size <= redactor.longest for piece in pieces)
    assert in_parts(redactor, text, list(range(0, len(text), 997))) == pieces
    assert redactor.pieces(text[1 + pieces[1].size :]) == pieces[2:]


def test_thousands_of_secrets_are_searched_at_once() -> None:
    rng = random.Random(5)
    secrets = {f"S{number}": rng.randbytes(20).hex() for number in range(3000)}
    redactor = Redactor(secrets)
    text = "\n".join(f"{name}={value}" for name, value in secrets.items())
    expected = "\n".join(f"{name}=[redacted:{name}]" for name in secrets)
    assert redactor.redact_text(text) == expected


def test_secrets_that_end_with_each_other_do_not_multiply_the_work() -> None:
    redactor = Redactor({f"S{size}": "a" * size for size in range(6, 400)})
    assert b"a" not in redactor.redact(b"a" * 20_000).replace(b"redacted", b"")


SIZE = 48 * 1024


@pytest.mark.parametrize(
    "unit",
    [
        b"ghp_",
        b"eyJ",
        b"eyJeyJ.eyJeyJ",
        b"-----BEGIN RSA PRIVATE KEY-----",
        b"://a:",
        b"sk-",
        b"AKIA",
        b"Bearer ",
        b"a",
        b"ab",
    ],
)
def test_memory_is_bounded_whatever_the_text(unit: bytes) -> None:
    redactor = Redactor({"A": "aaaaaaaaaaaaaaab", "B": "ababababababababa", "C": "ghp_ghp_ghp_ghp_x"})
    stream = redactor.stream()
    text = (unit * (SIZE // len(unit) + 1))[:SIZE]
    size = 0
    for _ in range(2):
        pieces = stream.feed(text)
        size += sum(piece.size for piece in pieces)
        assert stream.held <= 2 * redactor.longest
    size += sum(piece.size for piece in stream.end())
    assert size == 2 * len(text)


def test_a_value_that_is_longer_than_a_search_may_be_is_found_in_parts() -> None:
    value = random.Random(7).randbytes(40_000).hex()
    shown_text = Redactor({"BIG": value}).redact_text(f"<{value}>")
    assert shown_text.startswith("<[redacted:BIG]")
    assert shown_text.endswith("[redacted:BIG]>")
    assert len(shown_text) < 200


def test_as_many_secrets_as_a_session_may_have_are_searched_within_bounds() -> None:
    """Of the size that has the most forms for its bytes, those that were replaced among them."""
    rng = random.Random(9)
    number = SECRETS_PER_SESSION + RETIRED_PER_SESSION
    sizes = [RETIRED_BYTES_PER_SESSION // number // 2 - 1, RETIRED_BYTES_PER_SESSION // number // 2 * 3]
    sizes = [min(each, 1024) for each in sizes] * (number // 2)
    sizes[-1] += min(RETIRED_BYTES_PER_SESSION - sum(sizes), SECRET_BYTES)
    secrets = {f"S{n}": rng.randbytes(size // 2 + 1).hex()[:size] for n, size in enumerate(sizes)}
    assert 0.75 * RETIRED_BYTES_PER_SESSION < sum(map(len, secrets.values())) <= RETIRED_BYTES_PER_SESSION
    pid = os.getpid()
    before = memory_now(pid)
    redactor = Redactor(secrets)
    text = "".join(f"<{value}>" for value in secrets.values())
    shown_text = redactor.redact_text(text)
    grown = memory_now(pid) - before
    assert shown_text.startswith("<[redacted:S0]><[redacted:S1]>")
    assert not any(value[:16] in shown_text for value in secrets.values())
    assert redactor.pattern_bytes < KEPT_BYTES
    assert grown < 256 * 1024 * 1024


def test_a_set_of_secrets_is_searched_for_as_the_same_in_several_sets() -> None:
    secrets: dict[str, str | bytes] = {
        "A": "abcdef",
        "B": "efabcd",
        "C": "abcdefghij",
        "D": "ij-" + "klm" * 3,
        "E": "x",
    }
    sets = [{name: secrets[name]} for name in secrets]
    joined_up = Redactor(JoinedValues([KnownValues(each) for each in sets]))
    together = Redactor(secrets)
    text = b"abcdef" * 90 + b" abcdefghij-" + b"klm" * 3 + b" x abcdefgh ij-klmkl"
    assert joined_up.longest == together.longest
    for begins in (True, False):
        for end in range(0, len(text), 7):
            told = together.pieces(text[end // 2 : end], begins=begins, ends=False)
            assert joined_up.pieces(text[end // 2 : end], begins=begins, ends=False) == told
    assert joined(in_parts(joined_up, text, list(range(len(text))))) == joined(together.pieces(text))
    assert Redactor(JoinedValues([])).redact(b"abcdef") == b"abcdef"


def test_without_secrets_a_match_is_no_longer_than_the_longest_shape() -> None:
    assert Redactor({}).longest == LONGEST_SHAPE
    assert sys.getsizeof(Redactor({})) < 1000
