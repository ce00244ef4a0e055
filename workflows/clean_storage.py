"""CleanStorage: removes what sessions left longer ago than their policies keep it. Started by a schedule."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.names import CLEAN_STORAGE_WORKFLOW, Activity
    from sandhold.contracts.storage import CleanStorageStep, StorageCleaned

_WITHIN = timedelta(hours=6)
"""What a clean-up has not come to by then is left to the next one."""
_HEARTBEAT_TIMEOUT = timedelta(seconds=30)


@workflow.defn(name=CLEAN_STORAGE_WORKFLOW)
class CleanStorage:
    """One clean-up. Its result counts what was done; it fails when Temporal or the storage cannot be asked."""

    @workflow.run
    async def run(self, step: CleanStorageStep) -> StorageCleaned:
        cleaned: StorageCleaned = await workflow.execute_activity(
            Activity.CLEAN_STORAGE,
            step,
            result_type=StorageCleaned,
            schedule_to_close_timeout=_WITHIN,
            heartbeat_timeout=_HEARTBEAT_TIMEOUT,
            retry_policy=RetryPolicy(maximum_attempts=5),
            summary="look for what is to be removed" if step.dry_run else "remove what is kept no longer",
        )
        return cleaned
