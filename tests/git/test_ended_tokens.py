"""Tokens of git that sessions have left: the scheduled clean-up ends them, and forgets those that have ended."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from activities.ended_git_tokens import EndedGitTokens
from sandhold.client import Session
from sandhold.github import GitHub
from tests.git.stacks import GitStack
from tests.github.api_server import Canned
from tests.github.tokens import Token


@pytest.fixture(autouse=True)
async def nothing_is_left(git: GitStack) -> None:
    """By tests before."""
    vault = git.stack.vault
    for of in await vault.sessions_with_git_tokens():
        for token in await vault.git_tokens(of.session_id, of.run_id):
            await vault.delete_git_token(token.id)


async def left_by(git: GitStack, session: Session, *, life_s: float = 3600.0) -> Token:
    """A token that somebody has delivered, and that is on record."""
    minted = git.book.mint("acme", None, {"contents": "write"}, time.time() + life_s)
    run_id = (await git.stack.temporal.get_workflow_handle(session.workflow_id).describe()).run_id
    await git.stack.vault.put_git_token(
        SecretStr(minted.value),
        owner="tests",
        session_id=session.session_id,
        run_id=run_id or "",
        sandbox_id="box",
        generation=1,
        purpose="helper",
        api_url=git.api.url,
        expires_at=datetime.now(UTC) + timedelta(seconds=life_s),
    )
    return minted


async def clean(git: GitStack, *, dry_run: bool = False) -> tuple[int, int]:
    stack = git.stack
    github = GitHub(stack.settings, stack.vault)
    try:
        ended = EndedGitTokens(stack.temporal, stack.vault, github, stack.deployment, timedelta(0))
        return await ended.end(dry_run=dry_run)
    finally:
        await github.close()


async def test_those_of_an_ended_session_are_revoked_and_those_of_an_open_one_stay(git: GitStack) -> None:
    over, runs = await git.session(), await git.session()
    await over.end()
    left, used = await left_by(git, over), await left_by(git, runs)

    assert await clean(git, dry_run=True) == (1, 0)
    assert not left.revoked
    assert await clean(git) == (1, 0)
    assert left.revoked
    assert not used.revoked
    assert await git.tokens(over) == []
    assert len(await git.tokens(runs)) == 1


async def test_what_github_does_not_revoke_is_counted_and_stays_on_record(git: GitStack) -> None:
    over = await git.session()
    await over.end()
    await left_by(git, over)
    git.api.answers.append(Canned(503))

    assert await clean(git) == (0, 1)
    assert len(await git.tokens(over)) == 1
    assert await clean(git) == (1, 0)


async def test_those_that_have_expired_are_forgotten_and_github_is_not_asked(git: GitStack) -> None:
    runs = await git.session()
    await left_by(git, runs, life_s=-1.0)

    told = await git.stack.sandhold.clean_storage(dry_run=True)
    assert told.git_tokens_ended == 1
    assert await clean(git) == (1, 0)
    assert await git.tokens(runs) == []
    assert git.api.asked == []
