"""`sandhold connect`, `connections`, `disconnect`, and what `session show` says of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from tests.cli.process import sandhold
from tests.local_daytona_server import LocalDaytona, running_local_daytona
from tests.stack import Stack, environment_of

KEY = "dtn_0123456789abcdef-of-the-owner"


@pytest.fixture(scope="module")
def env(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return environment_of(shared_stack, tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
async def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalDaytona]:
    async with running_local_daytona(tmp_path_factory.mktemp("b") / "daytona", api_key=KEY) as server:
        yield server


async def test_a_connection_from_its_key_to_its_removal(env: Mapping[str, str], elsewhere: LocalDaytona) -> None:
    to_ada = ("--owner", "ada-of-keys", "--json")
    made = await sandhold("connect", "daytona", "--api-url", elsewhere.url, *to_ada, env=env, stdin=f"{KEY}\n")
    assert made.code == 0, made.err
    assert (made.document["owner"], made.document["version"], made.document["replaced"]) == ("ada-of-keys", 1, False)
    assert made.document["key"] == "****wner"
    listed = await sandhold("connections", "--json", env=env)
    deployments, *others = listed.document["connections"]
    assert (deployments["source"], deployments["owner"]) == ("deployment", None)
    assert [each["owner"] for each in others if each["owner"] == "ada-of-keys"] == ["ada-of-keys"]
    await sandhold("session", "start", "--session", "keys-of-ada", "--owner", "ada-of-keys", env=env)
    show = await sandhold("session", "show", "keys-of-ada", "--json", env=env)
    [capability, _git] = show.document["capabilities"]
    assert (capability["available"], "no worker has used it yet" in capability["reason"]) == (None, True)
    created = await sandhold("call", "keys-of-ada", "daytona_create_sandbox", '{"sandbox_id": "box"}', env=env)
    assert created.code == 0, created.out
    show = await sandhold("session", "show", "keys-of-ada", "--json", env=env)
    [capability, _git] = show.document["capabilities"]
    assert (capability["name"], capability["available"], capability["connection"]) == ("sandboxes", True, "own")
    refused = await sandhold("disconnect", "daytona", *to_ada, env=env)
    assert refused.code == 1
    assert refused.document["error"]["code"] == "conflict"
    assert "keys-of-ada/box" in refused.document["error"]["message"]
    await sandhold("session", "end", "keys-of-ada", env=env)
    gone = await sandhold("disconnect", "daytona", *to_ada, env=env)
    assert (gone.code, gone.document["left_behind"]) == (0, [])
    again = await sandhold("disconnect", "daytona", *to_ada, env=env)
    assert (again.code, again.document["error"]["code"]) == (1, "connection_missing")
    text = await sandhold("connections", env=env)
    assert "(set here)" in text.out
    for each in (made, listed, show, refused, gone, text):
        assert KEY not in each.out + each.err


async def test_a_wrong_key_or_address_is_told_and_not_stored(env: Mapping[str, str], elsewhere: LocalDaytona) -> None:
    to = ("--owner", "wrong", "--json")
    wrong = await sandhold("connect", "daytona", "--api-url", elsewhere.url, *to, env=env, stdin="not-the-key")
    assert (wrong.code, wrong.document["error"]["code"]) == (1, "provider_rejected")
    nobody = await sandhold("connect", "daytona", "--api-url", "http://127.0.0.1:9/api", *to, env=env, stdin=KEY)
    assert (nobody.code, nobody.document["error"]["code"]) == (1, "provider_unavailable")
    nothing = await sandhold("connect", "daytona", *to, env=env, stdin="\n")
    by_argument = await sandhold("connect", "daytona", KEY, *to, env=env)
    no_owner = await sandhold("connect", "daytona", "--owner", "no owner", env=env, stdin=KEY)
    assert (nothing.code, by_argument.code, no_owner.code) == (2, 2, 2)
    assert KEY not in by_argument.out + by_argument.err
    listed = await sandhold("connections", "--owner", "wrong", "--json", env=env)
    assert [each["source"] for each in listed.document["connections"]] == ["deployment"]


async def test_without_a_key_ring_nothing_is_stored_and_no_session_is_read(
    env: Mapping[str, str], elsewhere: LocalDaytona, tmp_path: Path
) -> None:
    without = {**env, "SANDHOLD_KEYRING": str(tmp_path / "missing.json")}
    refused = await sandhold("connect", "daytona", "--api-url", elsewhere.url, "--json", env=without, stdin=KEY)
    assert (refused.code, refused.document["error"]["code"]) == (2, "key_ring_missing")
    await sandhold("session", "start", "--session", "ringless", env=env)
    show = await sandhold("session", "show", "ringless", "--json", env=without)
    assert (show.code, show.document["error"]["code"]) == (2, "key_ring_missing")
    await sandhold("session", "end", "ringless", env=env)
