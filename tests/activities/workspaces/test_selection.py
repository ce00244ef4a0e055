"""Patterns, and what of them tar is told: only what it decides as we do."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.workspaces.selection import Selection

MIB = 1024 * 1024
PARTS = st.sampled_from(["a", "b", "src", ".git", "node_modules", "x.py", "build"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
PATTERNS = st.lists(
    st.one_of(
        PARTS, PARTS.map("{}/".format), PATHS.map("/{}".format), st.sampled_from(["*.py", "!.git", "**/b", "#x"])
    ),
    max_size=4,
)


def reference(path: str, patterns: list[str]) -> bool:
    """The same, by asking the library for every directory on the way: what lies in one that is out is out."""
    from pathspec import GitIgnoreSpec

    from sandhold.contracts.workspaces import LEFT_OUT_BY_DEFAULT

    spec = GitIgnoreSpec.from_lines([*LEFT_OUT_BY_DEFAULT, *patterns])
    parts = path.split("/")
    above = ["/".join(parts[:count]) + "/" for count in range(1, len(parts))]
    return any(spec.match_file(each) for each in [*above, path])


@given(PATHS, PATTERNS)
def test_the_short_ways_decide_as_the_library_does(path: str, patterns: list[str]) -> None:
    selection = Selection("/w", (), patterns)
    assert selection.takes(path.encode(), is_directory=False) == (not reference(path, patterns))


@given(PATHS, PATTERNS)
def test_tar_leaves_out_only_what_we_would(path: str, patterns: list[str]) -> None:
    selection = Selection("/w", (), patterns)
    if set(path.split("/")) & set(selection.names_for_tar()):
        assert not selection.takes(path.encode(), is_directory=False)


@given(PATHS, st.lists(PATHS.map("/{}".format), min_size=1, max_size=3))
def test_operands_hold_everything_that_is_included(path: str, include: list[str]) -> None:
    selection = Selection("/w", include)
    operands = selection.operands_for_tar()
    assert operands is not None
    if selection.takes(path.encode(), is_directory=False):
        assert any(path == each or path.startswith(f"{each}/") for each in operands)


def test_patterns_that_may_match_anywhere_are_no_operands() -> None:
    for pattern in ("src", "src/", "*.py", "/a*", "/a/../b", "!/a", "a/**/b"):
        assert Selection("/w", [pattern]).operands_for_tar() is None, pattern
    assert Selection("/w", ["/a", "a/b", "c/d/"]).operands_for_tar() == ["a", "c/d"]


def test_a_pattern_that_brings_something_back_keeps_tar_from_leaving_anything_out() -> None:
    assert "node_modules" in Selection("/w").names_for_tar()
    assert Selection("/w", (), ["*.log", "!.git"]).names_for_tar() == []


def test_a_default_that_is_brought_back_first_leaves_the_others_to_tar() -> None:
    selection = Selection("/w", (), ["!.git", "!.hg", "*.log"])
    assert {"node_modules", "venv"} <= set(selection.names_for_tar())
    assert not {".git", ".hg"} & set(selection.names_for_tar())
    assert selection.takes(b".git/config", is_directory=False)
    assert not selection.takes(b"node_modules/x", is_directory=False)
    assert not selection.takes(b".git/x.log", is_directory=False)
    assert not Selection("/w", (), ["!.git", ".git"]).takes(b".git/config", is_directory=False)


@pytest.mark.parametrize(
    ("root", "never", "taken"),
    [
        ("/", ["proc", "sys", "dev", "tmp/.sandhold", "home/daytona/.sandhold"], ["home/proc", "etc/dev"]),
        ("/home", ["daytona/.sandhold"], ["proc", "other/.sandhold"]),
        ("/home/daytona", [], ["project/.sandhold", "dev"]),
        ("/home/daytona/project", [], ["proc"]),
        ("/proc", [], ["1"]),
    ],
)
def test_what_is_no_work_of_anybodys_is_never_taken(root: str, never: list[str], taken: list[str]) -> None:
    selection = Selection(root, (), ["!*"])
    never = [".sandhold", *never]
    assert selection.paths_for_tar() == sorted(never)
    for path in never:
        assert not selection.takes(f"{path}/x".encode(), is_directory=False)
    for path in taken:
        assert selection.takes(f"{path}/x".encode(), is_directory=False)


def test_what_is_remembered_of_folders_is_bounded() -> None:
    selection = Selection("/w", (), ["*.log", "!a.log"])
    long = b"/".join([b"d" * 200] * 20)
    assert selection.takes(long + b"/x", is_directory=False)
    tracemalloc.start()
    for number in range(5000):
        assert selection.takes(b"%b/%d/x" % (long, number), is_directory=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * MIB, "the names alone are 20 MiB"
    assert not selection.takes(b"x.log/%b/x" % long, is_directory=False)


def test_folders_may_lie_as_deep_as_a_path_is_long() -> None:
    selection = Selection("/w", (), ["*.log"])
    deep = b"/".join([b"d"] * 2000)
    assert selection.takes(deep, is_directory=False)
    assert not selection.takes(b"x.log/" + deep, is_directory=False)
