"""Secrets of sessions go with their sessions, and never sooner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from temporalio.testing import ActivityEnvironment

from activities.ended_secrets import EndedSecrets
from activities.retention import SETTLED_AFTER
from sandhold.client import Session
from sandhold.security import open_key_ring
from sandhold.temporal import session_record
from sandhold.vault import Vault, open_vault
from tests.stack import Stack
from tests.workflows.waiting import eventually


@pytest.fixture
async def vault(stack: Stack, tmp_path: Path) -> AsyncIterator[Vault]:
    """A vault of its own: that of the stack is for other tests' sessions as well."""
    settings = stack.settings.model_copy(update={"data_dir": tmp_path, "database_url": None})
    vault = await open_vault(settings, open_key_ring(settings))
    yield vault
    await vault.close()


async def remove(stack: Stack, vault: Vault, *, dry_run: bool = False, settled_after: timedelta = timedelta(0)) -> int:
    ended = EndedSecrets(stack.temporal, vault, stack.deployment, settled_after)

    async def attempt() -> int:
        return await ended.remove(dry_run=dry_run)

    removed: int = await ActivityEnvironment().run(attempt)
    return removed


async def with_secrets(stack: Stack, vault: Vault, session: Session, count: int = 2) -> str:
    run_id = (await session_record(stack.temporal, session.session_id)).run_id
    for number in range(count):
        await vault.set_secret(session.session_id, run_id, f"S{number}", SecretStr("value"))
    return run_id


async def left(vault: Vault) -> set[str]:
    return {each.session_id for each in await vault.sessions_with_secrets()}


async def test_they_go_some_time_after_the_end(stack: Stack, vault: Vault) -> None:
    runs, ends = await stack.open(), await stack.open()
    for session in (runs, ends):
        await with_secrets(stack, vault, session)
    assert await remove(stack, vault) == 0
    await ends.end()
    assert await remove(stack, vault, settled_after=SETTLED_AFTER) == 0
    assert await remove(stack, vault, dry_run=True) == 2
    assert await left(vault) == {runs.session_id, ends.session_id}
    assert await remove(stack, vault) == 2
    assert await left(vault) == {runs.session_id}
    assert await remove(stack, vault) == 0


async def test_they_stay_while_a_sandbox_of_the_session_runs(stack: Stack, vault: Vault) -> None:
    session = await stack.open()
    await session.create_sandbox(sandbox_id="box")
    await with_secrets(stack, vault, session)
    await stack.faults.add(method="DELETE", route="/api/sandbox/{id}", effect="status", status=503)
    await stack.temporal.get_workflow_handle(session.workflow_id).terminate("by hand")
    assert await remove(stack, vault) == 0
    await stack.faults.clear()
    await session.end(timeout=60)

    async def gone() -> bool:
        return await remove(stack, vault) == 2

    await eventually(gone, bool, "the removal once nothing of the session runs")


async def test_those_of_an_earlier_session_of_the_id_go_and_those_of_the_open_one_stay(
    stack: Stack, vault: Vault
) -> None:
    session = await stack.open()
    run_id = await with_secrets(stack, vault, session)
    await vault.set_secret(session.session_id, "the run of an earlier one", "S", SecretStr("value"))
    assert await remove(stack, vault) == 1
    assert len(await vault.secret_rows(session.session_id, run_id)) == 2


async def test_those_of_sessions_that_nobody_knows_go_from_a_vault_that_is_ours_alone(
    stack: Stack, vault: Vault
) -> None:
    await vault.set_secret("forgotten", "run-1", "S", SecretStr("value"))
    assert await remove(stack, vault, settled_after=SETTLED_AFTER) == 0
    assert await remove(stack, vault) == 1
    assert await vault.claimed_by() == stack.deployment


async def test_in_a_vault_of_another_deployment_the_unknown_stays(stack: Stack, vault: Vault) -> None:
    await vault.claim("another deployment")
    await vault.set_secret("theirs", "run-1", "S", SecretStr("value"))
    ours = await stack.open()
    await with_secrets(stack, vault, ours)
    await vault.set_secret(ours.session_id, "theirs as well", "S", SecretStr("value"))
    await ours.end()
    assert await remove(stack, vault) == 2
    assert [(each.session_id, each.values) for each in await vault.sessions_with_secrets()] == sorted(
        [("theirs", 1), (ours.session_id, 1)]
    )


async def test_the_scheduled_clean_up_removes_them(stack: Stack) -> None:
    told = await stack.sandhold.clean_storage(dry_run=True)
    assert told.secrets_removed == 0
