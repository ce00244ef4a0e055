"""A worker that is killed with a token of git in its hands: whoever comes after it knows of the token, and ends it."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from temporalio.testing import WorkflowEnvironment

from tests.git.stacks import GitStack
from tests.stack import Stack, running_stack
from tests.workflows.test_killed_worker import worker_process
from tests.workflows.waiting import eventually


def with_github(stack: Stack, data_dir: Path) -> AbstractAsyncContextManager[Process]:
    """A worker that is set up for GitHub as the stack is."""
    settings = stack.settings
    assert settings.github_app_private_key is not None
    return worker_process(
        stack,
        data_dir,
        {
            "SANDHOLD_GITHUB_URL": settings.github_url,
            "SANDHOLD_GITHUB_API_URL": settings.github_api_url or "",
            "SANDHOLD_GITHUB_APP_ID": settings.github_app_id or "",
            "SANDHOLD_GITHUB_APP_PRIVATE_KEY": settings.github_app_private_key.get_secret_value(),
            "SANDHOLD_GITHUB_CA_FILE": str(settings.github_ca_file),
        },
    )


async def test_a_token_that_was_stored_and_never_delivered_is_revoked(
    git: GitStack, temporal: WorkflowEnvironment, tmp_path: Path
) -> None:
    daytona = git.stack.daytona
    async with running_stack(
        temporal.client,
        daytona,
        tmp_path,
        task_queue="sandhold-git-killed",
        workers=False,
        more=git.api.settings,
    ) as stack:
        git = GitStack(stack, git.server, git.api, git.authority)
        async with with_github(stack, tmp_path) as first:
            session = await git.session()
            sandbox = (await session.create_sandbox()).sandbox_id
            held = await daytona.faults.add(
                method="POST",
                route="/toolbox/{sandbox_id}/process/execute",
                effect="delay",
                seconds=60.0,
                when="before",
            )
            await session.call("daytona_git_credentials", {"sandbox_id": sandbox}, "given", wait=False)
            await eventually(lambda: daytona.faults.hits(held), bool, "the delivery")
            [stored] = await git.tokens(session)
            [minted] = git.book.live
            assert stored.token.get_secret_value() == minted.value
            first.kill()
            await first.wait()
        await daytona.faults.clear()
        # Asked for while there is nobody to put the token in place once more.
        ending = asyncio.create_task(session.end(timeout=120))
        async with with_github(stack, tmp_path):
            await ending
        assert minted.revoked
        assert len(git.book.minted) == 1
        assert await git.tokens(session) == []
