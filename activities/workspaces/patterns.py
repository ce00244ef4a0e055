"""Patterns in the syntax of gitignore, matched in time that grows with the length of a path and of a pattern only.

The library turns a pattern into a regular expression in which each `*` may be tried at every place again, whatever came
of the others: five of them against one name of 200 characters take minutes, in which no other thread runs. Yet for each
`*` the first place where what follows it matches is as good as any later one. So what it found there is never given up
here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

_TOKEN = re.compile(
    r"""
      (?P<anywhere> \^\(\?:\.\+/\)\? )                 # **/ in front
    | (?P<start>    \^ )
    | (?P<folders>  \(\?:/\.\+\)\?/ )                  # /**/ in between
    | (?P<end>      (?: \(\?:\(\?P<\w+>/\)\|\$\)       # the path, or a folder above it
                      | \(\?P<\w+>/\)                  # a folder above it
                      | / ) \Z )
    | (?P<slash>    / )
    | (?P<star>     (?: \[\^/\]\* )+ )
    | (?P<name>     \[\^/\]\+ )                        # * as a whole part of the path
    | (?P<set>      \[\^?\]?[^\]]*\] )
    | (?P<text>     \\. | [^\\^$.|?*+()\[\]{}] )
    """,
    re.VERBOSE | re.DOTALL,
)
_FOLDERS = "(?:[^/]++/)*?"


def spec_of(patterns: Sequence[str]) -> GitIgnoreSpec:
    """What decides between patterns as the library does. Raises ValueError for one that it cannot read."""
    # Other backends would make regular expressions of their own.
    return GitIgnoreSpec(list(map(_compiled, patterns)), backend="simple")


def _compiled(pattern: str) -> GitIgnoreSpecPattern:
    regex, is_wanted = GitIgnoreSpecPattern.pattern_to_regex(pattern)
    if regex is None:
        return GitIgnoreSpecPattern(None)
    return GitIgnoreSpecPattern(re.compile(without_backtracking(regex)), is_wanted)


def without_backtracking(regex: str) -> str:
    """The library's regular expression for one that matches the same paths, and notices a folder in the same ones.

    Two things are as in git and not as in the library: a set never matches a slash, and any character may be in a name.
    Raises ValueError when it is not of the library's making.
    """
    if not regex.startswith("^"):
        return regex  # of a pattern that matches everything or every folder
    runs = [[[""]]]  # between any number of folders: the parts of the path, and of each what is between its stars
    is_anywhere = False
    end = ""
    at = 0
    while at < len(regex):
        token = _TOKEN.match(regex, at)
        if token is None:
            raise ValueError(f"no regular expression of a pattern: {regex!r}")
        at = token.end()
        match token.lastgroup, token[0]:
            case "start", _:
                pass
            case "anywhere", _:
                is_anywhere = True
            case "folders", _:
                runs.append([[""]])
            case "slash", _:
                runs[-1].append([""])
            case "star", _:
                runs[-1][-1].append("")
            case "end", end:
                pass
            case kind, text:
                runs[-1][-1][-1] += _single(kind, text)
    return _joined(["/".join(map(_part, run)) for run in runs], end, is_anywhere=is_anywhere)


def _single(kind: str | None, text: str) -> str:
    """What matches one character, or a whole part of a path."""
    if kind == "name":
        return f"{text}+"
    if kind == "set" and text != "[^/]":
        # These have no meaning in a set yet, of which the compiler warns.
        return "(?!/)" + text[0] + re.sub(r"[\[&~|]", r"\\\g<0>", text[1:])
    return text


def _part(texts: list[str]) -> str:
    """A part of a path: these texts with stars in between."""
    first, *others = texts
    if not others:
        return first
    *between, last = others
    found = "".join(f"(?>[^/]*?{text})" for text in between if text)
    return first + found + (f"(?>[^/]*?{last}(?=/|\\Z))" if last else "[^/]*+")


def _joined(runs: list[str], end: str, *, is_anywhere: bool) -> str:
    """The runs with any number of folders in between, and in front if they are `anywhere`."""
    *before, last = runs
    regex = "^"
    for number, run in enumerate(before):
        regex += f"(?>{_FOLDERS}{run}/)" if number or is_anywhere else f"{run}/"
    folder = end.removeprefix("(?:").removesuffix("|$)")
    if not before and not is_anywhere:
        return f"{regex}{last}(?:{folder}|\\Z)" if folder != end else f"{regex}{last}{end}"
    is_below = f"(?>{_FOLDERS}{last}(?=/)){folder}"
    # The path itself comes before a folder above it: between patterns of which one brings back it makes a difference.
    return f"{regex}(?:(?>{_FOLDERS}{last}\\Z)|{is_below})" if folder != end else f"{regex}{is_below}"
