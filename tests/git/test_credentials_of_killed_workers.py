"""A worker that is killed with a token of git in its hands: whoever comes after it knows of the token, and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

from temporalio.testing import WorkflowEnvironment

from tests.git.stacks import GitStack
from tests.local_daytona_server import CHECKOUT
from tests.stack import Stack, environment_of, running_stack
from tests.workflows.waiting import eventually


@contextlib.asynccontextmanager
async def worker_process(stack: Stack, data_dir: Path) -> AsyncIterator[Process]:
    """A worker in a process of its own, once it polls; killed at the end if it still runs."""
    settings = stack.settings
    assert settings.github_app_private_key is not None
    github = {
        "SANDHOLD_GITHUB_URL": settings.github_url,
        "SANDHOLD_GITHUB_API_URL": settings.github_api_url or "",
        "SANDHOLD_GITHUB_APP_ID": settings.github_app_id or "",
        "SANDHOLD_GITHUB_APP_PRIVATE_KEY": settings.github_app_private_key.get_secret_value(),
        "SANDHOLD_GITHUB_CA_FILE": str(settings.github_ca_file),
    }
    with (data_dir / "worker.log").open("ab") as log:
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            CHECKOUT / "worker.py",
            env={**environment_of(stack, data_dir), **github},
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=log,
        )
    try:
        assert worker.stdout is not None
        line = await asyncio.wait_for(worker.stdout.readline(), 60)
        assert line.startswith(b"ready "), (data_dir / "worker.log").read_text()
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()


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
        async with worker_process(stack, tmp_path) as first:
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
        async with worker_process(stack, tmp_path):
            await ending
        assert minted.revoked
        assert len(git.book.minted) == 1
        assert await git.tokens(session) == []
