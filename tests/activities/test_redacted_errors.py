"""Errors that are answers quote no secret, whatever a sandbox or its provider said."""

from __future__ import annotations

from typing import Any

from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.redacted_errors import RedactedErrors
from activities.redactors import Redactors
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.errors import ErrorCode, ToolError
from sandhold.contracts.steps import CallStep, CommandProgress, SandboxRef, SandboxStatusesStep
from tests.activities.commands_under_test import SecretsUnderTest

ERROR = ToolError(
    code=ErrorCode.PATH_NOT_FOUND, message="hunter2hunter2: no such file", hint="Not hunter2hunter2.", retryable=True
)
SHOWN = ERROR.model_copy(update={"message": "[redacted:PW]: no such file", "hint": "Not [redacted:PW]."})
STEP = CallStep(
    ref=SandboxRef(session_id="s", sandbox_id="box", owner="me", generation=1), call_id="c", arguments={"path": "x"}
)


class Answering(ActivityInboundInterceptor):
    """In the place of an activity."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        return self._answer


async def told(answer: Any, step: Any = STEP) -> Any:
    secrets = SecretsUnderTest()
    secrets.known = {"PW": "hunter2hunter2"}
    around = RedactedErrors(Redactors(secrets)).intercept_activity(Answering(answer))
    asked = ExecuteActivityInput(fn=told, args=[step], executor=None, headers={})
    return await ActivityEnvironment().run(around.execute_activity, asked)


async def test_the_error_of_an_outcome_is_redacted_and_keeps_everything_else() -> None:
    assert await told(CallOutcome(error=ERROR)) == CallOutcome(error=SHOWN)
    without = ERROR.model_copy(update={"hint": None})
    assert (await told(CallOutcome(error=without))).error == SHOWN.model_copy(update={"hint": None})
    progress = CommandProgress(call_id="c", outcome=CallOutcome(error=ERROR), status="cancelled")
    assert await told(progress) == progress.model_copy(update={"outcome": CallOutcome(error=SHOWN)})


async def test_what_is_no_error_is_passed_on() -> None:
    for answer in (None, CallOutcome(result={"content": "hunter2hunter2"}), CommandProgress(call_id="c"), "text"):
        assert await told(answer) is answer
    outcome = CallOutcome(error=ERROR)
    assert await told(outcome, SandboxStatusesStep(workflow_ids=[])) is outcome
