"""The stack with a git server, GitHub's API, and a local Daytona whose sandboxes find them by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from temporalio.testing import WorkflowEnvironment

from sandhold.client import SandholdError, Session
from tests.git.repositories import new_empty_repository, new_repository
from tests.git.server import running_git_server
from tests.git.stacks import ACCOUNT, GITHUB, INSTALLATION, OTHER, GitStack
from tests.github.api_server import GitHubApi, Installation, running_github_api
from tests.github.certificates import Authority
from tests.local_daytona_server import running_local_daytona
from tests.stack import running_stack

LEFT_OPEN_S = 5.0
NAMES = ("plain", "public", "part", "whole", "empty", "large", "careless", "moved", "old-name", "broken", "nothing")
"""Of repositories that the installation has. Not all of them are there."""


@pytest.fixture(scope="session")
async def shared_git_stack(
    temporal: WorkflowEnvironment, tmp_path_factory: pytest.TempPathFactory, opened: list[Session]
) -> AsyncIterator[GitStack]:
    folder = tmp_path_factory.mktemp("git")
    authority = Authority.new(folder)
    async with (
        running_github_api(authority) as api,
        running_git_server(folder / "repositories", authority, api.tokens, [GITHUB, OTHER]) as server,
    ):
        routes = [f"--route={name}:443=127.0.0.1:{server.port}" for name in (GITHUB, OTHER)]
        async with (
            running_local_daytona(folder / "daytona", options=routes) as daytona,
            running_stack(
                temporal.client, daytona, folder / "data", task_queue="sandhold-git-tests", more=api.settings
            ) as stack,
        ):
            git_stack = GitStack(stack, server, api, authority)
            _fill(git_stack)
            yield git_stack
            opened += stack.opened


def _fill(stack: GitStack) -> None:
    for name in ("acme/plain", "acme/public", "acme/part", "globex/own", "globex/public"):
        stack.commits[name] = new_repository(stack.root, name)
    new_empty_repository(stack.root, "acme/empty")
    stack.commits["acme/whole"] = new_repository(stack.root, "acme/whole", submodule=f"https://{GITHUB}/acme/part.git")


@pytest.fixture
async def git(shared_git_stack: GitStack) -> AsyncIterator[GitStack]:
    """The stack as at first; sessions that the test left open are ended after it."""
    shared_git_stack.server.reset()
    _reset(shared_git_stack.api)
    shared_git_stack.server.public = {"acme/public", "globex/public"}
    await shared_git_stack.stack.faults.clear()
    opened_before = len(shared_git_stack.stack.opened)
    yield shared_git_stack
    _reset(shared_git_stack.api)
    await shared_git_stack.stack.faults.clear()
    await asyncio.gather(*(_end(session) for session in shared_git_stack.stack.opened[opened_before:]))


def _reset(api: GitHubApi) -> None:
    """No token, and no fault."""
    api.tokens.tokens.clear()
    api.answers.clear()
    api.asked.clear()
    api.token_life_s = 3600.0
    api.limit = None
    api.most_at_once = 0
    api.installations = {INSTALLATION: Installation(ACCOUNT, repositories=set(NAMES))}


async def _end(session: Session) -> None:
    try:
        await session.end("its test is over", timeout=LEFT_OPEN_S)
    except SandholdError as error:
        print(f"session {session.session_id} has not ended: {error}")
