"""The stack with a git server, GitHub's API, and a local Daytona whose sandboxes find them by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr
from temporalio.testing import WorkflowEnvironment

from sandhold.client import SandholdError, Session
from tests.git.authority import new_authority
from tests.git.github_api import TokenBook, running_github_api
from tests.git.repositories import new_empty_repository, new_repository
from tests.git.server import running_git_server
from tests.git.stacks import GITHUB, OTHER, GitStack
from tests.local_daytona_server import running_local_daytona
from tests.stack import running_stack

LEFT_OPEN_S = 5.0


@pytest.fixture(scope="session")
async def shared_git_stack(
    temporal: WorkflowEnvironment, tmp_path_factory: pytest.TempPathFactory, opened: list[Session]
) -> AsyncIterator[GitStack]:
    folder = tmp_path_factory.mktemp("git")
    authority = new_authority(folder, [GITHUB, OTHER])
    book = TokenBook()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    async with (
        running_github_api(book, authority) as api_url,
        running_git_server(folder / "repositories", authority, book.allows) as server,
    ):
        routes = [f"--route={name}:443=127.0.0.1:{server.port}" for name in (GITHUB, OTHER)]
        more = {
            "github_url": f"https://{GITHUB}",
            "github_api_url": api_url,
            "github_app_id": "1",
            "github_app_private_key": SecretStr(pem),
            "github_ca_file": authority.ca_file,
        }
        async with (
            running_local_daytona(folder / "daytona", options=routes) as daytona,
            running_stack(
                temporal.client, daytona, folder / "data", task_queue="sandhold-git-tests", more=more
            ) as stack,
        ):
            git_stack = GitStack(stack, server, book, authority)
            _fill(git_stack)
            yield git_stack
            opened += stack.opened


def _fill(stack: GitStack) -> None:
    for name in ("acme/plain", "acme/public", "acme/part", "globex/own", "globex/public"):
        stack.commits[name] = new_repository(stack.root, name)
    new_empty_repository(stack.root, "acme/empty")
    stack.commits["acme/whole"] = new_repository(
        stack.root, "acme/whole", submodule=f"https://{GITHUB}/acme/part.git"
    )


@pytest.fixture
async def git(shared_git_stack: GitStack) -> AsyncIterator[GitStack]:
    """The stack as at first; sessions that the test left open are ended after it."""
    shared_git_stack.server.reset()
    shared_git_stack.book.reset()
    shared_git_stack.server.public = {"acme/public", "globex/public"}
    await shared_git_stack.stack.faults.clear()
    opened_before = len(shared_git_stack.stack.opened)
    yield shared_git_stack
    shared_git_stack.book.down = False
    await shared_git_stack.stack.faults.clear()
    await asyncio.gather(*(_end(session) for session in shared_git_stack.stack.opened[opened_before:]))


async def _end(session: Session) -> None:
    try:
        await session.end("its test is over", timeout=LEFT_OPEN_S)
    except SandholdError as error:
        print(f"session {session.session_id} has not ended: {error}")
