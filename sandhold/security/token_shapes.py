"""Tokens that are known by their shape, whoever's they are.

Each shape begins with one of a few literal words, by which it is found quickly; its length is bounded, and so is the
work at each such word. What tells that a secret follows (`Authorization: Bearer `) belongs to the match and is shown.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import takewhile

from ahocorasick_rs import BytesAhoCorasick

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

    @cached_property
    def longest(self) -> int:
        return sum(part.longest for part in self.parts)

    @cached_property
    def pattern(self) -> re.Pattern[bytes]:
        """Group 1 is the secret."""
        return re.compile(b"%b(%b)%b" % (whole(self.lead), whole(self.secret), whole(self.tail)))

    def behind(self, trigger: bytes) -> re.Pattern[bytes]:
        """Matches this one of the triggers wherever the pattern matches."""
        return re.compile(b"%b(?=%b)" % (re.escape(trigger), whole(self.parts[1:])))

    @cached_property
    def _goes_on(self) -> re.Pattern[bytes]:
        return re.compile(cut(self.parts))

    @cached_property
    def _recognised(self) -> re.Pattern[bytes]:
        return re.compile(whole(self.parts[: self.recognised_after]) + b"(?s:.{%d})" % LEAST_CUT)

    def is_undecided(self, data: bytes, start: int) -> bool:
        """Whether bytes behind `data` may make another match of what is at `start`."""
        return len(data) - start <= self.longest and self._goes_on.match(data, start) is not None

    def is_cut(self, data: bytes, start: int) -> bool:
        """Whether at `start` is such a token, as it seems, that goes on behind `data`."""
        return self.is_undecided(data, start) and self._recognised.match(data, start) is not None


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
    Shape("api-key", (), (word(b"sk-"), Run(_ALNUM, 32, 64, only_if=_MIXED))),
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
        (word(b"eyJ"), Run(_WORD, 8, 512), word(b".eyJ"), Run(_WORD, 4, 8192), word(b"."), Run(_WORD, 0, 1024)),
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
        (Run(_CREDENTIAL, 20, 8192, only_if=rb"(?=[A-Za-z._~+/=-]{0,64}[0-9])"),),
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
LONGEST_WITH_LEAD = max(shape.longest for shape in SHAPES if shape.lead)

_BY_TRIGGER = {word: shape for shape in SHAPES for word in shape.triggers}
_BY_NUMBER = tuple(_BY_TRIGGER.values())
_TRIGGERS = BytesAhoCorasick(list(_BY_TRIGGER))
_BEGUN = frozenset(word[:end] for word in _BY_TRIGGER for end in range(1, len(word)))
_LONGEST_TRIGGER = max(map(len, _BY_TRIGGER))
_MANY = 64


def triggers(data: bytes) -> list[tuple[int, Shape]]:
    """Where tokens may begin, and of which shape: everywhere where one is or may be begun."""
    found = _TRIGGERS.find_matches_as_indexes(data, overlapping=True)
    if len(found) > _MANY:
        return _with_tokens(data, found)
    return [(start, _BY_NUMBER[number]) for number, start, _ in found]


def _with_tokens(data: bytes, found: list[tuple[int, int, int]]) -> list[tuple[int, Shape]]:
    """The triggers without most of those at which no token is: one after the other these cost too much."""
    starts: dict[int, list[int]] = {}
    for number, start, _ in found:
        starts.setdefault(number, []).append(start)
    left: list[tuple[int, Shape]] = []
    for number, places in starts.items():
        shape = _BY_NUMBER[number]
        # Nearer to the end a token may be begun.
        near = bisect_left(places, len(data) - shape.longest)
        if near > _MANY:
            tokens = (token.start() for token in _tokens(number).finditer(data))
            left += [(start, shape) for start in takewhile((len(data) - shape.longest).__gt__, tokens)]
        else:
            near = 0
        left += [(start, shape) for start in places[near:]]
    return left


@cache
def _tokens(number: int) -> re.Pattern[bytes]:
    """Finds a trigger wherever a token is."""
    return _BY_NUMBER[number].behind(tuple(_BY_TRIGGER)[number])


def begun_trigger(data: bytes) -> int:
    """Where the first trigger begins that `data` ends in the midst of; the end of `data` when there is none."""
    for size in range(min(_LONGEST_TRIGGER - 1, len(data)), 0, -1):
        if data[-size:] in _BEGUN:
            return len(data) - size
    return len(data)


# At the front of what was read, the rest of a token or of a key's lines: long, and of a kind that no word is.
_CUT_OFF = re.compile(
    rb"(?=[a-z0-9_+/=.-]{0,255}[A-Z])(?=[A-Z0-9_+/=.-]{0,255}[a-z])(?=[A-Za-z_+/=.-]{0,255}[0-9])"
    rb"[A-Za-z0-9_+/=.-]{20,8192}+"
    rb"(?:(?:\r?\n|\\n)[A-Za-z0-9+/=]{40,80}+)*+(?:(?:\r?\n|\\n)[A-Za-z0-9+/=]{1,80}+(?=\r?\n-----END |\\n-----END ))?"
    rb"|[0-9a-f]{32,8192}+|[0-9A-F]{32,8192}+"
)
_CUT_OFF_KEY = re.compile(
    b"%b{0,%d}+-----END [A-Z ]{0,12}PRIVATE KEY(?: BLOCK)?-----" % (_KEY_BODY, _LONGEST_PRIVATE_KEY)
)


def cut_off_token(data: bytes) -> tuple[str, int] | None:
    """Name and end of what at the front of `data` may be the rest of a token that began before it."""
    if (key := _CUT_OFF_KEY.match(data)) is not None:
        return "private-key", key.end()
    if (token := _CUT_OFF.match(data)) is not None:
        return "cut-off", token.end()
    return None
