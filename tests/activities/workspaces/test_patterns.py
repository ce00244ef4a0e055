"""Patterns decide as the library's do, in time that grows with the length of a name alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from activities.workspaces.patterns import spec_of, without_backtracking
from activities.workspaces.selection import Selection
from sandhold.contracts.patterns import fault_of

WILD = st.text(alphabet="aab*?[]!-\\ #.&", max_size=6)
PARTS = st.one_of(st.sampled_from(["**", "*", "a", "b", "a*", "*b", "*a*b", "a*a*a", "?", "[ab]", "a.b"]), WILD)
PATTERNS = st.builds(
    lambda back, top, parts, end: back + top + "/".join(parts) + end,
    st.sampled_from(["", "", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(PARTS, min_size=1, max_size=5),
    st.sampled_from(["", "", "/"]),
)
PATHS = st.lists(st.text(alphabet="aaab.-[!&\\", min_size=1, max_size=4), min_size=1, max_size=5).map("/".join)


def of_the_library(patterns: list[str]) -> GitIgnoreSpec:
    """The library itself, but for a set that matches a slash, which it does not in git."""
    return GitIgnoreSpec(list(map(by_the_library, patterns)), backend="simple")


def by_the_library(pattern: str) -> GitIgnoreSpecPattern:
    regex, is_wanted = GitIgnoreSpecPattern.pattern_to_regex(pattern)
    if regex is None:
        return GitIgnoreSpecPattern(None)
    either = r"(?P<other>\\.|\[\^/\])|\[\^?\]?[^\]]*\]"
    regex = re.sub(either, lambda found: found[0] if found["other"] else f"(?!/){found[0]}", regex)
    return GitIgnoreSpecPattern(re.compile(regex), is_wanted)


@pytest.mark.filterwarnings("ignore:Possible")
@settings(deadline=None, max_examples=1500)
@given(st.lists(PATTERNS.filter(lambda each: fault_of(each) is None), min_size=1, max_size=3), PATHS, st.booleans())
@example(["**/a/**/b*a"], "a/a/ba/a/bba", False)
@example(["**/b/**/a"], "a/b/a/a", False)
@example(["a", "!a/a"], "a/a", False)
@example(["a/**/b/**/a/", "!b"], "a/b/b/a", True)
@example(["a", "!**/a/"], "a/b/a", False)
@example(["[!a]*"], "a/b", False)
@example(["[!-.]"], "[", False)
def test_every_pattern_decides_as_in_the_library(patterns: list[str], path: str, is_directory: bool) -> None:
    path += "/" if is_directory else ""
    assert spec_of(patterns).match_file(path) == of_the_library(patterns).match_file(path)


@settings(deadline=None)
@given(st.one_of(PATTERNS, st.text(max_size=12)))
def test_every_pattern_that_is_accepted_can_be_read(pattern: str) -> None:
    if "\n" not in pattern and fault_of(pattern) is None:
        for selection in (Selection("/w", exclude=[pattern]), Selection("/w", include=[pattern])):
            selection.takes(b"a/b", is_directory=False)
            selection.operands_for_tar()


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a" * 400 + "*b", "a" * 4000),
        ("*?" * 400 + "*b", "a" * 4000),
        ("**/" + "*a*/" * 150 + "b", "/".join(["aa"] * 1300)),
        ("**/a/" * 150 + "**/b", "/".join(["a"] * 2000)),
        ("*" * 900 + "b", "a" * 4000),
    ],
    ids=["stars", "any", "parts", "folders", "only stars"],
)
def test_no_pattern_takes_long(pattern: str, path: str) -> None:
    """With backtracking each of these would outlast the universe."""
    assert fault_of(pattern) is None
    assert not spec_of([pattern]).match_file(path)
    assert spec_of([pattern]).match_file(f"{path}{'/a' * 150}/b" if "/" in pattern else f"{path}b")


def test_names_of_any_characters_are_matched() -> None:
    spec = spec_of(["*.log", "/a/**/z", "b"])
    for path in ("new\nline/x.log", "new\nline.log", "a/\n/z"):
        assert spec.match_file(path), path
    assert not spec.match_file("b\n")


def test_sets_are_those_of_characters() -> None:
    assert spec_of(["[a&&b]"]).match_file("&")
    assert spec_of(["[[a]"]).match_file("[")
    assert not spec_of(["a[!b]c"]).match_file("a/c")
    assert spec_of(["[]-a]"]).match_file("^")


def test_an_expression_of_another_making_is_refused() -> None:
    with pytest.raises(ValueError, match="no regular expression of a pattern"):
        without_backtracking("^(a|b)*$")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("!", "names nothing"),
        ("/", "names nothing"),
        ("!/", "names nothing"),
        ("//", "names nothing"),
        ("foo\\", "a backslash with nothing behind it"),
        ("foo\\  ", "a backslash with nothing behind it"),
        ("a\\/b", "a backslash with nothing behind it"),
        ("a[", "a [ without its ]"),
        ("a[]", "a [ without its ]"),
        ("a[!/]b", "a [ without its ]"),
        ("[z-a]", "ends before it begins"),
        ("[a-cz-a]", "ends before it begins"),
    ],
)
def test_a_pattern_of_which_nothing_can_be_told_says_why(pattern: str, why: str) -> None:
    assert why in (fault_of(pattern) or "")


@pytest.mark.parametrize(
    "pattern", ["#x", " ", "a", "\\#", "\\!", "a\\ ", "[]a]", "[!]a]", "[a-]", "[-a]", "[]-a]", "***", "/a/", "]", "!a"]
)
def test_other_patterns_are_accepted(pattern: str) -> None:
    assert fault_of(pattern) is None
    spec_of([pattern])
