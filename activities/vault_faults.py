"""What it means for the caller that the vault or the key ring does not give what an attempt needs."""

from __future__ import annotations

from temporalio.exceptions import ApplicationError

from sandhold.contracts.errors import ErrorCode, ToolError
from sandhold.security import SecurityError
from sandhold.vault import VaultError


class VaultFailure(ApplicationError):
    """An attempt needed something of the vault that could not be had. Its texts are ours and quote nothing secret: they
    are told also when nobody knows what is."""

    def __init__(self, fault: VaultError | SecurityError, *, ambiguous: bool = False) -> None:
        """`ambiguous` says that the effect of an earlier attempt may be there."""
        error = _meaning_of(fault).model_copy(update={"ambiguous": ambiguous})
        super().__init__(error.message, error, type=error.code, non_retryable=not error.retryable)


def _meaning_of(fault: VaultError | SecurityError) -> ToolError:
    if isinstance(fault, VaultError):
        return fault.failure("the connection or a secret cannot be read").error
    return ToolError(
        code=ErrorCode.INTERNAL,
        message=f"the connection or a secret cannot be opened: {fault}",
        hint="Tell the operator: the key ring of the workers has to be that under which the vault was written.",
    )
