"""What reaches the handlers: messages of a known shape only.

A handler that raises anything but a Temporal failure blocks its workflow and every other call with it. The
SDK drops signals and rejects updates that it cannot decode, but hands through a null, no argument at all,
or too many (temporalio 1.35.0), so they are turned away here.
"""

from __future__ import annotations

from typing import Any

from temporalio import workflow
from temporalio.worker import (
    HandleSignalInput,
    HandleUpdateInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.base import Message
    from sandhold.contracts.errors import ErrorCode, ToolError, as_application_error


class MessageIntake(Interceptor):
    """Installs the check for every workflow of a worker or a replayer."""

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[WorkflowInboundInterceptor]:  # noqa: A002
        return _Intake


class _Intake(WorkflowInboundInterceptor):
    async def handle_signal(self, input: HandleSignalInput) -> None:  # noqa: A002
        if _is_one_message(input.args):
            await super().handle_signal(input)
        else:
            workflow.logger.warning("dropped a signal that does not hold one message", extra={"signal": input.signal})

    def handle_update_validator(self, input: HandleUpdateInput) -> None:  # noqa: A002
        if not _is_one_message(input.args):
            raise as_application_error(
                ToolError(
                    code=ErrorCode.INVALID_ARGUMENTS, message=f"the update {input.update!r} takes exactly one message"
                )
            )
        super().handle_update_validator(input)


def _is_one_message(args: Any) -> bool:
    return len(args) == 1 and isinstance(args[0], Message)
