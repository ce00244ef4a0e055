"""What a fault of session storage makes of an activity: repeated when it may pass, told at once when it does not."""

from __future__ import annotations

from typing import Any, cast

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.storage_faults import StorageFaults
from sandhold.contracts.errors import ErrorCode, ToolError
from sandhold.storage import StorageError, StorageFault
from sandhold.storage.errors import StorageFull, StorageOfAnother, StorageRefused, StorageUnavailable


class Failing(ActivityInboundInterceptor):
    """An activity that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        raise self._error


async def told(error: Exception) -> ApplicationError:
    activity = StorageFaults().intercept_activity(Failing(error))
    with pytest.raises(ApplicationError) as failure:
        await activity.execute_activity(cast("ExecuteActivityInput", None))
    return failure.value


@pytest.mark.parametrize(
    ("fault", "code", "is_repeated", "hint"),
    [
        (StorageUnavailable("away"), ErrorCode.INTERNAL, True, "same call id"),
        (StorageFull("full"), ErrorCode.STORAGE_FULL, True, "same call id"),
        (StorageRefused("refused"), ErrorCode.INTERNAL, False, "SANDHOLD_STORAGE_URL"),
        (StorageOfAnother("s-1"), ErrorCode.CONFLICT, False, "another id"),
    ],
)
async def test_a_fault_is_a_typed_error_that_says_whether_to_repeat(
    fault: StorageFault, code: ErrorCode, is_repeated: bool, hint: str
) -> None:
    failure = await told(fault)
    [error] = failure.details
    assert isinstance(error, ToolError)
    assert (failure.type, failure.non_retryable) == (code, not is_repeated)
    assert (error.code, error.retryable, error.ambiguous) == (code, is_repeated, True)
    assert hint in str(error.hint)
    assert "may have been done" in str(error.hint)


async def test_what_is_no_fault_of_the_storage_passes() -> None:
    activity = StorageFaults().intercept_activity(Failing(StorageError("not what was stored there")))
    with pytest.raises(StorageError, match="not what was stored there"):
        await activity.execute_activity(cast("ExecuteActivityInput", None))
