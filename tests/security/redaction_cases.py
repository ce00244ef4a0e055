"""Secrets, tokens of every shape, and what a strategy makes of them."""

from __future__ import annotations

import string

from hypothesis import strategies as st

from sandhold.security.redaction import Piece, Redactor
from sandhold.security.secret_forms import forms_of

# None of these is or was in use: they have the shapes of tokens and no more.
MIXED = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0"
HEX = "0123456789abcdef" * 4
TOKENS = {
    "github-token": [f"ghp_{MIXED[:36]}", f"gho_{MIXED[:36]}", f"ghs_{MIXED[:36]}", f"github_pat_{MIXED[:22]}_{MIXED}"],
    "gitlab-token": [f"glpat-{MIXED[:20]}", f"glrt-{MIXED[:20]}.01.{MIXED[:9]}"],
    "aws-key-id": ["AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE"],
    "slack-token": [f"xoxb-123456789012-{MIXED[:24]}", f"xapp-1-{MIXED[:20]}"],
    "stripe-key": [f"sk_live_{MIXED[:24]}", f"rk_test_{MIXED[:24]}"],
    "api-key": [f"sk-ant-api03-{MIXED}", f"sk-proj-{MIXED}", f"sk-{MIXED}"],
    "google-key": [f"AIza{MIXED[:35]}"],
    "npm-token": [f"npm_{MIXED[:36]}"],
    "pypi-token": [f"pypi-{MIXED}{MIXED}"],
    "daytona-key": [f"dtn_{HEX}"],
    "jwt": [f"eyJ{MIXED}.eyJ{MIXED}{MIXED}.{MIXED}"],
    "private-key": [
        f"-----BEGIN RSA PRIVATE KEY-----\n{HEX}\n{HEX}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\r\n{HEX}\r\n-----END OPENSSH PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\\n{HEX}\\n{HEX}\\n-----END PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,0A1B\n\n"
        f"{HEX}\n-----END RSA PRIVATE KEY-----",
    ],
}

PRINTABLE = string.ascii_letters + string.digits + "+/=._-@:'\"\\$ %\n"
# Few letters, so that secrets overlap, nest and begin alike.
few_letters = st.text("ab/", min_size=6, max_size=14)
values = st.one_of(
    few_letters,
    st.text(PRINTABLE, min_size=6, max_size=60),
    st.binary(min_size=6, max_size=40),
    st.sampled_from(["redacted", "hunter2hunter2", "s3cr3t", "s3cr3t-and-more", "://u:pa"]),
)
secrets = st.dictionaries(st.text("XYZ_", min_size=1, max_size=3), values, max_size=6)


@st.composite
def texts(draw: st.DrawFn, known: dict[str, str | bytes]) -> bytes:
    """Bytes with whole and cut secrets in them, in all their forms, and whole and cut tokens."""
    forms = [form for value in known.values() for form in forms_of(value)]
    tokens = [token.encode() for shape in TOKENS.values() for token in shape]
    tokens += [b"Authorization: Bearer abcdef123456", b"https://user:pass@host", b'aws_secret_access_key = "']
    whole = st.sampled_from(forms + tokens) if forms else st.sampled_from(tokens)
    cut = st.builds(lambda form, at: form[: at % len(form)], whole, st.integers(1, 200))
    rest = st.builds(lambda form, at: form[at % len(form) :], whole, st.integers(1, 200))
    other = st.one_of(st.binary(max_size=5), st.text("ab/", max_size=8).map(str.encode), st.just(b" \n"))
    return b"".join(draw(st.lists(st.one_of(whole, cut, rest, other), max_size=8)))


@st.composite
def redactions(draw: st.DrawFn) -> tuple[Redactor, dict[str, str | bytes], bytes]:
    known = draw(secrets)
    return Redactor(known), known, draw(texts(known))


chained = st.lists(st.text("ab/", min_size=6, max_size=24), min_size=1, max_size=4, unique=True).flatmap(
    # Secrets that begin and end with parts of each other.
    lambda words: st.permutations([*words, words[0][-3:] + words[-1][:4], words[-1][-4:] + words[0]])
)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Redactor, dict[str, str | bytes], bytes]:
    """Secrets that overlap on and on, with tokens among them whose words of a header may be the end of a secret."""
    words = draw(chained)
    known: dict[str, str | bytes] = {f"S{number}": word for number, word in enumerate(words)}
    known["HEAD"] = draw(st.sampled_from(["ab/uthoriz", "/Bearer", "aghp_", "ba://", "a/b/ab"]))
    units = [word[draw(st.integers(0, 3)) :] for word in words]
    units += ["uthorization: Bearer abab/", "Authorization: Bearer ", f"ghp_{MIXED[:36]}a", "://ab:ab@"]
    unit = "".join(draw(st.lists(st.sampled_from(units), min_size=1, max_size=4)))
    text = (unit * draw(st.integers(1, 400 // len(unit) + 12)))[draw(st.integers(0, len(unit) - 1)) :]
    return Redactor(known), known, (text + draw(st.sampled_from(["", "x", "ab", words[0]]))).encode()


def shown(pieces: list[Piece]) -> bytes:
    return b"".join(piece.data for piece in pieces)


def in_parts(redactor: Redactor, data: bytes, places: list[int]) -> list[Piece]:
    """What a stream makes of the data when it is cut at these places."""
    stream = redactor.stream()
    pieces: list[Piece] = []
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        pieces += stream.feed(data[start:end])
    return pieces + stream.end()


def joined(pieces: list[Piece]) -> list[Piece]:
    """The same with bytes as they are in as few pieces as possible."""
    found: list[Piece] = []
    for piece in pieces:
        if found and piece.name is None and found[-1].name is None:
            found[-1] = Piece(found[-1].data + piece.data, found[-1].size + piece.size, None)
        else:
            found.append(piece)
    return found
