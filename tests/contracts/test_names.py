"""Names that scripts and operators rely on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandhold.contracts import names

DEPLOYMENT = "5f2d8a7e-0c5d-4a52-9a0e-2f6c1b1f9f11"


def test_the_names_are_what_they_were_when_they_were_published() -> None:
    assert names.session_workflow_id("s1") == "session/s1"
    assert names.sandbox_workflow_id("s1", "build") == "sandbox/s1/build"
    assert names.provider_name(DEPLOYMENT, "s1", "build", 2) == "sandhold-7336a43e041e3527d8b5912d0ae62e39-g2"
    assert names.provider_labels(DEPLOYMENT, "me", "s1", "build") == {
        "sandhold-managed": "true",
        "sandhold-deployment": DEPLOYMENT,
        "sandhold-owner": "me",
        "sandhold-session": "s1",
        "sandhold-sandbox": "build",
    }


@pytest.mark.parametrize("value", ["a", "0", "sandbox-1", "a" * 63])
def test_ids_that_are_allowed(value: str) -> None:
    assert names.is_id(value)


@pytest.mark.parametrize("value", ["", "-a", "A", "a_b", "a" * 64, "a\n", "a/b", "..", "é"])
def test_ids_that_are_not(value: str) -> None:
    assert not names.is_id(value)


@pytest.mark.parametrize("value", ["call_1", "toolu_01A.b:c-d", "..", ".", "A" * 128])
def test_call_ids_that_are_allowed(value: str) -> None:
    assert names.is_call_id(value)


@pytest.mark.parametrize("value", ["", "a/b", "a b", "a\n", "A" * 129, "%2E"])
def test_call_ids_that_are_not(value: str) -> None:
    assert not names.is_call_id(value)


@pytest.mark.parametrize(("value", "allowed"), [("me@x.org", True), ("-x", False), ("", False), ("a\n", False)])
def test_owners(value: str, allowed: bool) -> None:
    assert names.is_owner(value) is allowed


CALL_IDS = st.from_regex(names.CALL_ID_PATTERN.replace("$", r"\Z"), fullmatch=True)


@given(CALL_IDS, CALL_IDS)
def test_a_call_has_a_folder_of_its_own_that_is_one_safe_path_segment(one: str, other: str) -> None:
    folder = names.call_folder(one)
    assert "/" not in folder
    assert not folder.startswith(".")
    assert (folder == names.call_folder(other)) == (one == other)


@given(st.tuples(*[st.from_regex(r"[a-z0-9][a-z0-9-]{0,10}", fullmatch=True)] * 2, st.integers(1, 99)))
def test_every_sandbox_and_generation_has_a_provider_name_of_its_own(which: tuple[str, str, int]) -> None:
    session, sandbox, generation = which
    name = names.provider_name(DEPLOYMENT, session, sandbox, generation)
    assert name == names.provider_name(DEPLOYMENT, session, sandbox, generation)
    others = {
        names.provider_name(DEPLOYMENT, session, sandbox, generation + 1),
        names.provider_name(DEPLOYMENT, session + "x", sandbox, generation),
        names.provider_name(DEPLOYMENT, session, sandbox + "x", generation),
        names.provider_name("another", session, sandbox, generation),
        names.provider_name(DEPLOYMENT, session + sandbox[:1], sandbox[1:], generation),
    }
    assert name not in others
    assert len(name) < 64
