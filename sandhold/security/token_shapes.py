"""Tokens that are known by their shape, whoever's they are.

Each shape begins with one of a few literal words, by which it is found quickly; its length is bounded, and so is the
work at each such word. What tells that a secret follows (`Authorization: Bearer `) belongs to the match and is shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from sandhold.security.shape_patterns import Part, Run, cut, whole, word

_WORD = rb"[A-Za-z0-9_-]"
_ALNUM = rb"[A-Za-z0-9]"
_CREDENTIAL = rb"[A-Za-z0-9._~+/=-]"
_USER_INFO = rb"""[^\s/:@"'<>\\\x00]"""
# The lines of a key, the headers of one that is encrypted, line ends escaped as in JSON, indented as in YAML.
_KEY_BODY = rb"(?:[A-Za-z0-9+/=\r\n\\:,]|-(?!-)|(?<=[:\r\n \t])[ \t])"
_SEPARATOR = rb"""[ \t:=>"'\\,]"""
_MIXED = rb"(?=[a-z0-9]{0,64}[A-Z])(?=[A-Z0-9]{0,64}[a-z])(?=[A-Za-z]{0,64}[0-9])"
_LONGEST_PRIVATE_KEY = 16 * 1024

LEAST_CUT = 4
"""Bytes. So much of a secret at the edge of what was read is taken for a part of it."""


@dataclass(frozen=True)
class Shape:
    """One kind of token."""

    name: str
    lead: tuple[Part, ...]
    """What tells of the secret, and is shown; may be empty."""
    secret: tuple[Part, ...]
    tail: tuple[Part, ...] = ()
    """What has to follow, and is shown."""
    only_if: bytes = b""
    """A look ahead from where the secret begins."""
    recognised_after: int = 1
    """How many parts tell that this is such a token when its end has not been read."""

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.lead + self.secret + self.tail

    @property
    def triggers(self) -> tuple[bytes, ...]:
        first = self.parts[0]
        assert not isinstance(first, Run)
        return first.words

    @property
    def longest(self) -> int:
        return sum(part.longest for part in self.parts)

    @cached_property
    def match(self) -> re.Pattern[bytes]:
        """Group 1 is the secret."""
        return re.compile(b"%b%b(%b)%b" % (whole(self.lead), self.only_if, whole(self.secret), whole(self.tail)))

    @cached_property
    def undecided(self) -> re.Pattern[bytes]:
        """Matches where more bytes may make another match of it, or one at all."""
        return re.compile(cut(self.parts))

    @cached_property
    def recognised(self) -> re.Pattern[bytes]:
        return re.compile(whole(self.parts[: self.recognised_after]) + b"(?s:.{%d})" % LEAST_CUT)


def _token(name: str, *beginnings: bytes, unit: bytes = _ALNUM, fewest: int, most: int = 255) -> Shape:
    return Shape(name, (), (word(*beginnings), Run(unit, fewest, most)))


def _named(name: str, *names: bytes, unit: bytes, fewest: int, most: int) -> Shape:
    """A value that is known by the name before it."""
    return Shape(name, (word(*names), Run(_SEPARATOR, 1, 12)), (Run(unit, fewest, most),), recognised_after=2)


SHAPES: tuple[Shape, ...] = (
    _token("github-token", b"ghp_", b"gho_", b"ghu_", b"ghr_", fewest=36),
    # Tokens of installations may be a JWT behind the prefix.
    _token("github-token", b"ghs_", unit=rb"[A-Za-z0-9_.-]", fewest=36, most=2048),
    _token("github-token", b"github_pat_", unit=rb"[A-Za-z0-9_]", fewest=40),
    _token("gitlab-token", b"glpat-", b"gldt-", b"glrt-", b"glcbt-", b"glptt-", unit=rb"[A-Za-z0-9_.-]", fewest=20),
    _token("aws-key-id", b"AKIA", b"ASIA", unit=rb"[A-Z0-9]", fewest=16, most=16),
    _named(
        "aws-secret-key",
        *(b"ecret_access_key", b"ECRET_ACCESS_KEY", b"ecretAccessKey", b"ecret-access-key"),
        unit=rb"[A-Za-z0-9/+=]",
        fewest=40,
        most=64,
    ),
    _named(
        "aws-session-token",
        *(b"ession_token", b"ESSION_TOKEN", b"essionToken", b"ession-token", b"ecurityToken"),
        unit=rb"[A-Za-z0-9/+=]",
        fewest=100,
        most=4096,
    ),
    _token("slack-token", b"xoxb-", b"xoxp-", b"xoxa-", b"xoxr-", b"xoxs-", b"xoxo-", b"xoxe-", unit=_WORD, fewest=10),
    _token("slack-token", b"xapp-", b"xoxe.xoxp-", b"xoxe.xoxb-", unit=_WORD, fewest=10),
    _token("stripe-key", b"sk_live_", b"rk_live_", b"sk_test_", b"rk_test_", b"whsec_", fewest=16),
    _token(
        "api-key",
        *(b"sk-ant-", b"sk-proj-", b"sk-svcacct-", b"sk-admin-", b"sk-or-v1-"),
        unit=_WORD,
        fewest=20,
    ),
    # `task-`, `disk-` and `risk-` are words, too: only what has capitals, small letters and digits.
    Shape("api-key", (word(b"sk-"),), (Run(_ALNUM, 32, 64),), only_if=_MIXED),
    _token("google-key", b"AIza", unit=_WORD, fewest=35, most=35),
    _token("google-token", b"ya29.", unit=rb"[A-Za-z0-9_.-]", fewest=20, most=2048),
    _token("google-client-secret", b"GOCSPX-", unit=_WORD, fewest=20),
    _token("npm-token", b"npm_", fewest=36),
    _token("pypi-token", b"pypi-", unit=_WORD, fewest=50, most=1024),
    _token("daytona-key", b"dtn_", fewest=32),
    _token("hugging-face-token", b"hf_", fewest=30),
    _token("docker-token", b"dckr_pat_", b"dckr_oat_", unit=_WORD, fewest=20),
    _token("vault-token", b"hvs.", b"hvb.", unit=_WORD, fewest=24, most=1024),
    Shape(
        "jwt",
        (),
        (word(b"eyJ"), Run(_WORD, 8, 1024), word(b".eyJ"), Run(_WORD, 4, 8192), word(b"."), Run(_WORD, 0, 1024)),
        recognised_after=3,
    ),
    Shape(
        "private-key",
        (),
        (
            word(b"-----BEGIN "),
            word(b"RSA ", b"EC ", b"DSA ", b"OPENSSH ", b"ENCRYPTED ", b"PGP ", b""),
            word(b"PRIVATE KEY-----", b"PRIVATE KEY BLOCK-----"),
            Run(_KEY_BODY, 32, _LONGEST_PRIVATE_KEY),
            word(b"-----END ", b""),
            word(b"RSA ", b"EC ", b"DSA ", b"OPENSSH ", b"ENCRYPTED ", b"PGP ", b""),
            word(b"PRIVATE KEY-----", b"PRIVATE KEY BLOCK-----", b""),
        ),
        recognised_after=3,
    ),
    Shape(
        "authorization",
        (
            word(b"uthorization", b"UTHORIZATION"),
            Run(_SEPARATOR, 1, 12),
            word(b"Bearer", b"bearer", b"BEARER", b"Basic", b"basic", b"BASIC", b"Token", b"token"),
            Run(rb"[ \t]", 1, 4),
        ),
        (Run(_CREDENTIAL, 6, 8192),),
        recognised_after=4,
    ),
    Shape(
        "authorization",
        (word(b"Bearer ", b"bearer "),),
        (Run(_CREDENTIAL, 20, 8192),),
        only_if=rb"(?=[A-Za-z._~+/=-]{0,64}[0-9])",
    ),
    Shape(
        "url-password",
        (word(b"://"),),
        (Run(_USER_INFO, 0, 256), word(b":"), Run(rb"""[^\s/@"'<>\\\x00]""", 1, 1024)),
        (word(b"@"),),
        recognised_after=3,
    ),
)

LONGEST_SHAPE = max(shape.longest for shape in SHAPES)

# At the front of what was read, the rest of a token or of a key's lines: long, and of a kind that no word is.
CUT_OFF = re.compile(
    rb"(?=[a-z0-9_+/=.-]{0,255}[A-Z])(?=[A-Z0-9_+/=.-]{0,255}[a-z])(?=[A-Za-z_+/=.-]{0,255}[0-9])"
    rb"[A-Za-z0-9_+/=.-]{20,8192}+"
    rb"(?:(?:\r?\n|\\n)[A-Za-z0-9+/=]{40,80}+)*+(?:(?:\r?\n|\\n)[A-Za-z0-9+/=]{1,80}+(?=\r?\n-----END |\\n-----END ))?"
    rb"|[0-9a-f]{32,8192}+|[0-9A-F]{32,8192}+"
)
CUT_OFF_KEY = re.compile(
    b"%b{0,%d}+-----END [A-Z ]{0,12}PRIVATE KEY(?: BLOCK)?-----" % (_KEY_BODY, _LONGEST_PRIVATE_KEY)
)
