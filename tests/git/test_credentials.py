"""Git's credential in a sandbox, on the whole stack, with real git on both sides."""

from __future__ import annotations

import asyncio

import pytest

from sandhold.client import Session
from sandhold.contracts.errors import ErrorCode, ToolFailure
from tests.git.stacks import GITHUB, GitStack

FILE = "/dev/shm/sandhold-git-$(id -u)/hosts.yml"  # noqa: S108 - in the sandbox
COMMIT = "cd /home/daytona/acme/plain && git -c user.name=T -c user.email=t@example.com commit -q --allow-empty -m more"


async def with_credentials(git: GitStack, owner: str | None = None, **policy: object) -> tuple[Session, str]:
    """A session with a sandbox in which there is a clone, and git has a credential."""
    session = await git.session(owner, **policy)
    sandbox = await git.sandbox(session)
    await session.git_clone(sandbox, "acme/plain", timeout=60)
    await session.git_credentials(sandbox, timeout=60)
    return session, sandbox


async def shell(session: Session, sandbox: str, command: str) -> str:
    """What a command prints that has to succeed."""
    done = await session.exec(sandbox, command, timeout=60)
    assert done.exit_code == 0, done
    return done.stdout


async def test_git_in_the_sandbox_pushes_and_fetches(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    await session.git_clone(sandbox, "acme/plain", timeout=60)
    told = await session.git_credentials(sandbox, timeout=60)

    assert (told.authenticated, told.provider, told.hosts) == (True, "github", [GITHUB])
    assert told.expires_at is not None
    await shell(session, sandbox, f"{COMMIT} && git push -q origin HEAD:refs/heads/pushed && git fetch -q")
    [token] = git.book.live
    assert git.book.minted[token].permissions == {"contents": "write"}
    assert git.server.tokens_at(GITHUB) >= {token}
    assert (await shell(session, sandbox, f"stat -c '%a %F' {FILE}")).strip() == "600 regular file"
    assert [each.purpose for each in await git.tokens(session)] == ["helper"]
