"""Removing the secrets of sessions that have ended: nothing can want them any more.

Not with the end itself: what a sandbox's commands still print on their way out is redacted by them. Fails closed, as
the clean-up of storage does: secrets of a session that nobody here knows go only when the vault is this deployment's.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from sandhold.contracts.names import SESSION_ATTRIBUTE, session_workflow_id
from sandhold.temporal import SessionUnreadable, session_record
from sandhold.vault import SecretsOfSession, Vault

_AT_ONCE = 100


class EndedSecrets:
    """The clean-up of sessions' secrets."""

    def __init__(self, client: Client, vault: Vault, deployment: str, settled_after: timedelta) -> None:
        self._client = client
        self._vault = vault
        self._deployment = deployment
        self._settled_after = settled_after

    async def remove(self, *, dry_run: bool) -> int:
        """Remove all that are due, or only count them; how many. Raises RPCError and VaultError."""
        claimed_by = await (self._vault.claimed_by() if dry_run else self._vault.claim(self._deployment))
        is_ours = claimed_by in {None, self._deployment}
        removed = 0
        after = ("", "")
        while found := await self._vault.sessions_with_secrets(after, _AT_ONCE):
            for each in found:
                after = (each.session_id, each.run_id)
                if not await is_over(self._client, each, is_ours, self._settled_after):
                    continue
                removed += each.values if dry_run else await self._vault.delete_secrets(each.session_id, each.run_id)
        return removed


async def is_over(client: Client, of: SecretsOfSession, is_ours: bool, settled_after: timedelta) -> bool:
    """Whether the session has ended so long ago, and nothing of it runs.

    One that nobody here knows has, when the vault is this deployment's alone and nothing of it was stored since.
    """
    latest_end = datetime.now(UTC) - settled_after
    try:
        described = await client.get_workflow_handle(session_workflow_id(of.session_id)).describe()
        known = await session_record(client, of.session_id)
    except SessionUnreadable as error:
        activity.logger.warning("secrets are kept", extra={"session": of.session_id, "reason": str(error)})
        return False
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return is_ours and of.updated_at < latest_end
    if known.run_id != of.run_id:
        # Of an earlier session of this id, which Temporal has forgotten.
        return is_ours and of.updated_at < latest_end
    if described.status is WorkflowExecutionStatus.RUNNING or described.close_time is None:
        return False
    return described.close_time < latest_end and not await something_runs(client, of.session_id)


async def something_runs(client: Client, session_id: str) -> bool:
    """Whether a session or a sandbox of it runs: one that was closed by force leaves some that are being deleted."""
    query = f"{SESSION_ATTRIBUTE} = '{session_id}' AND ExecutionStatus = 'Running'"
    return (await client.count_workflows(query)).count > 0
