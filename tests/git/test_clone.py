"""Clones through a session, on the whole stack, with real git on both sides."""

from __future__ import annotations

from tests.git.stacks import GITHUB, GitStack


async def test_a_private_repository_is_cloned_and_nothing_of_its_token_is_left(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    cloned = await session.git_clone(sandbox, "acme/plain", timeout=60)
    assert cloned.authenticated
    assert cloned.repo_url == f"https://{GITHUB}/acme/plain.git"
    assert cloned.path == "/home/daytona/acme/plain"
    assert (cloned.branch, cloned.commit) == ("main", git.commits["acme/plain"]["main"])
    [minted] = git.book.minted.values()
    assert minted.repositories == {"plain"}
    assert minted.permissions == {"contents": "read"}
    assert git.book.live == set()
    assert await git.tokens(session) == []
